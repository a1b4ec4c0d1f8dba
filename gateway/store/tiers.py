"""The tiers as one place: an entry lies in the tier that its plan named.

A lookup asks hot, warm, cold in this order. Storing an answer anew removes the older one of
the same key from the other tiers, so that a key never has two answers.
"""

from collections.abc import Mapping, Sequence

from gateway.store.base import Entry, Fill, Selector, Store, Stored
from policies.directive import TierName
from policies.freshness import EntryMeta


class Tiers:
    """All tiers of one gateway."""

    def __init__(self, stores: Mapping[TierName, Store]) -> None:
        self._stores = stores

    async def get(self, key: bytes, *, now: float, likely: TierName | None = None) -> Entry | None:
        """The entry from the tier that has it; ``likely`` is asked first. Raises: StoreError."""
        entry = await self._stores[likely].get(key, now=now) if likely is not None else None
        if entry is not None:
            return entry
        for tier, store in self._stores.items():
            if tier != likely and (entry := await store.get(key, now=now)) is not None:
                return entry
        return None

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """Keep the entry in its own tier and nowhere else. Raises: StoreError."""
        same_key = Selector(tenant=None, key=entry.meta.key)
        for tier, store in self._stores.items():
            if tier != entry.meta.tier:
                await store.remove(same_key)
        return await self._stores[entry.meta.tier].put(entry, now=now)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant from every tier. Raises: StoreError."""
        gone: list[EntryMeta] = []
        for store in self._stores.values():
            gone.extend(await store.remove(selector))
        return gone

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """Up to ``limit`` entries of all tiers in the order of their keys. Raises: StoreError."""
        found: list[EntryMeta] = []
        for store in self._stores.values():
            found.extend(await store.scan(selector, after=after, limit=limit))
        return sorted(found, key=lambda meta: meta.key)[:limit]

    def fills(self) -> Sequence[Fill]:
        """How full each tier is."""
        return [store.fill() for store in self._stores.values()]

    async def close(self) -> None:
        """Close every tier."""
        for store in self._stores.values():
            await store.close()

    def __repr__(self) -> str:
        return f"<Tiers {', '.join(repr(store) for store in self._stores.values())}>"
