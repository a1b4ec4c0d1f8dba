"""The engine over HTTP: OpenAI's routes, and /kv/* for the gateway.

    POST /v1/chat/completions  /v1/completions      plain and `stream: true`
    GET  /v1/models  /v1/models/{id}                what is served
    GET  /healthz                                   200 once the model is loaded
    /kv/*                                           `engine.routes_kv`

A client that leaves cancels its handler, which closes the event iterator, which ends the generation
before the next step. A stream's headers are sent with its first token: an error before it is an
ordinary HTTP error, and the reuse is known. An error after it is `data: {"error": …}` without `[DONE]`.
While a stream waits, a comment goes out every 10 s. One before the first token takes the headers along.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from engine import routes_kv
from engine.answers import Delta
from engine.api import parse_chat, parse_completion
from engine.call import Call
from engine.errors import EngineError, NotReadyError, RequestError, TokenError
from engine.service import Service
from engine.wire import (
    PACE,
    SLOT,
    EventStream,
    Pace,
    Slot,
    answer,
    event,
    json_of,
    kv_headers,
)

__all__ = ["SLOT", "Pace", "Slot", "make_app"]

_log = logging.getLogger("engine.http")
_BODY_BYTES = 16 << 20
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(slot: Slot, pace: Pace | None = None, token: str | None = None) -> web.Application:
    """All routes. With a `token` every one but /healthz wants it. Run it with `handler_cancellation=True`, or leaving clients are not noticed."""
    app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors, _guard(token)])
    app[SLOT] = slot
    app[PACE] = pace or Pace()
    app.on_response_prepare.append(_name_request)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.get("/v1/models", models),
            web.get("/v1/models/{model:.+}", one_model),
            web.get("/healthz", healthz),
            *routes_kv.routes(),
        ]
    )
    return app


def _guard(token: str | None) -> Middleware:
    """Other local processes reach the port too; they do not have the token."""
    wanted = None if token is None else f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if wanted is not None and request.path != "/healthz":
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, wanted):
                raise TokenError("This engine takes commands from its gateway only.")
        return await handler(request)

    return guard


# -- OpenAI --------------------------------------------------------------------------------------


async def chat_completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SLOT].ready()
    ask = parse_chat(await json_of(request), vocabulary=service.vocabulary)
    call = await service.chat(ask)
    if ask.stream:
        return await _stream(request, call, include_usage=ask.include_usage)
    return await _plain(call)


async def completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SLOT].ready()
    ask = parse_completion(await json_of(request), vocabulary=service.vocabulary)
    call = await service.completion(ask)
    if ask.stream:
        return await _stream(request, call, include_usage=ask.include_usage)
    return await _plain(call)


async def models(request: web.Request) -> web.Response:
    return answer({"object": "list", "data": [_model(request.app[SLOT].ready())]})


async def one_model(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    service.check_model(request.match_info["model"])
    return answer(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "kvgate",
        "max_model_len": service.engine.scheduler.capacity_tokens,
    }


async def _plain(call: Call) -> web.Response:
    deltas = [delta async for delta in call.deltas()]
    usage = call.usage()
    return answer(call.shape.fold(deltas, usage, call.receipt()), headers=kv_headers(usage))


async def _stream(request: web.Request, call: Call, *, include_usage: bool) -> web.StreamResponse:
    shape = call.shape
    usage_so_far: dict[str, Any] = {"usage": None} if include_usage else {}

    def encode(chunks: Iterable[dict[str, Any] | None]) -> bytes:
        return b"".join(event(chunk | usage_so_far) for chunk in chunks if chunk)

    out = EventStream(request)
    async with aclosing(call.deltas()) as deltas, out.kept_alive():
        try:
            first: Delta = await anext(deltas)
            if not out.response.prepared:
                out.response.headers.update(kv_headers(call.usage()))
            await out.send(encode(map(shape.opening, call.indices)) + encode(shape.chunks(first)))
            async for delta in deltas:
                await out.send(encode(shape.chunks(delta)))
            if include_usage:
                await out.send(event(shape.usage_chunk(call.usage(), call.receipt())))
            await _end(out, b"data: [DONE]\n\n")
        except ConnectionResetError:
            pass  # the client has left; closing the deltas ends the generation
        except Exception as error:
            if not out.response.prepared:
                raise
            # there is no second answer to a request: its stream ends with the error
            if not isinstance(error, EngineError):
                _log.exception("%s %s failed in mid-stream", request.method, request.path)
                error = EngineError("The engine failed.")
            await _end(out, event(error.as_json()))
        return out.response


async def _end(out: EventStream, last: bytes) -> None:
    with suppress(ConnectionResetError):  # nobody is left to read it
        await out.send(last)
        await out.response.write_eof()


# -- for operators -------------------------------------------------------------------------------


async def healthz(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    if service.engine.broken:
        message = "The engine failed and is being restarted."
        raise NotReadyError(message)
    return answer({"status": "ok", "model": service.model})


# -- rims ----------------------------------------------------------------------------------------


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    given = request.headers.get("X-Request-ID", "")
    name = given if 0 < len(given) <= 128 and given.isascii() else f"req-{secrets.token_hex(8)}"
    response.headers["X-Request-ID"] = name


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every error leaves as OpenAI's JSON."""
    try:
        return await handler(request)
    except EngineError as error:
        retry = error.retry_after_s
        headers = {"Retry-After": str(retry)} if retry is not None else None
        return answer(error.as_json(), status=error.status, headers=headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refused = RequestError(error.reason, code=_HTTP_CODES.get(error.status, "http_error"))
        keep = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return answer(refused.as_json(), status=error.status, headers=keep)
    except Exception:  # noqa: BLE001 - a handler's last resort: the client gets JSON, the log the trace
        _log.exception("%s %s failed", request.method, request.path)
        return answer(EngineError("The engine failed.").as_json(), status=500)
