"""Which published block goes first, and what is told and remembered of those that came and went.

The prefix index says what happens to its blocks; what it wants to know is the next victim. The order is
`policies.reuse`, as `engine.kv.retention` wants it and `engine.kv.quotas` bounds it; `events` is told what
came and went, and `forgotten` remembers what went and why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Protocol

from engine.kv.blob import Identity
from engine.kv.events import EventLog
from engine.kv.missed import Cause, Forgotten, Reason
from engine.kv.quotas import Quotas
from engine.kv.retention import PIN_SHARE, Pins, Retention
from engine.request import Tier
from policies.reuse import ReuseOrder

SHARED_BY = 3
"""Prompts that went on differently after a block, from which on it is one that many build on."""
FORGOTTEN = 4
"""Keys of blocks that are there no more, remembered for each block of the pool."""


@dataclass(slots=True, eq=False)
class Entry:
    """A published block. `branches` counts the different blocks that were ever built on it."""

    key: bytes
    parent: bytes
    content: bytes
    block: int
    salt: str
    retention: Retention
    children: dict[bytes, None] = field(default_factory=dict)
    branches: int = 0
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """A published block, for who keeps a copy of it elsewhere."""

    block: int
    identity: Identity
    salt: str
    wanted: Retention
    turn: int
    shared: bool
    superseded: bool


class Below(Protocol):
    """What is below the pool (`engine.kv.tiers`), as far as the index has to tell it something."""

    def evicted(self, kept: Kept, /, *, now: float) -> None:
        """The block's place is about to be given to another."""

    def published(self, key: bytes, wanted: Retention, /) -> None:
        """A block became findable."""

    def narrowed(self, key: bytes, wanted: Retention, /) -> None:
        """A block's ceiling is another now."""

    def forget(self, keys: Collection[bytes], /, *, salt: str | None = None) -> int:
        """Forget these blocks, a salt's, and what builds on them; how many are not in the pool."""

    def forget_all(self) -> int:
        """Forget all blocks; how many are not in the pool."""

    def holds(self, key: bytes, /) -> bool:
        """Whether the block under this key can be had from below."""


class Keeper:
    """Keeps the order of what may go. `clock` dates what is told; `now` is the engine's own time."""

    def __init__(
        self, *, blocks: int, block_tokens: int, block_bytes: int, clock: Callable[[], float]
    ) -> None:
        self.events = EventLog(clock=clock)
        self.forgotten = Forgotten(FORGOTTEN * blocks)
        self.quotas = Quotas(block_bytes)
        self.pins = Pins(int(blocks * PIN_SHARE))
        self.order: ReuseOrder[bytes] = ReuseOrder()
        self.tiers_below: tuple[Tier, ...] = ()
        self.clock = clock
        self.now = 0.0
        self.evicted: Counter[Cause] = Counter()
        self.missed: Counter[Reason] = Counter()
        self.broken_pins = 0
        self._block_tokens = block_tokens

    def kept(self, entry: Entry) -> Kept:
        """The block as others may know it."""
        return Kept(
            entry.block,
            Identity(entry.key, entry.parent, entry.content),
            entry.salt,
            entry.retention,
            self.order.turn_of(entry.key) or 1,
            entry.branches >= SHARED_BY,
            entry.superseded,
        )

    def passes(self, now: float) -> list[bytes]:
        """Time goes on; the keys of blocks whose pin is over."""
        self.now = max(self.now, now)
        return self.pins.due(self.now)

    def stored(self, entry: Entry, *, turn: int) -> None:
        """A block was published."""
        self.order.add(entry.key, turn=turn)
        self.quotas.kept(entry.salt)
        self.forgotten.back(entry.key)
        self.events.note("stored", entry.key, salt=entry.salt, tokens=self._block_tokens)

    def used(self, entry: Entry) -> None:
        """Somebody holds it."""
        self.order.touch(entry.key)
        self.quotas.used(entry.salt, entry.key)
        entry.superseded = False

    def rests(self, entry: Entry) -> None:
        """Nobody holds it: once nothing builds on it, it may go. To be called whenever that changes."""
        if entry.children:
            return
        wanted = entry.retention
        self.order.offer(
            entry.key,
            priority=wanted.priority,
            expires_at=math.inf if wanted.pinned else wanted.expires_at,
            standing=wanted.standing(superseded=entry.superseded, below=self.tiers_below),
            shared=entry.branches >= SHARED_BY,
        )
        self.quotas.rests(entry.salt, entry.key, wanted)

    def wants(self, entry: Entry, wanted: Retention, *, idle: bool) -> None:
        """From now on this is wanted of a block, in place of what was."""
        entry.retention = wanted
        self.pins.set(entry.key, wanted.pinned_until)
        if idle:
            self.quotas.used(entry.salt, entry.key)
            self.rests(entry)

    def unpins(self, entry: Entry, *, idle: bool) -> None:
        """Its pin is over."""
        self.wants(entry, replace(entry.retention, pinned_until=-math.inf), idle=idle)

    def victim(self) -> bytes:
        """The block that goes next. There must be one that may."""
        key = self.order.pop(now=self.now)
        assert key is not None
        return key

    def own_victim(self, salt: str) -> bytes | None:
        """The block that a salt over its quota gives up next; None when all are used or pinned."""
        key = self.quotas.victim(salt, now=self.now)
        if key is not None:
            self.order.discard(key)  # it did not go for what it was worth: nothing to learn
        return key

    def evicts(self, entry: Entry, *, quota: bool) -> Cause:
        """Counts a victim; why it goes."""
        wanted = entry.retention
        expired = wanted.expires_at <= self.now and not wanted.pinned
        rest: Cause = "superseded" if entry.superseded else "capacity"
        cause: Cause = "quota" if quota else "ttl" if expired else rest
        self.broken_pins += wanted.pinned
        self.evicted[cause] += 1
        return cause

    def gone(self, entry: Entry, cause: Cause) -> None:
        """It is not to be found any more."""
        self.pins.set(entry.key, -math.inf)
        self.quotas.gone(entry.salt, entry.key)
        self.forgotten.note(entry.key, cause, now=self.clock())
        tokens, salt = self._block_tokens, entry.salt
        if cause == "invalidated":
            self.events.note("invalidated", entry.key, salt=salt, tokens=tokens)
        else:
            self.events.note("evicted", entry.key, salt=salt, tokens=tokens, cause=cause)
