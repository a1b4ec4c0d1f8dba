"""Requests and answers as bytes, for all routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from engine.answers import Usage
from engine.errors import NotReadyError, RequestError
from engine.service import Service

SSE = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


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


async def json_of(request: web.Request) -> Any:
    """The body. Raises `RequestError` for one that is not JSON."""
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        message = f"The body is not JSON: {error}."
        raise RequestError(message, code="invalid_json") from None


def answer(
    body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def event(chunk: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def kv_headers(usage: Usage) -> dict[str, str]:
    """What was reused, known before the body is."""
    return {
        "X-KV-Hit-Tokens": str(usage.hit_tokens),
        "X-KV-Miss-Tokens": str(usage.prompt_tokens - usage.hit_tokens),
    }
