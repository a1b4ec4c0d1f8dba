"""A bounded number of calls at one backend; who waits is let in by lane, then tenant by tenant.

A server of another make has a queue of its own at best, and none that knows lanes or tenants: with
a bound, what cannot be computed now waits here, a batch behind people, and within a lane the tenants
in turn, so that a crowd of one does not stand before a single call of another. What may wait is
bounded as well, for each tenant and lane by itself: nobody is refused for another's crowd.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from gateway.errors import BackendFault
from policies.plan import Lane

ORDER: Final[tuple[Lane, ...]] = ("interactive", "batch", "warm")
MOST_WAITING: Final = 512
RECENT: Final = 0.2
"""Weight of the last call in the mean time that calls take."""
LEAST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 60.0

Queue = deque["asyncio.Future[None]"]


class Lanes:
    """The places at one backend. Belongs to one event loop. ``clock`` is monotonic, in seconds."""

    def __init__(
        self, most: int, *, clock: Callable[[], float], most_waiting: int = MOST_WAITING
    ) -> None:
        self._most = most
        self._free = most
        self._most_waiting = most_waiting
        self._clock = clock
        self._mean_s = 0.0
        # The tenants of a lane stand in the order in which they are let in next.
        self._waiting: dict[Lane, OrderedDict[str, Queue]] = {lane: OrderedDict() for lane in ORDER}

    @asynccontextmanager
    async def place(self, lane: Lane, tenant: str) -> AsyncIterator[None]:
        """Wait for a place and hold it within the block.

        Raises: BackendFault 429 ``queue_full`` when too many of the tenant wait in this lane.
        """
        await self._take(lane, tenant)
        began_s = self._clock()
        try:
            yield
        finally:
            self._mean_s += RECENT * (self._clock() - began_s - self._mean_s)
            self._give()

    async def _take(self, lane: Lane, tenant: str) -> None:
        if self._free:  # a place is free only while nobody waits
            self._free -= 1
            return
        tenants = self._waiting[lane]
        before = len(tenants.get(tenant, ()))
        if before >= self._most_waiting:
            raise self._full(before)
        mine = asyncio.get_running_loop().create_future()
        tenants.setdefault(tenant, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                self._leave(lane, tenant, mine)
            else:  # we were let in and are told to leave in the same turn of the loop
                self._give()
            raise

    def _leave(self, lane: Lane, tenant: str, mine: "asyncio.Future[None]") -> None:
        queue = self._waiting[lane].get(tenant)
        if queue is not None and mine in queue:  # else passed over already
            queue.remove(mine)
            if not queue:
                del self._waiting[lane][tenant]

    def _give(self) -> None:
        for lane in ORDER:
            if self._let_in(self._waiting[lane]):
                return
        self._free += 1

    @staticmethod
    def _let_in(tenants: OrderedDict[str, Queue]) -> bool:
        """Let the first one of the first tenant in, and have that tenant stand behind the others."""
        while tenants:
            tenant, queue = tenants.popitem(last=False)
            while queue:
                first = queue.popleft()
                if not first.cancelled():  # cancelled, and not yet awake to leave the queue
                    if queue:
                        tenants[tenant] = queue
                    first.set_result(None)
                    return True
        return False

    def _full(self, before: int) -> BackendFault:
        # Of the tenant's own calls alone: how many wait of others is not the tenant's to know.
        wait_s = self._mean_s * before / self._most
        return BackendFault(
            f"{before} calls wait already; try again later",
            code="queue_full",
            cause="not_asked",
            status=429,
            retry_after_s=min(max(wait_s, LEAST_RETRY_S), MOST_RETRY_S),
        )

    def __repr__(self) -> str:
        waiting = sum(
            len(queue) for tenants in self._waiting.values() for queue in tenants.values()
        )
        return f"<Lanes {self._free} free, {waiting} waiting>"
