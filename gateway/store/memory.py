"""Entries in the memory of this process, bounded in bytes.

``cachetools.Cache`` keeps the sizes, ``policies.eviction`` says who goes first: expired
entries, then low priority before medium before high, then what is cheap to recompute for its
size and rarely used.
"""

from collections.abc import Sequence
from typing import Final

import cachetools

from gateway.store.base import Entry, Fill, Selector, Stored
from policies.eviction import EvictionOrder
from policies.freshness import EntryMeta

OVERHEAD_BYTES: Final = 1200
"""What an entry takes beside its body: its meta data, keys and two index slots (measured)."""


class MemoryStore:
    """One tier in memory. Not thread-safe: it belongs to one event loop."""

    def __init__(self, tier: str, *, max_bytes: int) -> None:
        self._tier = tier
        self._entries: cachetools.Cache[bytes, Entry] = cachetools.Cache(
            max_bytes, getsizeof=footprint
        )
        self._order: EvictionOrder[bytes] = EvictionOrder()
        self._evictions = 0

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """See :meth:`gateway.store.base.Store.get`."""
        entry = self._entries.get(key)
        if entry is not None:
            self._order.touch(key, now=now)
        return entry

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """See :meth:`gateway.store.base.Store.put`.

        An entry that is worth less than all that would have to go for it is not kept.
        """
        meta, size = entry.meta, footprint(entry)
        self._drop(meta.key)
        if size > self._entries.maxsize:
            return Stored(kept=False)
        self._order.add(
            meta.key,
            priority=meta.priority,
            expires_at=meta.stored_at
            + meta.ttl_s
            + max(meta.stale_while_revalidate_s, meta.stale_if_error_s),
            cost=meta.cost_s,
            size=size,
            now=now,
        )
        evicted: list[EntryMeta] = []
        while self._entries.currsize + size > self._entries.maxsize:
            victim = self._order.pop(now=now)
            if victim == meta.key or victim is None:
                return Stored(kept=False, evicted=evicted)
            evicted.append(self._entries.pop(victim).meta)
            self._evictions += 1
        self._entries[meta.key] = entry
        return Stored(kept=True, evicted=evicted)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.remove`."""
        doomed = self._select(selector)
        for meta in doomed:
            self._drop(meta.key)
        return doomed

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.scan`."""
        found = [meta for meta in self._select(selector) if after is None or meta.key > after]
        return sorted(found, key=lambda meta: meta.key)[:limit]

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

    def _select(self, selector: Selector) -> list[EntryMeta]:
        if selector.key is not None:
            entry = self._entries.get(selector.key)
            return [entry.meta] if entry is not None and selector.matches(entry.meta) else []
        return [entry.meta for entry in self._entries.values() if selector.matches(entry.meta)]

    def _drop(self, key: bytes) -> None:
        if self._entries.pop(key, None) is not None:
            self._order.discard(key)

    def __repr__(self) -> str:
        fill = self.fill()
        return (
            f"<MemoryStore {fill.tier}: {fill.entries} entries, "
            f"{fill.size_bytes}/{fill.max_bytes} bytes, {fill.evictions} evicted>"
        )


def footprint(entry: Entry) -> int:
    """Bytes that the entry is charged with."""
    meta = entry.meta
    names = (meta.cache_key, meta.batch_id, meta.user, meta.context, meta.scope.context, *meta.tags)
    return len(entry.body) + OVERHEAD_BYTES + sum(4 * len(name) for name in names if name)
