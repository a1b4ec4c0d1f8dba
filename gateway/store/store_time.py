"""A time limit that counts the store's time and not ours.

While our event loop is busy, an answer of the store may lie here unread. A limit that ran on meanwhile
would take a burst of requests for a slow store.
"""

import asyncio
from typing import Any, Final

MOST_LAG: Final = 10
"""How many limits a call may last in all, however busy our loop is."""
SLICES: Final = 5
LATE_S: Final = 0.002
"""A timer that is later than this, or than half a slice, says that our loop is busy."""


class StoreTime:
    """A time limit that counts only while the loop is free. Raises TimeoutError, as asyncio's does."""

    __slots__ = ("_due_s", "_last_s", "_left", "_loop", "_slice_s", "_timeout", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._slice_s = limit_s / SLICES
        self._left = SLICES
        self._last_s = self._loop.time() + MOST_LAG * limit_s
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._wait()

    async def __aexit__(self, *raised: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(*raised)

    def _wait(self) -> None:
        self._due_s = self._loop.time() + self._slice_s
        self._timer = self._loop.call_at(self._due_s, self._slice_ended)

    def _slice_ended(self) -> None:
        now_s = self._loop.time()
        self._left -= now_s - self._due_s <= max(LATE_S, self._slice_s / 2)
        if self._left and now_s < self._last_s:
            self._wait()
        else:
            self._timeout.reschedule(now_s)
