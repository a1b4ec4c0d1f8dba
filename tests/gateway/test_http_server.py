"""What fails below the handlers: error objects with a request id, and bodies in every encoding."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
except ImportError:
    from backports import zstd

from tests.kit.service import Service, serving

BODY = b'{"model":"m","messages":[{"role":"user","content":"What is asked?"}]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
HEAD += b"Content-Type: application/json\r\n"
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=2),
    "zstd": zstd.compress,
    "identity": bytes,
}


async def told(service: Service, request: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of what these bytes are answered."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), json.loads(body)


ODD = {
    "no HTTP at all": (b"canary canary canary\r\n\r\n", 400, "invalid_request_line"),
    "a method of no token": (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_request_line"),
    "an unknown version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, "invalid_request_line"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_request_line"),
    "an address of no URL": (b"GET http://[::1 HTTP/1.1\r\n\r\n", 400, "invalid_request_line"),
    "a long address": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 431, "header_too_long"),
    "a long header": (HEAD + b"A: " + b"a" * 9000 + b"\r\n\r\n", 431, "header_too_long"),
    "a zero byte": (HEAD + b"Authorization: canary\x00\r\n\r\n", 400, "bad_request"),
    "two hosts": (HEAD + b"Host: canary\r\n\r\n", 400, "bad_request"),
    "no number": (HEAD + b"Content-Length: canary\r\n\r\n", 400, "bad_request"),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "bad_request"),
    "two framings": (
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"
    ),
    "a broken chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
    "an odd expectation": (
        HEAD + b"Expect: canary\r\nContent-Length: 2\r\n\r\n{}", 417, "expectation_failed"
    ),
    "a star": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404, "unknown_url"),
    "an unknown encoding": (
        HEAD + b"Content-Encoding: snappy\r\nContent-Length: 2\r\n\r\n{}",
        415, "unsupported_content_encoding",
    ),
    "two encodings": (
        HEAD + b"Content-Encoding: gzip, zstd\r\nContent-Length: 2\r\n\r\n{}",
        415, "unsupported_content_encoding",
    ),
    "no zstd": (
        HEAD + b"Content-Encoding: zstd\r\nContent-Length: 6\r\n\r\ncanary", 400, "broken_body"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
async def test_a_request_that_no_handler_sees_gets_an_error_object(name: str) -> None:
    request, status, code = ODD[name]
    async with serving() as service:
        got, headers, body = await told(service, request)
        assert (got, body["error"]["code"]) == (status, code)
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["type"] in {"invalid_request_error", "not_found_error"}
        assert "canary" not in str(body)
        assert headers["X-Request-ID"].startswith("req-")
        assert headers["Content-Type"].startswith("application/json")
        assert (await service.chat()).status == 200


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_body_is_read_in_every_encoding(encoding: str) -> None:
    encoded = ENCODINGS[encoding](BODY)
    async with serving() as service:
        for spelled in (encoding, encoding.upper()):
            headers = {"Content-Encoding": spelled}
            answer = await service.send("POST", "/v1/chat/completions", encoded, headers=headers)
            assert answer.status == 200
        assert service.upstream.seen[0].body == json.loads(BODY)


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_body_is_bounded_after_decoding(encoding: str) -> None:
    """The limit stands far below what the whole text would take."""
    large = ENCODINGS[encoding](b" " * (900_000 if encoding == "identity" else 30_000_000))
    fits = ENCODINGS[encoding](b" " * (10_000 - len(BODY)) + BODY)
    over = ENCODINGS[encoding](b" " * (10_001 - len(BODY)) + BODY)
    async with serving(limits={"max_body_bytes": 10_000}) as service:
        headers = {"Content-Encoding": encoding}
        for body, status in ((large, 413), (over, 413), (fits, 200)):
            try:
                answer = await service.send("POST", "/v1/chat/completions", body, headers=headers)
            except ConnectionError:  # it was answered before all was sent
                assert encoding == "identity"
                continue
            assert answer.status == status
        assert service.upstream.calls == 1


async def test_what_may_be_sent_is_named_with_the_refusal() -> None:
    async with serving() as service:
        headers = {"Content-Encoding": "compress"}
        answer = await service.send("POST", "/v1/chat/completions", BODY, headers=headers)
        assert answer.headers["Accept-Encoding"] == "gzip, deflate, br, zstd, identity"
        assert answer.error["param"] == "Content-Encoding"
