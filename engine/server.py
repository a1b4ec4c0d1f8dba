"""The engine over HTTP: OpenAI's routes, and /kv/* for the gateway.

    POST /v1/chat/completions  /v1/completions      plain and `stream: true`
    GET  /v1/models  /v1/models/{id}                what is served
    GET  /healthz                                   200 once the model is loaded
    GET  /kv/stats                                  the pool, the index, the scheduler, as JSON
    POST /kv/lookup  /kv/prefill  /kv/invalidate    what is known of a prompt; compute it; forget

A client that leaves cancels its handler, which closes the event iterator, which ends the generation
before the next step. A stream's headers are sent with its first token: an error before it is an
ordinary HTTP error, and the reuse is known. An error after it is `data: {"error": …}` without `[DONE]`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from engine.answers import Delta, Usage
from engine.api import (
    Fields,
    parse_chat,
    parse_completion,
    parse_kv,
    parse_messages,
    parse_prompts,
)
from engine.errors import EngineError, NotReadyError, RequestError
from engine.service import Call, Service

_log = logging.getLogger("engine.http")
_BODY_BYTES = 16 << 20
_SSE = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Slot:
    """Where the service will be once its model is loaded."""

    service: Service | None = None

    def ready(self) -> Service:
        if self.service is None:
            message = "The model is being loaded."
            raise NotReadyError(message)
        return self.service


SLOT = web.AppKey("slot", Slot)


def make_app(slot: Slot) -> web.Application:
    """All routes. Run it with `handler_cancellation=True`, or leaving clients are not noticed."""
    app = web.Application(client_max_size=_BODY_BYTES, middlewares=[_errors])
    app[SLOT] = slot
    app.on_response_prepare.append(_name_request)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat_completions),
            web.post("/v1/completions", completions),
            web.get("/v1/models", models),
            web.get("/v1/models/{model:.+}", one_model),
            web.get("/healthz", healthz),
            web.get("/kv/stats", kv_stats),
            web.post("/kv/lookup", kv_lookup),
            web.post("/kv/prefill", kv_prefill),
            web.post("/kv/invalidate", kv_invalidate),
        ]
    )
    return app


# -- OpenAI --------------------------------------------------------------------------------------


async def chat_completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SLOT].ready()
    ask = parse_chat(await _json(request), vocabulary=service.vocabulary)
    call = await service.chat(ask)
    if ask.stream:
        return await _stream(request, call, include_usage=ask.include_usage)
    return await _plain(call)


async def completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SLOT].ready()
    ask = parse_completion(await _json(request), vocabulary=service.vocabulary)
    call = await service.completion(ask)
    if ask.stream:
        return await _stream(request, call, include_usage=ask.include_usage)
    return await _plain(call)


async def models(request: web.Request) -> web.Response:
    return _answer({"object": "list", "data": [_model(request.app[SLOT].ready())]})


async def one_model(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    service.check_model(request.match_info["model"])
    return _answer(_model(service))


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
    return _answer(call.shape.fold(deltas, usage), headers=_kv_headers(usage))


async def _stream(request: web.Request, call: Call, *, include_usage: bool) -> web.StreamResponse:
    shape = call.shape
    usage_so_far: dict[str, Any] = {"usage": None} if include_usage else {}

    def encode(chunks: Iterable[dict[str, Any] | None]) -> bytes:
        return b"".join(_event(chunk | usage_so_far) for chunk in chunks if chunk)

    async with aclosing(call.deltas()) as deltas:
        first: Delta = await anext(deltas)
        response = web.StreamResponse(headers=_SSE | _kv_headers(call.usage()))
        try:
            await response.prepare(request)
            await response.write(encode(map(shape.opening, call.indices)))
            await response.write(encode(shape.chunks(first)))
            async for delta in deltas:
                await response.write(encode(shape.chunks(delta)))
            if include_usage:
                await response.write(_event(shape.usage_chunk(call.usage())))
            await _end(response, b"data: [DONE]\n\n")
        except ConnectionResetError:
            pass  # the client has left; closing the deltas ends the generation
        except EngineError as error:
            await _end(response, _event(error.as_json()))
        except Exception:
            if not response.prepared:
                raise
            # there is no second answer to a request: its stream ends with the error
            _log.exception("%s %s failed in mid-stream", request.method, request.path)
            await _end(response, _event(EngineError("The engine failed.").as_json()))
        return response


async def _end(response: web.StreamResponse, last: bytes) -> None:
    with suppress(ConnectionResetError):  # nobody is left to read it
        await response.write(last)
        await response.write_eof()


# -- for the gateway -----------------------------------------------------------------------------


async def healthz(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    if service.engine.broken:
        message = "The engine failed and is being restarted."
        raise NotReadyError(message)
    return _answer({"status": "ok", "model": service.model})


async def kv_stats(request: web.Request) -> web.Response:
    return _answer(request.app[SLOT].ready().stats())


async def kv_lookup(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    fields = Fields(await _json(request))
    tokens = await _tokens(service, fields, add_generation_prompt=True)
    hit_tokens = await service.lookup(tokens, fields.text("salt", "") or "")
    return _answer({"tokens": len(tokens), "hit_tokens": hit_tokens})


async def kv_prefill(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    fields = Fields(await _json(request))
    wish = parse_kv(fields.raw("kv"), lane="warm")
    # without the words that open the answer, so that it is a beginning of the longer conversation
    tokens = await _tokens(service, fields, add_generation_prompt=False)
    usage = await service.prefill(tokens, wish)
    return _answer({"usage": usage.as_json()}, headers=_kv_headers(usage))


async def kv_invalidate(request: web.Request) -> web.Response:
    service = request.app[SLOT].ready()
    fields = Fields(await _json(request))
    salt = fields.text("salt", None)
    everything = fields.boolean("all", default=False)
    if everything == (salt is not None):
        fields.fail("salt", "or all: true is needed, and not both", "missing_field")
    return _answer({"tokens": await service.invalidate(salt)})


async def _tokens(
    service: Service, fields: Fields, *, add_generation_prompt: bool
) -> tuple[int, ...]:
    """The prompt of a /kv request: messages, a prompt, or token ids."""
    if "messages" in fields:
        messages = parse_messages(fields)
        return await service.chat_tokens(messages, add_generation_prompt=add_generation_prompt)
    if "token_ids" in fields:
        fields = Fields({"prompt": fields.raw("token_ids")})
    elif "prompt" not in fields:
        fields.fail("messages", "or prompt or token_ids is needed", "missing_field")
    prompts = parse_prompts(fields, service.vocabulary)
    if len(prompts) > 1:
        fields.fail("prompt", "must be one prompt")
    return await service.prompt_tokens(prompts[0])


# -- bytes ---------------------------------------------------------------------------------------


async def _json(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        message = f"The body is not JSON: {error}."
        raise RequestError(message, code="invalid_json") from None


def _answer(
    body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _kv_headers(usage: Usage) -> dict[str, str]:
    return {
        "X-KV-Hit-Tokens": str(usage.hit_tokens),
        "X-KV-Miss-Tokens": str(usage.prompt_tokens - usage.hit_tokens),
    }


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
        return _answer(error.as_json(), status=error.status, headers=headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        refused = RequestError(error.reason, code=_HTTP_CODES.get(error.status, "http_error"))
        keep = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return _answer(refused.as_json(), status=error.status, headers=keep)
    except Exception:  # noqa: BLE001 - a handler's last resort: the client gets JSON, the log the trace
        _log.exception("%s %s failed", request.method, request.path)
        return _answer(EngineError("The engine failed.").as_json(), status=500)
