"""The generations of a tier on disk: see :mod:`gateway.store.bars`."""

import sqlite3
from typing import Final

from gateway.store.bars import MOST_BARS, any_means, packed
from gateway.store.base import Selector
from gateway.store.disk_database import DamagedError
from gateway.store.disk_rows import of_tier, raw
from policies.freshness import EntryMeta

BARS_SCHEMA: Final = """;;
CREATE TABLE IF NOT EXISTS TIER_bar(
  tenant BLOB NOT NULL, what BLOB NOT NULL, number INTEGER NOT NULL,
  PRIMARY KEY(tenant, what)) WITHOUT ROWID;;
CREATE INDEX IF NOT EXISTS TIER_bars ON TIER_bar(tenant, number);;
CREATE TABLE IF NOT EXISTS TIER_generation(number INTEGER NOT NULL);;
INSERT INTO TIER_generation SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)
  WHERE NOT EXISTS (SELECT 1 FROM TIER_generation);;
INSERT INTO TIER_bar SELECT X'', CAST('{}' AS BLOB), number FROM TIER_generation
  WHERE NOT EXISTS (SELECT 1 FROM TIER_bar)"""
"""Numbers start at the time, and all that is older is barred: a new file knows of no clearing."""


class DiskBars:
    """One tier's bars. Its methods want a connection, and those that write a transaction."""

    def __init__(self, tier: str) -> None:
        self._tier = tier

    def number(self, connection: sqlite3.Connection) -> int:
        """The generation of now. Raises: DamagedError."""
        row = connection.execute(self._sql("SELECT number FROM TIER_generation")).fetchone()
        if row is None or not isinstance(row[0], int):
            raise DamagedError("the generation is not a number")
        return row[0]

    def add(
        self, connection: sqlite3.Connection, what: Selector | None, *, at: int | None = None
    ) -> int:
        """See :meth:`gateway.store.base.Generations.bar`."""
        if at is None:
            connection.execute(self._sql("UPDATE TIER_generation SET number = number + 1"))
            at = self.number(connection)
        if what is not None:
            tenant = _owner(what.tenant)
            self._keep(connection, tenant, packed(what), at)
            self._trim(connection, tenant, packed(Selector(what.tenant)))
        return at

    def refuse(self, connection: sqlite3.Connection, meta: EntryMeta, since: int | None) -> bool:
        """Whether an entry of a flight that began at ``since`` comes too late."""
        if since is None:
            return False
        if since > self.number(connection):  # of a file that is no more
            return True
        bars = connection.execute(
            self._sql("SELECT what FROM TIER_bar WHERE tenant IN (?, X'') AND number > ?"),
            (_owner(meta.scope.tenant), since),
        )
        return any_means((what for (what,) in bars), meta)

    def _keep(self, connection: sqlite3.Connection, tenant: bytes, what: bytes, at: int) -> None:
        connection.execute(
            self._sql(
                "INSERT INTO TIER_bar VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
                " SET number = max(number, excluded.number)"
            ),
            (tenant, what, at),
        )

    def _trim(self, connection: sqlite3.Connection, tenant: bytes, everything: bytes) -> None:
        dropped = connection.execute(
            self._sql(
                "SELECT what, number FROM TIER_bar WHERE tenant = ? AND what != ?"
                " ORDER BY number DESC LIMIT -1 OFFSET ?"
            ),
            (tenant, everything, MOST_BARS),
        ).fetchall()
        for what, number in dropped:
            connection.execute(
                self._sql("DELETE FROM TIER_bar WHERE tenant = ? AND what = ?"), (tenant, what)
            )
            self._keep(connection, tenant, everything, number)

    def _sql(self, statement: str) -> str:
        return of_tier(statement, self._tier)

    def __repr__(self) -> str:
        return f"<DiskBars {self._tier}>"


def _owner(tenant: str | None) -> bytes:
    return b"" if tenant is None else b"t" + raw(tenant)
