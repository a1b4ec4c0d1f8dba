"""Where things are kept, by the configuration: entries, leases, records, news.

One process with everything in memory needs none of the last three from outside; several processes
share them on disk or in Redis.
"""

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config import Config
from gateway.flights import Tasks
from gateway.leading import Leading
from gateway.store.base import Store, StoreError
from gateway.store.disk import default_folder
from gateway.store.disk_place import DiskPlace
from gateway.store.memory import MemoryStore
from gateway.store.sharing import Leases, Listener, News, Records
from gateway.store.sharing_memory import MemoryLeases, MemoryRecords
from gateway.store.tiers import Tiers
from policies.rules import Rules, TierName

if TYPE_CHECKING:
    from gateway.store.redis_place import RedisPlace


@dataclass(frozen=True, slots=True)
class Places:
    """What was opened. ``leading`` is None where no other process computes the same.

    ``ailing`` says of each place outside this process whether it works (None), or why not.
    """

    tiers: Tiers
    leases: Leases
    records: Records
    news: News | None
    leading: Leading | None
    shares: Mapping[str, int]
    ailing: Callable[[], Mapping[str, str | None]]
    close: Callable[[], Awaitable[None]]


async def open_places(
    config: Config,
    rules: Rules,
    *,
    tasks: Tasks,
    now: Callable[[], float],
    draw: Callable[[], float],
    clock: Callable[[], float],
    news: News | None = None,
    several: bool = False,
) -> Places:
    """Open what the configuration names; ``Places.close`` closes all of it.

    ``news`` reaches the other workers of this gateway, if ``several`` processes serve it.
    """
    redis = _redis(config, draw=draw, clock=clock, tasks=tasks)
    # Without Redis several workers have their leases and records on disk, if nothing else.
    stored = {rule.store for rule in rules.tiers.values()}
    disk = None
    if "disk" in stored or (several and redis is None):
        disk = _disk(config, now=now, draw=draw, clock=clock, tasks=tasks)
    shared = redis or disk
    # Who waits for another's answer must be able to find it.
    meeting: RedisPlace | DiskPlace | None = None
    if "redis" in stored:
        meeting = redis
    elif several and "disk" in stored:
        meeting = disk
    shares = {one.name: one.max_bytes for one in config.tenants if one.max_bytes is not None}
    leases: Leases = shared.leases if shared else MemoryLeases(now=now)
    records: Records = shared.records if shared else MemoryRecords()
    if redis is not None:
        several, news = True, BothNews(news, redis.news) if news else redis.news
    stores: dict[TierName, Store] = {}
    for tier, rule in rules.tiers.items():
        if rule.store == "redis" and redis is not None:
            stores[tier] = redis.tier(tier, max_bytes=rule.max_bytes, shares=shares)
        elif rule.store == "disk" and disk is not None:
            stores[tier] = disk.tier(tier, max_bytes=rule.max_bytes, shares=shares)
        else:
            stores[tier] = MemoryStore(tier, max_bytes=rule.max_bytes, shares=shares)
    tiers = Tiers(stores, several=several, tasks=tasks)
    last = AsyncExitStack()
    if redis is not None:
        await redis.open()
        last.push_async_callback(redis.close)
    if disk is not None:
        await disk.open()
        last.push_async_callback(disk.close)
    last.push_async_callback(tiers.close)
    return Places(
        tiers=tiers,
        leases=leases,
        records=records,
        news=news,
        leading=Leading(meeting.leases, tasks) if meeting else None,
        shares=shares,
        ailing=lambda: {
            name: why
            for one in (redis, disk)
            if one is not None
            for name, why in one.ailing.items()
        },
        close=last.aclose,
    )


def _disk(
    config: Config,
    *,
    now: Callable[[], float],
    draw: Callable[[], float],
    clock: Callable[[], float],
    tasks: Tasks,
) -> DiskPlace:
    named = config.store.disk_path
    return DiskPlace(
        Path(named).expanduser() if named else own_folder(config, os.environ),
        limit_s=config.store.timeout_ms / 1000,
        now=now,
        clock=clock,
        draw=draw,
        tasks=tasks,
    )


def own_folder(config: Config, environment: Mapping[str, str]) -> Path:
    """The folder in the user's cache folder for what this configuration answers.

    Two gateways that ask others under the same names, or one whose ``base_url`` was changed, must
    not find each other's answers there; a folder that the operator names is shared by his word.
    """
    engine = None
    if config.engine_enabled():
        file = Path(config.engine.model).expanduser()
        engine = str(file.resolve()) if file.exists() else config.engine.model
    answering = {
        "backends": sorted([one.name, one.base_url, *one.models] for one in config.backends),
        "engine": engine,
        "aliases": dict(config.aliases),
        "tenants": sorted({one.name for one in config.tenants}),
    }
    said = json.dumps(answering, sort_keys=True).encode("utf-8", "surrogatepass")
    folder = default_folder(environment)
    return folder.with_name(f"{folder.name}-{blake2b(said, digest_size=8).hexdigest()}")


def _redis(
    config: Config, *, draw: Callable[[], float], clock: Callable[[], float], tasks: Tasks
) -> "RedisPlace | None":
    if config.store.redis_url is None:
        return None
    from gateway.store.redis_place import (  # noqa: PLC0415 - its client is an extra
        RedisPlace,
    )

    return RedisPlace(
        config.store.redis_url,
        limit_s=config.store.timeout_ms / 1000,
        clock=clock,
        draw=draw,
        tasks=tasks,
    )


class BothNews:
    """News of the workers beside us, and of all gateways. What both bring is heard twice."""

    def __init__(self, near: News, far: News) -> None:
        self._near = near
        self._far = far

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """Both are told, also when one of them fails. Raises: StoreError, the first one's."""
        failed: StoreError | None = None
        for news in (self._near, self._far):
            try:
                await news.tell(topic, message)
            except StoreError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def listen(self, topic: str, listener: Listener) -> None:
        """Have ``listener`` called for what either brings."""
        self._near.listen(topic, listener)
        self._far.listen(topic, listener)
