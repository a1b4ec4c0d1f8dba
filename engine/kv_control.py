"""What may be asked of kept KV beside computing: look up, retain, invalidate, follow. No HTTP, no torch.

Every question runs in the engine's thread, between two steps, and changes at most as many blocks as a
prompt has (an invalidation: as there are).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.engine import Engine
from engine.kv.events import Page
from engine.kv.missed import Missed
from engine.kv.prefix import Entry, PrefixIndex
from engine.kv.retention import Retention, Wish
from engine.kv.salts import Salt, salt_at
from engine.kv.why import why_missed
from engine.request import Tier
from engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Found:
    """How many leading tokens of a prompt are where, and why no more; `tokens` is its length."""

    tokens: int
    tiers: dict[Tier, int]
    missed: Missed | None

    def as_json(self) -> dict[str, Any]:
        """As the route answers."""
        hit_tokens = sum(self.tiers.values())
        missed = None if self.missed is None else self.missed.as_json()
        return {
            "tokens": self.tokens,
            "hit_tokens": hit_tokens,
            "tiers": self.tiers,
            "missed": missed,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks side by side, tokens [start, stop) of a prompt, that are kept alike."""

    start: int
    stop: int
    retention: Retention

    def as_json(self, *, now: float) -> dict[str, Any]:
        """As the route answers: times as seconds left, none where there is no end."""
        kept = self.retention
        return {
            "from_token": self.start,
            "until_token": self.stop,
            "tier": "hot",
            "priority": kept.priority,
            "ttl_left_s": _left(kept.expires_at, now),
            "pinned": kept.pinned,
            "pin_left_s": _left(kept.pinned_until, now) if kept.pinned else None,
            "floor": kept.floor,
            "ceiling": kept.ceiling,
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """What holds now of a prompt and of the salt of its end. `refused_tokens` could not be pinned.

    `below` are the tiers of the blocks behind those of the pool. They keep what was wanted of them when
    they went down, until they come up again.
    """

    tokens: int
    runs: tuple[Run, ...]
    refused_tokens: int
    below: Sequence[Tier]
    block_tokens: int
    quota_bytes: int | None
    kept_bytes: int
    now: float

    def as_json(self) -> dict[str, Any]:
        """As the route answers."""
        pinned = sum(run.stop - run.start for run in self.runs if run.retention.pinned)
        return {
            "tokens": self.tokens,
            "held_tokens": self.runs[-1].stop if self.runs else 0,
            "pinned_tokens": pinned,
            "pin_refused_tokens": self.refused_tokens,
            "runs": [run.as_json(now=self.now) for run in self.runs],
            "below_tokens": {
                tier: count * self.block_tokens for tier, count in _counted(self.below).items()
            },
            "quota_bytes": self.quota_bytes,
            "kept_bytes": self.kept_bytes,
        }


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a salt may keep; None takes its quota away."""

    limit_bytes: int | None


class KvControl:
    """The questions, asked from the event loop."""

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine
        self._waiting: set[asyncio.Future[None]] = set()
        self._told = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def lookup(
        self, tokens: Sequence[int], salt: Salt, *, own_salts: Sequence[str] = ()
    ) -> Found:
        """What a request with this prompt would find. Changes nothing."""

        now = self._engine.now

        def look(scheduler: Scheduler) -> Found:
            index = scheduler.index
            chain = index.chain(tokens, salt)
            hot = len(index.match(chain, tokens, salt))
            whole = (len(tokens) - 1) // index.block_tokens
            below = _below(scheduler, chain[hot:whole], now=now())
            found = hot + len(below)
            why = why_missed(index, chain, tokens, salt, found=found, own_salts=own_salts)
            blocks: dict[Tier, int] = {"hot": hot, **_counted(below)}
            tiers = {tier: count * index.block_tokens for tier, count in blocks.items()}
            return Found(len(tokens), tiers, why)

        return await self._engine.ask(look)

    async def retain(
        self, tokens: Sequence[int], salt: Salt, wish: Wish, *, quota: Quota | None = None
    ) -> Kept:
        """Change what is wanted of a prompt's blocks that are there; answers what holds now."""
        now = self._engine.now
        return await self._engine.ask(
            lambda scheduler: _retain(scheduler, tokens, salt, wish, quota, now=now())
        )

    async def invalidate(self, salt: str | None) -> int:
        """Forget the KV of a salt (None: all) and its answers. Returns tokens no longer to be found."""

        def forget(scheduler: Scheduler) -> int:
            scheduler.forget_answers(salt)
            return scheduler.index.invalidate(salt)

        return await self._engine.ask(forget)

    async def invalidate_from(self, tokens: Sequence[int], salt: Salt, *, from_token: int) -> int:
        """Forget a prompt's KV from a token on, and all that builds on it. Returns how many tokens.

        Of which prompt an answer was is not kept: all answers of the salt of its end are forgotten.
        """

        def forget(scheduler: Scheduler) -> int:
            scheduler.forget_answers(salt_at(salt, scheduler.index.pool.total_blocks))
            return scheduler.index.invalidate_from(tokens, salt, from_token=from_token)

        return await self._engine.ask(forget)

    # -- events ------------------------------------------------------------------------------------

    async def events(self, after: int, *, limit: int, wait_s: float = 0.0) -> Page:
        """What happened after a sequence number; waits so long for something to happen."""
        loop = self._loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        self._waiting.add(news)  # before looking: what happens in between must wake it
        try:
            page = await self._page(after, limit)
            if wait_s > 0 and not page.events and not page.missed:
                await asyncio.wait([news], timeout=wait_s)
                page = await self._page(after, limit)
            return page
        finally:
            self._waiting.discard(news)

    async def _page(self, after: int, limit: int) -> Page:
        def look(index: PrefixIndex) -> Page:
            index.keeper.events.heard = self._heard
            return index.keeper.events.after(after, limit=limit)

        return await self._engine.ask(lambda scheduler: look(scheduler.index))

    def _heard(self) -> None:
        """In the engine's thread, after each event: worth a call only when somebody waits."""
        if self._told or not self._waiting:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._told = True  # one call for all blocks of an invalidation
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._told = False  # first: what happens from here on calls anew
        while self._waiting:
            news = self._waiting.pop()
            if not news.done():
                news.set_result(None)


def _below(scheduler: Scheduler, keys: Sequence[bytes], *, now: float) -> list[Tier]:
    """Where these blocks are below the pool, up to the first that is nowhere."""
    return [] if scheduler.tiers is None else scheduler.tiers.lookup(keys, now=now)


def _counted(tiers: Sequence[Tier]) -> dict[Tier, int]:
    return {"warm": tiers.count("warm"), "cold": tiers.count("cold")}


def _retain(
    scheduler: Scheduler,
    tokens: Sequence[int],
    salt: Salt,
    wish: Wish,
    quota: Quota | None,
    *,
    now: float,
) -> Kept:
    index = scheduler.index
    own = salt_at(salt, index.pool.total_blocks)
    if quota is not None:
        index.set_quota(own, quota.limit_bytes)
    chain = index.chain(tokens, salt)
    path = index.path(chain, tokens, salt, most=len(chain))
    refused = sum(not _apply(index, entry, wish, now=now) for entry in path)
    quotas = index.keeper.quotas
    return Kept(
        tokens=len(tokens),
        runs=_runs(path, index.block_tokens),
        refused_tokens=refused * index.block_tokens,
        below=_below(scheduler, chain[len(path) :], now=now),
        block_tokens=index.block_tokens,
        quota_bytes=quotas.limit_bytes(own),
        kept_bytes=quotas.used_bytes(own),
        now=now,
    )


def _apply(index: PrefixIndex, entry: Entry, wish: Wish, *, now: float) -> bool:
    """Whether the block is kept as it is wanted: there may be no room for another pin."""
    may_pin = index.keeper.pins.may(entry.key)
    if wish.changes:
        index.retain(entry, wish.applied(entry.retention, now=now, may_pin=may_pin))
    return may_pin or not wish.pin


def _runs(path: Sequence[Entry], block_tokens: int) -> tuple[Run, ...]:
    runs: list[Run] = []
    for number, entry in enumerate(path):
        start, stop = number * block_tokens, (number + 1) * block_tokens
        if runs and runs[-1].retention == entry.retention:
            runs[-1] = Run(runs[-1].start, stop, entry.retention)
        else:
            runs.append(Run(start, stop, entry.retention))
    return tuple(runs)


def _left(until: float, now: float) -> float | None:
    return None if until == math.inf else round(max(0.0, until - now), 3)
