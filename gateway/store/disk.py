"""Entries on disk: bounded in bytes, shared by processes, safe against every way to be stopped.

Read ``disk_database`` for threads, locks and damage, ``disk_shelf`` for the tables. This is the
store's face: it counts uses in memory, so that a hit writes nothing, and hands them over with the
next write or once a second.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from gateway.store.base import Entry, Fill, Selector, Stored, StoreError
from gateway.store.disk_database import Database, synchronous, transaction
from gateway.store.disk_rows import number_of
from gateway.store.disk_shelf import START, Place, Shelf, Totals
from policies.freshness import EntryMeta
from policies.rules import TierName

FLUSH_S: Final = 1.0
"""How often uses are written down, at most; those of the last moment are lost in a crash."""
STEP_S: Final = 10.0
"""How long one step of a removal may take; other processes may hold the file for half of it."""
MOST_USED: Final = 1024
"""Entries whose uses are remembered between two writes; further ones are not counted."""


def open_database(folder: Path, name: str = "responses") -> Database:
    """The database ``name`` in ``folder``; both are made when they are first needed."""
    return Database(folder, name)


def default_folder(environment: Mapping[str, str], *, platform: str = sys.platform) -> Path:
    """Where answers lie when the configuration names no folder: in the user's cache folder."""
    if own := environment.get("KVGATE_CACHE_DIR"):
        return Path(own).expanduser() / "responses"
    if platform == "win32" and (local := environment.get("LOCALAPPDATA")):
        return Path(local) / "kvgate" / "Cache" / "responses"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kvgate" / "responses"
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "kvgate" / "responses"


class DiskStore:
    """One tier in a database. Several tiers, and several processes, may share the database."""

    def __init__(
        self,
        tier: TierName,
        database: Database,
        *,
        max_bytes: int,
        shares: Mapping[str, int] | None = None,
    ) -> None:
        """``shares``: the most bytes of it that a tenant's entries may take, by tenant."""
        self._shelf = Shelf(tier, max_bytes, shares)
        self._database = database
        database.expects(self._shelf.schema())
        self._used: dict[int, tuple[int, float]] = {}
        self._flushed_at = 0.0
        self._evictions = 0
        self._totals = Totals(0, 0)
        self.number = 0
        """See :attr:`gateway.store.base.Generations.number`."""

    async def bar(self, what: Selector | None, *, at: int | None = None) -> int:
        """See :meth:`gateway.store.base.Generations.bar`."""
        number = await self._database.write(lambda one: self._shelf.bars.add(one, what, at=at))
        if at is None:
            self.number = number
        return number

    async def refresh(self) -> None:
        """See :meth:`gateway.store.base.Generations.refresh`."""
        self.number, self._totals = await self._database.read(
            lambda one: (self._shelf.bars.number(one), self._shelf.totals(one))
        )

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """See :meth:`gateway.store.base.Store.get`."""
        self.number, entry = await self._database.read(
            lambda one: (self._shelf.bars.number(one), self._shelf.find(one, key))
        )
        if entry is not None:
            self._count_use(number_of(key), now)
        return entry

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """See :meth:`gateway.store.base.Store.put`."""
        used, self._used = self._used, {}

        def job(connection: Connection) -> tuple[Stored, Totals]:
            stored = self._shelf.put(connection, entry, used, now=now)
            return stored, self._shelf.totals(connection)

        stored, self._totals = await self._database.write(job)
        self._evictions += len(stored.gone)
        return stored

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.remove`.

        Many entries go in many short steps, so that others, here and in other processes, can write
        meanwhile. What went before a failure stays gone.
        """
        key = selector.key
        if key is not None and not await self._database.read(
            lambda connection: self._shelf.holds(connection, key)
        ):
            return []

        gone: list[EntryMeta] = []
        place: Place | None = START
        while place is not None:
            some, place = await self._remove_some(selector, place)
            gone += some
        return gone

    async def _remove_some(
        self, selector: Selector, after: Place
    ) -> tuple[list[EntryMeta], Place | None]:
        """One step of a removal: what went, and where to go on."""

        def job(connection: Connection) -> tuple[list[EntryMeta], Place | None, Totals]:
            with synchronous(connection, full=selector.key is None), transaction(connection):
                some, go_on = self._shelf.remove(connection, selector, after)
                return some, go_on, self._shelf.totals(connection)

        try:
            async with asyncio.timeout(STEP_S):
                some, go_on, self._totals = await self._database.work(job)
        except TimeoutError:
            raise StoreError(f"a removal got no further within {STEP_S:.0f} s") from None
        return some, go_on

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.scan`."""
        return await self._database.read(
            lambda connection: self._shelf.scan(connection, selector, after, limit)
        )

    def fill(self) -> Fill:
        """See :meth:`gateway.store.base.Store.fill`."""
        return Fill(
            tier=self._shelf.tier,
            store="disk",
            entries=self._totals.entries,
            size_bytes=self._totals.size_bytes,
            max_bytes=self._shelf.max_bytes,
            evictions=self._evictions,
        )

    async def close(self) -> None:
        """Write down the last uses. The database may serve other tiers: its owner closes it."""
        used, self._used = self._used, {}
        if used:
            with suppress(StoreError):
                await self._database.write(lambda one: self._shelf.touch(one, used))

    def _count_use(self, number: int, now: float) -> None:
        uses, used_at = self._used.get(number, (0, now))
        if uses or len(self._used) < MOST_USED:
            self._used[number] = (uses + 1, max(used_at, now))
        if not 0 <= now - self._flushed_at < FLUSH_S:
            self._flushed_at = now
            used, self._used = self._used, {}
            with suppress(StoreError):
                self._database.write_soon(lambda connection: self._shelf.touch(connection, used))

    def __repr__(self) -> str:
        fill = self.fill()
        return (
            f"<DiskStore {fill.tier}: {fill.entries} entries, "
            f"{fill.size_bytes}/{fill.max_bytes} bytes, {fill.evictions} evicted>"
        )
