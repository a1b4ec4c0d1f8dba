"""Where things are kept, by the configuration: entries, leases, records, news.

One process with everything in memory needs none of the last three from outside; several processes
share them on disk or in Redis.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.config import Config
from gateway.flights import Tasks
from gateway.leading import Leading
from gateway.store.base import Store
from gateway.store.memory import MemoryStore
from gateway.store.sharing import Leases, News, Records
from gateway.store.sharing_memory import MemoryLeases, MemoryRecords
from gateway.store.tiers import Tiers
from policies.rules import Rules, TierName


@dataclass(frozen=True, slots=True)
class Places:
    """What was opened. ``leading`` is None where no other process computes the same."""

    tiers: Tiers
    leases: Leases
    records: Records
    news: News | None
    leading: Leading | None


async def open_places(
    config: Config,
    rules: Rules,
    *,
    tasks: Tasks,
    now: Callable[[], float],
    news: News | None = None,
    several: bool = False,
) -> Places:
    """Open what the configuration names; ``Places.tiers.close`` closes the stores.

    ``news`` reaches the other workers of this gateway, if ``several`` processes serve it.
    """
    shares = {one.name: one.max_bytes for one in config.tenants if one.max_bytes is not None}
    leases, records = MemoryLeases(now=now), MemoryRecords()
    stores: dict[TierName, Store] = {
        tier: MemoryStore(tier, max_bytes=rule.max_bytes, shares=shares)
        for tier, rule in rules.tiers.items()
    }
    return Places(
        tiers=Tiers(stores, several=several),
        leases=leases,
        records=records,
        news=news,
        leading=Leading(leases, tasks) if several else None,
    )
