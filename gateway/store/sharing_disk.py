"""Leases and records in a SQLite file, for the processes of one machine."""

from collections.abc import Callable, Mapping
from sqlite3 import Connection
from typing import Final

from gateway.store.disk_database import Database
from gateway.store.disk_rows import raw

LEASES_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS lease(
  key BLOB PRIMARY KEY, holder BLOB NOT NULL, until REAL NOT NULL, ttl_s REAL NOT NULL)
  WITHOUT ROWID"""
RECORDS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record(
  kind BLOB NOT NULL, tenant BLOB NOT NULL, name BLOB NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY(kind, tenant, name)) WITHOUT ROWID;;
CREATE TABLE IF NOT EXISTS counter(
  kind BLOB NOT NULL, tenant BLOB NOT NULL, name BLOB NOT NULL, counter BLOB NOT NULL,
  amount REAL NOT NULL, PRIMARY KEY(kind, tenant, name, counter)) WITHOUT ROWID"""
ENDED: Final = "(until <= :now OR until - ttl_s > :now + 1.0)"
"""Also what seems to be taken in the future: the clock was set back, and its holder may be dead."""


class DiskLeases:
    """Leases by the wall clock of the machine."""

    def __init__(self, database: Database, *, holder: str, now: Callable[[], float]) -> None:
        """``holder`` names this process; no other process, before or after, has the same."""
        self._database = database
        self._holder = raw(holder)
        self._now = now
        database.expects(LEASES_SCHEMA)

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        """See :meth:`gateway.store.sharing.Leases.take`."""
        values = {
            "key": key,
            "holder": self._holder,
            "now": self._now(),
            "ttl_s": ttl_s,
        }

        def job(connection: Connection) -> bool:
            connection.execute(f"DELETE FROM lease WHERE {ENDED}", values)  # noqa: S608 - a constant
            taken = connection.execute(
                "INSERT INTO lease VALUES (:key, :holder, :now + :ttl_s, :ttl_s) ON CONFLICT(key)"
                " DO UPDATE SET until = excluded.until, ttl_s = excluded.ttl_s"
                " WHERE holder = excluded.holder",
                values,
            )
            return taken.rowcount > 0

        return await self._database.write(job)

    async def release(self, key: bytes) -> None:
        """See :meth:`gateway.store.sharing.Leases.release`."""
        await self._database.write(
            lambda connection: (
                connection.execute(
                    "DELETE FROM lease WHERE key = ? AND holder = ?", (key, self._holder)
                ).rowcount
            )
        )

    async def held(self, key: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Leases.held`."""
        values = {"key": key, "now": self._now()}
        statement = f"SELECT 1 FROM lease WHERE key = :key AND NOT {ENDED}"  # noqa: S608 - a constant
        return await self._database.read(
            lambda connection: connection.execute(statement, values).fetchone() is not None
        )

    def __repr__(self) -> str:
        return f"<DiskLeases in {self._database!r}>"


class DiskRecords:
    """Documents that outlive the processes, and once written also a crash of the system."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.expects(RECORDS_SCHEMA)

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        """See :meth:`gateway.store.sharing.Records.read`."""
        place = _place(kind, tenant, name)

        def job(connection: Connection) -> bytes | None:
            row = connection.execute(
                "SELECT data FROM record WHERE kind = ? AND tenant = ? AND name = ?", place
            ).fetchone()
            return bytes(row[0]) if row is not None else None

        return await self._database.read(job)

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        """See :meth:`gateway.store.sharing.Records.write`."""
        values = (*_place(kind, tenant, name), data)
        await self._database.write(
            lambda connection: (
                connection.execute(
                    "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", values
                ).rowcount
            ),
            durable=True,
        )

    async def create(self, kind: str, tenant: str, name: str, data: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Records.create`."""
        values = (*_place(kind, tenant, name), data)
        created = await self._database.write(
            lambda connection: (
                connection.execute(
                    "INSERT OR IGNORE INTO record VALUES (?, ?, ?, ?)", values
                ).rowcount
            ),
            durable=True,
        )
        return created > 0

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        """See :meth:`gateway.store.sharing.Records.erase`."""
        place = _place(kind, tenant, name)

        def job(connection: Connection) -> bool:
            connection.execute(
                "DELETE FROM counter WHERE kind = ? AND tenant = ? AND name = ?", place
            )
            gone = connection.execute(
                "DELETE FROM record WHERE kind = ? AND tenant = ? AND name = ?", place
            )
            return gone.rowcount > 0

        return await self._database.write(job, durable=True)

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        """See :meth:`gateway.store.sharing.Records.names`."""
        values = {"kind": raw(kind), "tenant": None if tenant is None else raw(tenant)}
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT tenant, name FROM record WHERE kind = :kind"
                " AND (:tenant IS NULL OR tenant = :tenant) ORDER BY tenant, name",
                values,
            ).fetchall()
        )
        return [(_text(owner), _text(name)) for owner, name in rows]

    async def count(
        self, kind: str, tenant: str, name: str, amounts: Mapping[str, float]
    ) -> Mapping[str, float]:
        """See :meth:`gateway.store.sharing.Records.count`."""
        place = _place(kind, tenant, name)

        def read(connection: Connection) -> Mapping[str, float]:
            rows = connection.execute(
                "SELECT counter, amount FROM counter WHERE kind = ? AND tenant = ? AND name = ?",
                place,
            )
            return {_text(counter): float(amount) for counter, amount in rows}

        def add(connection: Connection) -> Mapping[str, float]:
            connection.executemany(
                "INSERT INTO counter VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE"
                " SET amount = amount + excluded.amount",
                [(*place, raw(counter), amount) for counter, amount in amounts.items()],
            )
            return read(connection)

        return await (self._database.write(add) if amounts else self._database.read(read))

    def __repr__(self) -> str:
        return f"<DiskRecords in {self._database!r}>"


def _place(kind: str, tenant: str, name: str) -> tuple[bytes, bytes, bytes]:
    return raw(kind), raw(tenant), raw(name)


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")
