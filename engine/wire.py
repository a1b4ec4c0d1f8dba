"""Requests and answers as bytes, for all routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

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
KEEP_ALIVE_S: Final = 10.0
_COMMENT: Final = b": \n\n"


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


@dataclass(frozen=True, slots=True)
class Pace:
    """The time by which streams are kept alive, in seconds."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


PACE = web.AppKey("pace", Pace)


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


class EventStream:
    """Events to one client, and a comment whenever it has heard nothing for `KEEP_ALIVE_S`.

    The first of them sends the headers. One task serves a stream from its first wait to its end.
    """

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=SSE)
        self._request = request
        self._pace = request.app[PACE]
        self._lock = asyncio.Lock()
        self._sent_s = self._pace.clock()

    async def send(self, data: bytes) -> None:
        """Raises `ConnectionResetError` when the client has left."""
        async with self._lock:
            await self._write(data)

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Comments go out until the block ends."""
        beating = asyncio.create_task(self._beat())  # noqa: TID251 - held until the block ends
        try:
            yield
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating

    async def _beat(self) -> None:
        with suppress(ConnectionResetError):  # the server ends the handler of a client that left
            while True:
                await self._pace.sleep(max(0.0, self._sent_s + KEEP_ALIVE_S - self._pace.clock()))
                async with self._lock:  # while an event is on its way, nothing is needed
                    if self._pace.clock() - self._sent_s >= KEEP_ALIVE_S:
                        await self._write(_COMMENT)

    async def _write(self, data: bytes) -> None:
        if not self.response.prepared:
            await self.response.prepare(self._request)
        await self.response.write(data)
        self._sent_s = self._pace.clock()


def kv_headers(usage: Usage) -> dict[str, str]:
    """What was reused, known before the body is."""
    return {
        "X-KV-Hit-Tokens": str(usage.hit_tokens),
        "X-KV-Miss-Tokens": str(usage.prompt_tokens - usage.hit_tokens),
    }
