"""How long an answer may be waited for: its first event, and each further line.

A socket's own time limit begins anew with every byte, so a server that sends one now and then would
be waited for without end. Here only a whole line is a sign of life: an event, or the comment or
empty line by which a server that is busy keeps its clients waiting. For the first event not even
those count.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

import aiohttp

from gateway.errors import BackendFault


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. ``read_s`` bounds each wait for a line of the answer, the first one and those after.

    ``first_token_s`` bounds the wait for a stream's first event, and ``idle_s`` each wait for a line
    once the stream flows; None: nothing more than ``read_s``.
    """

    connect_s: float = 5.0
    read_s: float = 600.0
    first_token_s: float | None = None
    idle_s: float | None = None


class Waits:
    """The time limits of one answer of the backend ``name``; ``streamed``: it has a first event."""

    def __init__(self, name: str, limits: Timeouts, *, streamed: bool) -> None:
        self._name = name
        self._line_s = limits.read_s
        self._idle_s = limits.read_s if limits.idle_s is None else min(limits.idle_s, limits.read_s)
        self._now = asyncio.get_running_loop().time
        self._first_by: float | None = None
        if streamed and limits.first_token_s is not None:
            self._first_by = self._now() + limits.first_token_s

    async def head(self, request: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """The answer's head. Raises: BackendFault 504; what ``request`` raises."""
        late = False
        try:
            async with asyncio.timeout_at(self._first_by) as limit:
                try:
                    return await request
                finally:
                    late = limit.expired()
        except TimeoutError as error:
            if late:
                raise self._first_late() from error
            raise

    def began(self, *, flows: bool = True) -> None:
        """An event has come. ``flows``: from now on the stream is idle when nothing comes."""
        self._first_by = None
        if flows:
            self._line_s = self._idle_s

    async def received(self, content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
        """The answer's bytes as they come. Raises: BackendFault 504."""
        line_at = self._now()
        while True:
            first_by, line_by = self._first_by, line_at + self._line_s
            by = line_by if first_by is None else min(line_by, first_by)
            try:
                async with asyncio.timeout_at(by):
                    part = await content.readany()
            except TimeoutError as error:
                raise (self._first_late() if by == first_by else self._silent()) from error
            if not part:
                return
            yield part
            if b"\n" in part:  # now: a slow reader is no silence of the backend's
                line_at = self._now()

    async def whole(self, content: aiohttp.StreamReader) -> bytes:
        """All that is left. Raises: BackendFault 504."""
        return b"".join([part async for part in self.received(content)])

    def _first_late(self) -> BackendFault:
        return BackendFault(
            f"{self._name} did not begin to answer in time",
            code="backend_first_token_timeout",
            cause="silent",
            status=504,
            retry_after_s=1.0,
        )

    def _silent(self) -> BackendFault:
        return BackendFault(
            f"{self._name} did not answer in time",
            code="backend_timeout",
            cause="silent",
            status=504,
            retry_after_s=1.0,
        )
