"""Clients that stop reading: their connections are ended, however much was sent to them.

A connection is looked at now and then. If bytes wait in it, and none of them left for the limit, the
client reads no more. The limit is for connections and not for single writes, so that it holds for
streams, stored answers and whole answers alike, and costs a request next to nothing.
"""

import asyncio
from typing import Final, NamedTuple

import structlog
from aiohttp import web

LOOKS: Final = 6
"""How often a connection is looked at within the limit."""
_log = structlog.get_logger("kvgate")


class Waiting(NamedTuple):
    """Bytes that wait in a connection, and since when (loop time) none has left."""

    size: int
    since_s: float


_NOTHING: Final = Waiting(0, 0.0)


class WriteLimit:
    """Ends connections whose clients have read nothing for ``limit_s``."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._watched: dict[asyncio.WriteTransport, Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<WriteLimit {self._limit_s:g} s, {len(self._watched)} connections>"

    def watch(self, transport: asyncio.Transport | None) -> None:
        """Look at this connection from now on, until it is closed."""
        if transport is None or transport in self._watched:
            return
        self._watched[transport] = _NOTHING
        if self._timer is None:
            self._again()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._watched.clear()

    def look(self, now_s: float) -> None:
        """End what stands still at ``now_s``, by the loop's clock."""
        for transport, before in list(self._watched.items()):
            size = transport.get_write_buffer_size()
            if size == 0 and transport.is_closing():
                del self._watched[transport]
            elif size == 0 or before.size == 0 or size < before.size:
                self._watched[transport] = Waiting(size, now_s)
            elif now_s - before.since_s >= self._limit_s:
                del self._watched[transport]
                _log.info("client stopped reading", waiting_bytes=size)
                transport.abort()
            else:
                self._watched[transport] = Waiting(size, before.since_s)

    def _again(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limit_s / LOOKS, self._due)

    def _due(self) -> None:
        self._timer = None
        self.look(asyncio.get_running_loop().time())
        if self._watched:
            self._again()


WRITES: Final = web.AppKey("writes", WriteLimit)
"""Where an application keeps its limit."""
