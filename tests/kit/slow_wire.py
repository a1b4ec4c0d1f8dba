"""A TCP port in front of a server's socket, whose answers can be held back, or lost. Without a clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from gateway.flights import Tasks


class SlowWire:
    """Passes bytes both ways; while :meth:`hold` holds, answers wait here. Built by :func:`slow_wire`."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._tasks = Tasks()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._lines = 0
        self._dead = 0
        self.url = ""
        self.asked = 0
        """Pieces that came from clients: one per command or pipeline, as these are sent at once."""
        self.held = 0
        """Answers that wait here now."""

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}"

    async def close(self) -> None:
        """End all connections."""
        assert self._server is not None
        self._server.close()
        await self._tasks.close()

    def hold(self) -> None:
        """Keep answers back from now on."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Pass them on, and all that follow."""
        self._flowing.set()

    def go_dead(self) -> None:
        """Lose all that comes for the connections that are open now; they stay open. New ones work."""
        self._dead = self._lines

    async def holding(self, count: int) -> None:
        """Wait until ``count`` answers are held back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.held >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            writer.close()
            return
        self._lines += 1
        self._tasks.start(self._up(reader, up_writer), name="up")
        self._tasks.start(self._down(up_reader, writer, self._lines), name="down")

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(2**16):
                    self.asked += 1
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: int
    ) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(2**16):
                    await self._hold(1)
                    await self._flowing.wait()
                    await self._hold(-1)
                    if line <= self._dead:
                        continue
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def _hold(self, more: int) -> None:
        async with self._changed:
            self.held += more
            self._changed.notify_all()


@asynccontextmanager
async def slow_wire(socket: Path) -> AsyncIterator[SlowWire]:
    """A wire to the server that listens on ``socket``."""
    wire = SlowWire(socket)
    await wire.start()
    try:
        yield wire
    finally:
        await wire.close()
