"""Entries in the memory of this process, bounded in bytes.

``cachetools.Cache`` keeps the sizes, ``policies.eviction`` says who goes first: expired
entries, then low priority before medium before high, then what is cheap to recompute for its
size and rarely used.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from heapq import nsmallest
from typing import Final

import cachetools

from gateway.store.bars import Bars, since_of
from gateway.store.base import Entry, Fill, Selector, Stored
from policies.eviction import EvictionOrder
from policies.freshness import EntryMeta, last_use

OVERHEAD_BYTES: Final = 1200
"""What an entry takes beside its body: its meta data, keys and two index slots (measured)."""

PORTION: Final = 1000
"""Entries looked at in one turn of the loop: a few milliseconds when all of them have to go."""


class MemoryStore:
    """One tier in memory. Not thread-safe: it belongs to one event loop."""

    def __init__(
        self, tier: str, *, max_bytes: int, shares: Mapping[str, int] | None = None
    ) -> None:
        """``shares``: the most bytes of it that a tenant's entries may take, by tenant."""
        self._tier = tier
        self._shares = {tenant: _Share(most) for tenant, most in (shares or {}).items()}
        self._entries: cachetools.Cache[bytes, Entry] = cachetools.Cache(
            max_bytes, getsizeof=footprint
        )
        self._order: EvictionOrder[bytes] = EvictionOrder()
        self._evictions = 0
        self._bars = Bars()

    @property
    def number(self) -> int:
        """See :attr:`gateway.store.base.Generations.number`."""
        return self._bars.number

    async def bar(self, what: Selector | None, *, at: int | None = None) -> int:
        """See :meth:`gateway.store.base.Generations.bar`. It never waits."""
        return self._bars.add(what, at=at)

    async def refresh(self) -> None:
        """See :meth:`gateway.store.base.Generations.refresh`. No other process changes it."""

    def refuses(self, entry: Entry) -> bool:
        """Whether the entry was cleared or replaced after its flight began."""
        return self._bars.refuse(entry.meta, since_of(entry, self._tier))

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """See :meth:`gateway.store.base.Store.get`."""
        entry = self._entries.get(key)
        if entry is not None:
            self._order.touch(key, now=now)
            if self._shares and (share := self._shares.get(entry.meta.scope.tenant)) is not None:
                share.order.touch(key, now=now)
        return entry

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """See :meth:`gateway.store.base.Store.put`.

        An entry that is worth less than all that would have to go for it is not kept.
        """
        if self.refuses(entry):
            return Stored(kept=False, barred=True)
        meta, size = entry.meta, footprint(entry)
        share = self._shares.get(meta.scope.tenant)
        self._drop(meta.key)
        if size > self._entries.maxsize or (share is not None and size > share.maxsize):
            return Stored(kept=False)
        orders = [self._order] if share is None else [self._order, share.order]
        if entry.supersedes is not None:
            self.supersede(entry.supersedes)
        for order in orders:
            order.add(
                meta.key,
                priority=meta.priority,
                expires_at=last_use(meta),
                cost=meta.cost_s,
                size=size,
                now=now,
            )
        gone: list[Entry] = []
        kept = share is None or self._make_room(share.order, share, size, entry, gone, now=now)
        kept = kept and self._make_room(self._order, self._entries, size, entry, gone, now=now)
        if kept:
            # A copy is as large as it is charged: orjson's own result keeps a buffer of up to 8 times that.
            self._entries[meta.key] = Entry(meta, self.compact(entry.body))
            if share is not None:
                share.currsize += size
        return Stored(
            kept,
            evicted=[one.meta for one in gone if last_use(one.meta) <= now],
            sinking=[one for one in gone if last_use(one.meta) > now],
        )

    def supersede(self, key: bytes) -> None:
        """The entry will hardly be asked for again; one that is not there is nobody's."""
        entry = self._entries.get(key)
        if entry is not None:
            self._order.supersede(key)
            if (share := self._shares.get(entry.meta.scope.tenant)) is not None:
                share.order.supersede(key)

    def _make_room(
        self,
        order: EvictionOrder[bytes],
        space: "_Share | cachetools.Cache[bytes, Entry]",
        size: int,
        newcomer: Entry,
        gone: list[Entry],
        *,
        now: float,
    ) -> bool:
        """Take the least valuable out until ``size`` fits; False when that is the newcomer."""
        while space.currsize + size > space.maxsize:
            victim = order.pop(now=now)
            if victim is None or victim == newcomer.meta.key:
                self._forget(newcomer)
                return False
            gone.append(self._entries[victim])
            self._drop(victim)
            self._evictions += 1
        return True

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.remove`. For a single key it never waits."""
        gone: list[EntryMeta] = []
        async for keys in self._portions(selector):
            doomed = self._select(selector, keys)
            for meta in doomed:
                self._drop(meta.key)
            gone += doomed
        return gone

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.scan`."""
        found: list[EntryMeta] = []
        async for keys in self._portions(selector):
            last = found[-1].key if found and len(found) >= limit else None
            near = [
                key
                for key in keys
                if (after is None or key > after) and (last is None or key < last)
            ]
            found = nsmallest(limit, found + self._select(selector, near), key=lambda one: one.key)
        return found

    def compact(self, body: bytes) -> bytes:
        """A copy that holds no more than its bytes: a serializer's buffer is larger than its text."""
        return bytes(memoryview(body))

    def fill(self) -> Fill:
        """See :meth:`gateway.store.base.Store.fill`."""
        return Fill(
            tier=self._tier,
            store="memory",
            entries=len(self._entries),
            size_bytes=int(self._entries.currsize),
            max_bytes=int(self._entries.maxsize),
            evictions=self._evictions,
        )

    async def close(self) -> None:
        """See :meth:`gateway.store.base.Store.close`."""
        self._entries.clear()
        self._order = EvictionOrder()
        for share in self._shares.values():
            share.currsize, share.order = 0, EvictionOrder()

    async def _portions(self, selector: Selector) -> AsyncIterator[Sequence[bytes]]:
        """The keys to look at, with a turn of the loop between so many; some may go meanwhile."""
        keys = [*self._entries] if selector.key is None else [selector.key]
        for start in range(0, len(keys), PORTION):
            if start:
                await asyncio.sleep(0)
            yield keys[start : start + PORTION]

    def _select(self, selector: Selector, keys: Sequence[bytes]) -> list[EntryMeta]:
        found = (self._entries.get(key) for key in keys)
        return [entry.meta for entry in found if entry is not None and selector.matches(entry.meta)]

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._forget(entry)
            if (share := self._shares.get(entry.meta.scope.tenant)) is not None:
                share.currsize -= footprint(entry)

    def _forget(self, entry: Entry) -> None:
        self._order.discard(entry.meta.key)
        if (share := self._shares.get(entry.meta.scope.tenant)) is not None:
            share.order.discard(entry.meta.key)

    def __repr__(self) -> str:
        fill = self.fill()
        return (
            f"<MemoryStore {fill.tier}: {fill.entries} entries, "
            f"{fill.size_bytes}/{fill.max_bytes} bytes, {fill.evictions} evicted>"
        )


class _Share:
    """What one tenant may take, and takes."""

    def __init__(self, most: int) -> None:
        self.maxsize = most
        self.currsize = 0
        self.order: EvictionOrder[bytes] = EvictionOrder()


def footprint(entry: Entry) -> int:
    """Bytes that the entry is charged with."""
    return len(entry.body) + beside(entry.meta)


def beside(meta: EntryMeta) -> int:
    """Bytes of that which are not the body's."""
    names = (meta.cache_key, meta.batch_id, meta.user, meta.context, meta.scope.context, *meta.tags)
    return OVERHEAD_BYTES + sum(4 * len(name) for name in names if name)
