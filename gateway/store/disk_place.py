"""Everything that a gateway keeps in one folder, each file behind a guard of its own.

Entries and what processes share beside them are two files: who waits for a lease does not wait
for somebody's large answer, and damage to the one costs nothing of the other.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.disk import DiskStore, open_database
from gateway.store.disk_database import Database
from gateway.store.guarded import Guard, Guarded, GuardedLeases, GuardedRecords
from gateway.store.sharing_disk import DiskLeases, DiskRecords
from policies.rules import TierName

TOKEN_BYTES: Final = 12
SHORTEST_LIMIT_S: Final = 1.0
"""For records: each is safe on the disk before it is answered, which old disks take time for."""


class DiskPlace:
    """The two databases, and what lies in them. :meth:`close` closes the files."""

    def __init__(
        self,
        folder: Path,
        *,
        limit_s: float,
        now: Callable[[], float],
        clock: Callable[[], float],
        draw: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        """``now`` is unix time, ``clock`` monotonic; ``tasks`` are those that end by themselves."""

        def guard(database: Database, name: str, limit_s: float) -> Guard:
            async def probe() -> None:
                await database.read(_nothing)

            return Guard(name, probe, limit_s=limit_s, clock=clock, draw=draw, tasks=tasks)

        self._entries = open_database(folder, "responses")
        self._shared = open_database(folder, "shared")
        self._guard = guard(self._entries, "disk", limit_s)
        leases = guard(self._shared, "leases on disk", limit_s)
        records = guard(self._shared, "records on disk", max(limit_s, SHORTEST_LIMIT_S))
        self._guards = (self._guard, leases, records)
        self.leases = GuardedLeases(
            DiskLeases(self._shared, holder=secrets.token_hex(TOKEN_BYTES), now=now), leases
        )
        self.records = GuardedRecords(DiskRecords(self._shared), records)

    def tier(self, name: TierName, *, max_bytes: int, shares: Mapping[str, int]) -> Guarded:
        """The store of one tier. All are asked for before :meth:`open`."""
        store = DiskStore(name, self._entries, max_bytes=max_bytes, shares=shares)
        return Guarded(store, self._guard)

    async def open(self) -> None:
        """Make what is missing, so that no request waits for it. A failure shows in :attr:`ailing`."""
        for database in (self._entries, self._shared):
            with suppress(StoreError):
                await database.write(_nothing)
        for guard in self._guards:
            await guard.check()

    @property
    def ailing(self) -> Mapping[str, str | None]:
        """Of each place whether it works (None), or why not."""
        return {guard.place: guard.ailing for guard in self._guards}

    async def close(self) -> None:
        """Finish what was begun and close the files."""
        await self._entries.close()
        await self._shared.close()

    def __repr__(self) -> str:
        return f"<DiskPlace {self._entries!r}: {self._guard}>"


def _nothing(connection: Connection) -> None:
    connection.execute("SELECT 1").fetchall()
