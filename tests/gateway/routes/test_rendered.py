"""A rendered hit is, byte for byte, what aiohttp would have sent."""

import asyncio
import re

import pytest
from aiohttp import web

from gateway.routes.rendered import Rendered, head_lines, plain
from tests.kit.service import serving

HEADERS = {"X-Cache-Hit": "true", "Cache-Status": 'kvgate; hit; key="ab"', "Age": "3"}
BODY = b'{"content":"\xc3\xa4"}'


async def wire(request: bytes, *, port: int) -> bytes:
    """What comes back for raw bytes, until nothing more is due."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None
    body = await reader.readexactly(int(length[1]))
    writer.close()
    await writer.wait_closed()
    return head + body


def lines(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.split(b"\r\n")
    return status, sorted(line for line in fields if not line.startswith(b"Date")), body


async def test_the_bytes_are_those_of_aiohttps_own_response() -> None:
    async def rendered(_: web.Request) -> web.StreamResponse:
        return Rendered(head_lines(HEADERS, length=len(BODY), now=0.0), BODY)

    async def twin(_: web.Request) -> web.StreamResponse:
        return plain(HEADERS, BODY)

    app = web.Application()
    app.router.add_post("/rendered", rendered)
    app.router.add_post("/twin", twin)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    ask = "POST /{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    one = await wire(ask.format("rendered").encode(), port=port)
    other = await wire(ask.format("twin").encode(), port=port)
    await runner.cleanup()
    assert lines(one) == lines(other)
    assert b"Date: Thu, 01 Jan 1970 00:00:00 GMT" in one


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb"])
def test_a_value_cannot_end_its_line(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        head_lines({"X": value}, length=0, now=0.0)


@pytest.mark.parametrize(
    ("version", "extra"), [("1.1", ""), ("1.1", "Connection: close\r\n"), ("1.0", "")]
)
async def test_a_hit_is_the_same_on_every_kind_of_connection(version: str, extra: str) -> None:
    async with serving() as service:
        body = b'{"model":"m","messages":[{"role":"user","content":"?"}],"kv_cache":true}'
        body = body.replace(b"true", b'{"enabled":true}')
        ask = (
            f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\n{extra}"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        port = int(service.url.rpartition(":")[2])
        await wire(ask, port=port)
        hits = [lines(await wire(ask, port=port)) for _ in range(2)]
        for status, fields, _ in hits:
            assert status.endswith(b"200 OK")
            assert b"X-Cache-Hit: true" in fields
        names = [{line.split(b":")[0] for line in fields} for _, fields, _ in hits]
        assert names[0] == names[1]
        closes = version == "1.1" and bool(extra)
        assert (b"Connection: close" in hits[0][1]) == closes
