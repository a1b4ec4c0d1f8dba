"""A bounded number of calls at one backend; who waits is let in by lane, then by arrival.

A server of another make has a queue of its own at best, and none that knows lanes: with a bound,
what cannot be computed now waits here, and a batch behind people.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from policies.plan import Lane

ORDER: Final[tuple[Lane, ...]] = ("interactive", "batch", "warm")


class Lanes:
    """The places at one backend. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in ORDER}

    @asynccontextmanager
    async def place(self, lane: Lane) -> AsyncIterator[None]:
        """Wait for a place and hold it within the block."""
        await self._take(lane)
        try:
            yield
        finally:
            self._give()

    async def _take(self, lane: Lane) -> None:
        if self._free:  # a place is free only while nobody waits
            self._free -= 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                with suppress(ValueError):  # passed over already
                    self._waiting[lane].remove(mine)
            else:  # we were let in and are told to leave in the same turn of the loop
                self._give()
            raise

    def _give(self) -> None:
        for lane in ORDER:
            while self._waiting[lane]:
                first = self._waiting[lane].popleft()
                if not first.cancelled():  # cancelled, and not yet awake to leave the queue
                    first.set_result(None)
                    return
        self._free += 1

    def __repr__(self) -> str:
        waiting = sum(map(len, self._waiting.values()))
        return f"<Lanes {self._free} free, {waiting} waiting>"
