"""The tiers as one place: entries sink when room is short and rise when they are read often.

An entry starts in the tier that its plan named. What a full tier has to let go sinks into the next
one below, for what is left of its time; what is read from below several times is taken up one tier.
A memory tier is asked before the others, for it answers at once. Storing an answer anew removes
older ones from every tier, so that a key never has two answers; a copy that rose out of a tier on
disk or in Redis leaves its twin there, as other processes read that. Where several processes share a
tier below a memory tier, what goes into memory is written through to it.

An entry on its way is in no tier for a moment, where a removal would miss it: a move knows what is
removed meanwhile, and drops again what it should not have carried. What other processes remove
meanwhile is barred (:mod:`gateway.store.bars`): every tier is barred before the first is emptied.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import cachetools

from gateway.flights import Tasks
from gateway.store.bars import key_bar
from gateway.store.base import Entry, Fill, Selector, Since, Store, Stored, StoreError
from gateway.store.memory import MemoryStore
from policies.freshness import EntryMeta
from policies.rules import TierName

READS_TO_RISE: Final = 3
"""Reads from one tier after which an entry is taken up to the next."""
READS_REMEMBERED: Final = 65_536
ORDER: Final[tuple[TierName, ...]] = ("hot", "warm", "cold")


class Tiers:
    """All tiers of one gateway. ``stores`` may leave tiers out.

    ``several`` processes read the tiers that are not in memory. With ``tasks`` no reader waits for
    an entry that rises, and for those that make room for it.
    """

    def __init__(
        self,
        stores: Mapping[TierName, Store],
        *,
        several: bool = False,
        tasks: Tasks | None = None,
    ) -> None:
        self._tasks = tasks
        self._several = several
        self._stores = {tier: stores[tier] for tier in ORDER if tier in stores}
        self._in_memory = {
            tier for tier, store in self._stores.items() if store.fill().store == "memory"
        }
        self._asked: Mapping[TierName | None, tuple[TierName, ...]] = {
            likely: tuple(
                sorted(self._stores, key=lambda tier: (tier not in self._in_memory, tier != likely))
            )
            for likely in (None, *self._stores)
        }
        self._reads: cachetools.LRUCache[bytes, int] = cachetools.LRUCache(READS_REMEMBERED)
        self._removing: list[Selector] = []
        self._moves: set[_Move] = set()
        self._drawing: asyncio.Future[Since] | None = None

    def since(self) -> Since:
        """The generations of now, for a flight that begins."""
        return Since({tier: store.number for tier, store in self._stores.items()})

    async def draw(self) -> Since:
        """Generations of its own, for a flight that is to replace what is there.

        Flights that begin in the same turn of the loop share them. A store that fails gives none.
        """
        if self._drawing is not None:
            return await asyncio.shield(self._drawing)
        drawing: asyncio.Future[Since] = asyncio.get_running_loop().create_future()
        self._drawing = drawing
        drawn: dict[str, int] = {}
        try:
            await asyncio.sleep(0)
            self._drawing = None  # who comes from now on may begin after what is drawn here
            for tier, store in self._stores.items():
                with suppress(StoreError):
                    drawn[tier] = await store.bar(None)
        finally:
            if self._drawing is drawing:
                self._drawing = None
            drawing.set_result(Since({**self.since().numbers, **drawn}, replaces=True))
        return drawing.result()

    async def get(self, key: bytes, *, now: float, likely: TierName | None = None) -> Entry | None:
        """The entry from the tier that has it; ``likely`` is asked first. Raises: StoreError.

        A tier that fails is passed over while another has the entry. What is past its time in our
        memory another process may have computed anew: then the newest one counts.
        """
        failed: StoreError | None = None
        old: Entry | None = None
        for tier in self._asked.get(likely, self._asked[None]):
            try:
                entry = await self._stores[tier].get(key, now=now)
            except StoreError as error:
                failed = error
                continue
            if entry is not None and old is None and self._may_be_replaced(entry, tier, now=now):
                old = entry
            elif entry is not None and (old is None or entry.meta.stored_at > old.meta.stored_at):
                if tier != "hot":
                    await self._read_below(key, tier, now=now)
                return entry
        if old is None and failed is not None:
            raise failed
        return old

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """Keep the entry in its own tier, or below it. Raises: StoreError."""
        home, same_key = entry.meta.tier, Selector(tenant=None, key=entry.meta.key)
        if entry.since is not None and entry.since.replaces:
            await self._bar(key_bar(entry.meta), at=entry.since.numbers)
        if any(
            isinstance(one, MemoryStore) and one.refuses(entry) for one in self._stores.values()
        ):
            return Stored(kept=False, barred=True)
        for tier in self._in_memory - {home}:
            await self._stores[tier].remove(same_key)
        self._reads.pop(entry.meta.key, None)
        self._supersede(entry, home)
        self._note(same_key)
        with self._moving() as move:
            landed = await self._sink(entry, home, move, now=now)
            holds = {landed.tier}
            shared = [name for name in self._from(home) if name not in self._in_memory]
            if self._several and home in self._in_memory and shared:
                below = await self._sunk(entry, shared[0], move, now=now)
                holds.add(below.tier)
                if below.stored.barred and landed.tier is not None:
                    await self._stores[landed.tier].remove(same_key)
                    return below.stored
            if landed.stored.barred:
                return landed.stored
        # Last, for memory is asked first: the next reader need not wait for a slow tier's removal.
        for tier, store in self._stores.items():
            if tier not in self._in_memory and tier not in holds:
                with suppress(StoreError):  # a tier that is down must not cost the others the entry
                    await store.remove(same_key)
        return landed.stored

    def _supersede(self, entry: Entry, home: TierName) -> None:
        """Tell the memory tiers beside ``home``, which is told with the entry: what it is may have risen."""
        if entry.supersedes is not None:
            for tier in self._in_memory - {home}:
                store = self._stores[tier]
                if isinstance(store, MemoryStore):
                    store.supersede(entry.supersedes)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant from every tier; each key once. Raises: StoreError, after trying all."""
        gone: dict[bytes, EntryMeta] = {}
        with self._removal(selector):
            failed = await self._bar(selector)
            for store in self._stores.values():
                try:
                    gone |= {meta.key: meta for meta in await store.remove(selector)}
                except StoreError as error:
                    failed = error
        if failed is not None:
            raise failed
        return list(gone.values())

    async def drop(self, key: bytes) -> None:
        """Drop an entry that is of no use any more, wherever it is; it bars nothing."""
        for store in self._stores.values():
            with suppress(StoreError):
                await store.remove(Selector(None, key=key))

    async def forget(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant from this process's memory: another has dropped it from the rest."""
        gone: dict[bytes, EntryMeta] = {}
        with self._removal(selector):
            for tier in self._in_memory:
                await self._stores[tier].bar(selector)
                gone |= {meta.key: meta for meta in await self._stores[tier].remove(selector)}
        return list(gone.values())

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """Up to ``limit`` entries of all tiers in the order of their keys. Raises: StoreError."""
        found: dict[bytes, EntryMeta] = {}
        for store in self._stores.values():
            for meta in await store.scan(selector, after=after, limit=limit):
                found.setdefault(meta.key, meta)
        return [found[key] for key in sorted(found)[:limit]]

    async def refresh(self) -> None:
        """Learn what other processes changed; a tier that fails says what it knew."""
        for store in self._stores.values():
            with suppress(StoreError):
                await store.refresh()

    async def names_answers(self, tenant: str, name: str) -> bool:
        """Whether an entry that lies under no shared context has this ``cache_key``. Raises: StoreError."""
        after: bytes | None = None
        while page := await self.scan(Selector(tenant, cache_key=name), after=after, limit=100):
            if any(meta.scope.kind != "shared" for meta in page):
                return True
            after = page[-1].key
        return False

    def fills(self) -> Sequence[Fill]:
        """How full each tier is."""
        return [store.fill() for store in self._stores.values()]

    async def close(self) -> None:
        """Close every tier."""
        for store in self._stores.values():
            await store.close()

    def _may_be_replaced(self, entry: Entry, tier: TierName, *, now: float) -> bool:
        past = entry.meta.stored_at + entry.meta.ttl_s <= now
        return past and self._several and tier in self._in_memory

    async def _bar(
        self, selector: Selector, *, at: Mapping[str, int] | None = None
    ) -> StoreError | None:
        """Bar older writes from every tier; the failure of one that could not be reached."""
        failed: StoreError | None = None
        for tier, store in self._stores.items():
            try:
                await store.bar(selector, at=None if at is None else at[tier])
            except StoreError as error:
                failed = error
        return failed

    @contextmanager
    def _removal(self, selector: Selector) -> Iterator[None]:
        self._removing.append(selector)
        self._note(selector)
        try:
            yield
        finally:
            self._removing.remove(selector)

    @contextmanager
    def _moving(self) -> Iterator["_Move"]:
        """To be entered before entries are taken from where they are."""
        move = _Move([*self._removing], self.since())
        self._moves.add(move)
        try:
            yield move
        finally:
            self._moves.discard(move)

    def _note(self, removed: Selector) -> None:
        for move in self._moves:
            move.removed.append(removed)

    async def _sink(self, entry: Entry, tier: TierName, move: "_Move", *, now: float) -> "_Landed":
        """Keep ``entry`` in ``tier`` or the first one below that takes it; others sink for it."""
        evicted: list[EntryMeta] = []
        for lower in self._from(tier):
            stored = await self._stores[lower].put(_in_tier(entry, lower), now=now)
            evicted += stored.evicted
            below = self._below(lower)
            for sinking in stored.sinking:
                carried = replace(sinking, since=move.since)
                sunk = await self._sunk(carried, below, move, now=now)
                evicted += sunk.stored.evicted
                if sunk.tier is None:
                    evicted.append(sinking.meta)
            if stored.kept or stored.barred:
                done = Stored(stored.kept, evicted=evicted, barred=stored.barred)
                return _Landed(done, lower if stored.kept else None)
        return _Landed(Stored(kept=False, evicted=evicted), None)

    async def _sunk(
        self, entry: Entry, tier: TierName | None, move: "_Move", *, now: float
    ) -> "_Landed":
        """Keep what is on its way to ``tier``, if there is one, it works, and nobody removed it."""
        if tier is None or move.missed(entry.meta):
            return _NOWHERE
        try:
            landed = await self._sink(entry, tier, move, now=now)
            if landed.tier is not None and move.missed(entry.meta, landed.tier):
                same_key = Selector(tenant=None, key=entry.meta.key)
                await self._stores[landed.tier].remove(same_key)
                return _Landed(replace(landed.stored, kept=False), None)
        except StoreError:
            return _NOWHERE
        return landed

    async def _read_below(self, key: bytes, tier: TierName, *, now: float) -> None:
        """Count a read from a lower tier; the last one that is needed takes the entry up."""
        reads = self._reads[key] = self._reads.get(key, 0) + 1
        above = self._above(tier)
        if reads < READS_TO_RISE or above is None:
            return
        self._reads.pop(key, None)
        rising = self._rise(key, tier, above, now=now)
        if self._tasks is None:
            await rising
        else:
            self._tasks.start(rising, name="an entry rises")

    async def _rise(self, key: bytes, tier: TierName, above: TierName, *, now: float) -> None:
        with self._moving() as move, suppress(StoreError):  # it was only for the next reader
            # Read again: what the reader had may have been removed or replaced since.
            entry = await self._stores[tier].get(key, now=now)
            if entry is None:
                return
            if tier in self._in_memory:
                await self._stores[tier].remove(Selector(tenant=None, key=key))
            await self._sunk(replace(entry, since=move.since), above, move, now=now)

    def _from(self, tier: TierName) -> Sequence[TierName]:
        return [name for name in self._stores if ORDER.index(name) >= ORDER.index(tier)]

    def _below(self, tier: TierName) -> TierName | None:
        return next(iter(self._from(tier)[1:]), None)

    def _above(self, tier: TierName) -> TierName | None:
        higher = [name for name in self._stores if ORDER.index(name) < ORDER.index(tier)]
        return higher[-1] if higher else None

    def __repr__(self) -> str:
        return f"<Tiers {', '.join(repr(store) for store in self._stores.values())}>"


@dataclass(frozen=True, slots=True, eq=False)
class _Move:
    """Entries on their way between tiers, and what is removed until they have arrived."""

    removed: list[Selector]
    since: Since

    def missed(self, meta: EntryMeta, arrived: TierName | None = None) -> bool:
        """Whether the entry was removed, from the tier it left or the one it arrived in."""
        if not self.removed:
            return False
        metas = [meta] if arrived is None else [meta, replace(meta, tier=arrived)]
        return any(removed.matches(one) for removed in self.removed for one in metas)


class _Landed(NamedTuple):
    """What a put did, and the tier that holds the entry now."""

    stored: Stored
    tier: TierName | None


_NOWHERE: Final = _Landed(Stored(kept=False), None)


def _in_tier(entry: Entry, tier: TierName) -> Entry:
    if entry.meta.tier == tier:
        return entry
    return replace(entry, meta=replace(entry.meta, tier=tier), supersedes=None)
