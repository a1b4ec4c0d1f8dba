"""One process computes, the others wait for what it stores.

Flights coalesce identical calls within a process; a lease does so across processes that share a
store. Whoever takes the lease of a key is its leader and computes; the others look into the store
until the answer is there or the lease is free, and then either read it or lead themselves. A lease is
renewed while its holder lives and ends by itself soon after it died: then one of those who wait goes
on in its place. A leader that ended without storing anything says so by a second, short lease: then all
who waited compute for themselves, as one after the other they would wait for ever. A store of leases
that fails costs the coalescing and nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.sharing import Leases

LEASE_S: Final = 5.0
"""How long others wait for a leader that died."""
RENEW_S: Final = 1.5
ENDED: Final = b"ended:"
ENDED_S: Final = 1.0
"""How long it is known that a leader has ended: longer than those who wait take to look again."""
FIRST_WAIT_S: Final = 0.01
LONGEST_WAIT_S: Final = 0.1
There = Callable[[], Awaitable[bool]]


class Leading:
    """Leases as the pipeline uses them. ``sleep`` is an argument for the tests."""

    def __init__(
        self,
        leases: Leases,
        tasks: Tasks,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._leases = leases
        self._tasks = tasks
        self._sleep = sleep

    @asynccontextmanager
    async def of(self, key: bytes, there: There | None) -> AsyncIterator[bool]:
        """Hold the lease of ``key`` within the block; False: the answer is ``there`` already.

        With no ``there`` to look at nobody waits: False says that another holds the lease.
        """
        leads = await self._leads(key, there)
        if leads is None:
            yield True
            return
        if not leads:
            yield False
            return
        renewing = self._tasks.start(self._renew(key), name="lease")
        try:
            yield True
            await self._say_ended(key)
        finally:  # a leader that was cancelled is followed by one of those who wait
            renewing.cancel()
            await self._let_go(key)

    async def _leads(self, key: bytes, there: There | None) -> bool | None:
        """Whether we hold the lease now; None when it is of no use."""
        try:
            return await self._taken(key, there)
        except StoreError:
            return None
        except BaseException:
            # We may hold it, and nobody else would give it back before it ends by itself.
            self._tasks.start(self._let_go(key), name="lease")
            raise

    async def _taken(self, key: bytes, there: There | None) -> bool | None:
        waited = False
        wait_s = FIRST_WAIT_S
        while not await self._leases.take(key, ttl_s=LEASE_S):
            if there is None:
                return False
            await self._sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            waited = True
            if await there():
                return False
        if there is None:
            return True
        if await there():  # it was stored between our look-up and our taking the lease
            await self._let_go(key)
            return False
        if waited and await self._leases.held(ENDED + key):
            # The other one stored nothing: its call failed, or its answer may not be kept.
            await self._let_go(key)
            return None
        return True

    async def _say_ended(self, key: bytes) -> None:
        with suppress(StoreError):
            await self._leases.take(ENDED + key, ttl_s=ENDED_S)

    async def _let_go(self, key: bytes) -> None:
        with suppress(StoreError):
            await self._leases.release(key)

    async def _renew(self, key: bytes) -> None:
        while True:
            await self._sleep(RENEW_S)
            with suppress(StoreError):
                await self._leases.take(key, ttl_s=LEASE_S)

    def __repr__(self) -> str:
        return f"<Leading by {type(self._leases).__name__}>"
