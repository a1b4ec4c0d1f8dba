"""What all routes share: bodies in, errors out, request ids."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.errors import BackendFault, ClientFault, GatewayError, OurFault
from gateway.routes import shape
from gateway.routes.shape import as_gateway_error, error_headers, guarded, json_response, new_id
from gateway.store.base import StoreError
from policies.call import RequestError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, *, max_bytes: int = 100) -> AsyncIterator[str]:
    app = web.Application(client_max_size=max_bytes)
    app.router.add_route("*", "/", guarded(handler))
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def asked(url: str, **options: object) -> tuple[int, dict[str, str], bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, **options) as response,  # type: ignore[arg-type]
    ):
        return response.status, dict(response.headers), await response.read()


async def echo(request: web.Request) -> web.Response:
    return json_response(shape.object_of(await shape.body_of(request)))


async def test_a_body_is_read_whole() -> None:
    async with serving(echo) as url:
        status, headers, raw = await asked(url, data=b'{"a": 1}')
        assert (status, raw) == (200, b'{"a":1}')
        assert headers["X-Request-ID"].startswith("req-")
        status, _, raw = await asked(url)
        assert (status, raw) == (200, b"{}")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"x" * 101, 413, "body_too_large"),
        (b"[]", 400, "invalid_type"),
        (b"{", 400, "invalid_json"),
        (b"\n\n  {", 400, "invalid_json"),
    ],
)
async def test_a_bad_body_is_refused(data: bytes, status: int, code: str) -> None:
    async with serving(echo) as url:
        found, headers, raw = await asked(url, data=data)
        assert (found, orjson.loads(raw)["error"]["code"]) == (status, code)
        assert headers["X-Should-Retry"] == "false"


async def test_where_json_breaks_is_said() -> None:
    async with serving(echo) as url:
        _, _, raw = await asked(url, data=b'{"a": 1,\n "b": }')
        assert "line 2, column" in orjson.loads(raw)["error"]["message"]


async def test_a_body_that_does_not_come_in_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shape, "_BODY_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with serving(echo) as url:
        status, _, raw = await asked(url, data=slowly())
        assert (status, orjson.loads(raw)["error"]["code"]) == (408, "body_timeout")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ClientFault("no", code="c"), 400, "c"),
        (RequestError("no", code="r", status=403), 403, "r"),
        (StoreError("down"), 503, "store_unavailable"),
        (ValueError("secret detail"), 500, "internal_error"),
    ],
)
async def test_whatever_is_raised_becomes_an_error_object(
    error: Exception, status: int, code: str
) -> None:
    async def fails(_: web.Request) -> web.Response:
        raise error

    async with serving(fails) as url:
        found, headers, raw = await asked(url, headers={"X-Request-ID": "mine"})
        body = orjson.loads(raw)["error"]
        assert (found, body["code"], headers["X-Request-ID"]) == (status, code, "mine")
        assert "secret" not in body["message"]


async def test_a_redirect_is_left_to_the_server() -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async with serving(elsewhere) as url:
        status, headers, _ = await asked(url, allow_redirects=False)
        assert (status, headers["Location"]) == (302, "/elsewhere")


async def test_an_answer_that_has_begun_is_left_as_it_is() -> None:
    async def begun(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write_eof(b"done")
        return response

    async with serving(begun) as url:
        assert (await asked(url))[2] == b"done"


async def test_an_answer_keeps_a_request_id_of_its_own() -> None:
    async def named(_: web.Request) -> web.Response:
        return web.json_response({}, headers={"X-Request-ID": "its own"})

    async with serving(named) as url:
        _, headers, _ = await asked(url)
        assert headers["X-Request-ID"] == "its own"


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (ClientFault("", code=""), {"X-Should-Retry": "false"}),
        (ClientFault("", code="", status=504), {"X-Should-Retry": "false"}),
        (
            ClientFault("", code="", status=401),
            {"WWW-Authenticate": "Bearer", "X-Should-Retry": "false"},
        ),
        (ClientFault("", code="", status=409), {}),
        (ClientFault("", code="", status=408), {}),
        (BackendFault("", code="", status=429, retry_after_s=0.2), {"Retry-After": "1"}),
        (BackendFault("", code="", status=503, retry_after_s=7.4), {"Retry-After": "7"}),
        (BackendFault("", code="", status=502), {}),
        (OurFault("", code=""), {}),
    ],
)
def test_a_client_is_told_whether_and_when_to_try_again(
    error: GatewayError, headers: dict[str, str]
) -> None:
    assert error_headers(error) == headers


def test_a_defect_is_ours_and_its_text_stays_here() -> None:
    error = as_gateway_error(ZeroDivisionError("secret"), "req-1")
    assert isinstance(error, OurFault)
    assert "secret" not in error.message


def test_ids_do_not_repeat() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
    assert all(len(new_id()) == 24 for _ in range(100))
