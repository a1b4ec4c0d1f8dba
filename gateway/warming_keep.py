"""The configuration's own patterns: warmed at the start, and kept warm.

``on_start`` is a job like any other, named ``start-<pattern>``, for every tenant: nothing crosses
from one to another, so each has its own. It waits while the engine is loading.

``keep_warm`` renews what is stored shortly before its ttl ends, and computes again what was there
and is gone. One process of several does it, the one that holds the pattern's lease.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.errors import GatewayError
from gateway.store.base import StoreError
from gateway.store.sharing import Leases
from gateway.warming import WarmJobs, in_parallel
from gateway.warming_call import Asked, Warming
from policies.call import RequestError
from policies.freshness import EntryMeta
from policies.keys import Principal
from policies.warming import Item

LOOK_S: Final = 60.0
"""The longest time between two looks at what is kept warm."""
LEAST_LOOK_S: Final = 1.0
LEAD_SHARE: Final = 0.1
"""Of the ttl: how long before its end an answer is renewed, or longer if it took long to make."""

_log = structlog.get_logger("kvgate.warming")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of the configuration."""

    items: tuple[Item, ...]
    on_start: bool
    keep_warm: bool


class Keeper:
    """Warms at the start and keeps warm. ``now`` is unix time in seconds."""

    def __init__(
        self,
        *,
        patterns: Mapping[str, Pattern],
        tenants: Sequence[str],
        jobs: WarmJobs,
        warming: Warming,
        leases: Leases,
        concurrency: int,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._patterns = patterns
        self._tenants = tenants
        self._jobs = jobs
        self._warming = warming
        self._leases = leases
        self._concurrency = concurrency
        self._now = now
        self._sleep = sleep
        self._seen: set[bytes] = set()  # keys that were stored: they are ours to keep
        self._not_before: dict[bytes, float] = {}  # one that fails, or finds no room, must wait

    async def start(self) -> None:
        """Begin the jobs of the start. Never fails: a store that is down costs the warming."""
        for name, pattern in self._patterns.items():
            for tenant in self._tenants if pattern.on_start else ():
                try:
                    await self._jobs.begin(f"start-{name}", Principal(tenant), pattern.items)
                except StoreError as error:
                    _log.warning("not warmed at start", pattern=name, reason=str(error)[:200])

    async def keep(self) -> None:
        """For ever: renew what is to be kept, and sleep until the next is due."""
        kept = {
            (name, tenant): await self._understood(pattern.items, tenant)
            for name, pattern in self._patterns.items()
            if pattern.keep_warm
            for tenant in self._tenants
        }
        while kept:
            await self._sleep(await self._look(kept))

    async def _understood(self, items: Sequence[Item], tenant: str) -> list[Asked]:
        found = []
        for item in items:
            try:
                found.append(await self._warming.understand(item, Principal(tenant)))
            except (RequestError, GatewayError, StoreError) as error:
                _log.warning("cannot be kept warm", item=item.where, reason=str(error)[:200])
        return found

    async def _look(self, kept: Mapping[tuple[str, str], Sequence[Asked]]) -> float:
        """Renew what is due; returns the seconds until the next is."""
        next_s = LOOK_S
        for (name, tenant), asked in kept.items():
            try:
                lease = f"warm-keep:{tenant}:{name}".encode()
                if not await self._leases.take(lease, ttl_s=2 * LOOK_S):
                    continue
            except StoreError:
                continue
            due = []
            for one in asked:
                left_s = await self._left_s(one)
                if left_s is not None and left_s <= 0:
                    due.append(one)
                elif left_s is not None:
                    next_s = min(next_s, left_s)
            if due:
                await in_parallel(self._concurrency, due, self._renew)
                next_s = LEAST_LOOK_S  # it took time: others may be due by now
        return max(next_s, LEAST_LOOK_S)

    async def _left_s(self, asked: Asked) -> float | None:
        """Seconds until it is to be renewed; None for what was never there."""
        now, key = self._now(), asked.plan.key
        meta = await self._warming.find(asked.plan)
        wait_s = self._not_before.get(key, now) - now
        if meta is None or meta.status != 200:
            return wait_s if key in self._seen else None
        self._seen.add(key)
        return max(renew_at(meta) - now, wait_s)

    async def _renew(self, asked: Asked) -> None:
        warmed = await self._warming.renew(asked)
        failed = warmed.status == "failed"
        if failed:
            _log.warning("not kept warm", key=warmed.key, code=warmed.code)
        wait_s = LOOK_S if failed else min(LOOK_S, asked.plan.ttl_s / 2)
        self._not_before[asked.plan.key] = self._now() + wait_s

    def __repr__(self) -> str:
        return f"<Keeper {len(self._patterns)} patterns, {len(self._seen)} answers kept>"


def renew_at(meta: EntryMeta) -> float:
    """When an answer should be renewed: unix time, before its ttl ends."""
    lead_s = max(LEAD_SHARE * meta.ttl_s, 2 * meta.cost_s)
    return meta.stored_at + meta.ttl_s - min(lead_s, meta.ttl_s / 2)
