"""A response whose bytes are there already.

aiohttp's own way from a dict of headers to the wire takes a fifth of a cache hit, and nearly all of
a hit's head is the same for every caller of the same second. :class:`Rendered` sends such bytes in
one write; :func:`plain` is its twin, which says the same through aiohttp, for callers that
:class:`Rendered` does not serve (HTTP/1.0, connections to be closed).
"""

from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE

CONTENT_TYPE: Final = "application/json"


class Rendered(web.StreamResponse):
    """Status 200, JSON, HTTP/1.1, kept alive. ``head`` is the status line and whole header lines."""

    def __init__(self, head: bytes, body: bytes) -> None:
        super().__init__()
        self._bytes = b"%b\r\n%b" % (head, body)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Send all of it."""
        self._keep_alive = True
        self._eof_sent = True
        await request.writer.write(self._bytes)
        return request.writer


def takes_rendered(request: web.BaseRequest) -> bool:
    """Whether :class:`Rendered` may answer this request."""
    return (
        request.keep_alive
        and request.version == HttpVersion11
        and hdrs.ORIGIN not in request.headers  # a browser may be owed more headers
    )


def head_lines(headers: Mapping[str, str], *, length: int, now: float) -> bytes:
    """The head of a :class:`Rendered` answer of ``length`` bytes; more lines may follow.

    Raises: ValueError for a value that would end its line.
    """
    values = {
        **headers,
        "Content-Length": str(length),
        "Content-Type": CONTENT_TYPE,
        "Date": formatdate(now, usegmt=True),
        "Server": SERVER_SOFTWARE,
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in values.items())
    if text.count("\r") != len(values) or text.count("\n") != len(values):
        raise ValueError("a header value with a line break")
    return b"HTTP/1.1 200 OK\r\n" + text.encode("utf-8", "surrogateescape")


def plain(headers: Mapping[str, str], body: bytes) -> web.Response:
    """The same answer by way of aiohttp."""
    return web.Response(body=body, headers=headers, content_type=CONTENT_TYPE)
