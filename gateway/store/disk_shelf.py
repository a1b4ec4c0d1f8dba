"""The tables of one tier, and every statement about them. No threads, no waiting, no clock.

An entry's number is the beginning of its key, so that the order of numbers is the order of keys
and a read is one descent of one tree. Three tables hold an entry:

- ``answer``: head and body as ``gateway.store.codec`` made them; all that a read needs;
- ``standing``: what ``policies.eviction`` weighs, small, because a use rewrites it;
- ``label``: the names by which it can be selected.

``total`` and ``tenant`` are kept by triggers. Whatever an index says, an entry is taken for what
its head says: the head is checksummed, an index is not.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.store.bars import since_of
from gateway.store.base import Entry, Selector, Stored
from gateway.store.codec import CodecError, decode, decode_meta, encode_head
from gateway.store.disk_bars import BARS_SCHEMA, DiskBars
from gateway.store.disk_database import DamagedError
from gateway.store.disk_rows import charge, ends_at, labels, number_of, of_tier, raw, span_of
from policies.eviction import Priority
from policies.freshness import EntryMeta
from policies.rules import TierName

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS TIER_answer(
  id INTEGER PRIMARY KEY, head BLOB NOT NULL, body BLOB NOT NULL);;
CREATE TABLE IF NOT EXISTS TIER_standing(
  id INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, rank INTEGER NOT NULL,
  expires_at REAL NOT NULL, value REAL NOT NULL, used_at REAL NOT NULL, seq INTEGER NOT NULL,
  uses INTEGER NOT NULL, worth REAL NOT NULL, bytes INTEGER NOT NULL);;
CREATE INDEX IF NOT EXISTS TIER_victims ON TIER_standing(rank, value, used_at, seq);;
CREATE INDEX IF NOT EXISTS TIER_expiry ON TIER_standing(expires_at, seq, tenant);;
CREATE TABLE IF NOT EXISTS TIER_label(
  label BLOB NOT NULL, id INTEGER NOT NULL, PRIMARY KEY(label, id)) WITHOUT ROWID;;
CREATE INDEX IF NOT EXISTS TIER_labelled ON TIER_label(id);;
CREATE TABLE IF NOT EXISTS TIER_tenant(
  id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, bytes INTEGER NOT NULL);;
CREATE TABLE IF NOT EXISTS TIER_total(
  entries INTEGER NOT NULL, bytes INTEGER NOT NULL, seq INTEGER NOT NULL,
  floor0 REAL NOT NULL, floor1 REAL NOT NULL, floor2 REAL NOT NULL);;
INSERT INTO TIER_total SELECT 0, 0, 0, 0.0, 0.0, 0.0
  WHERE NOT EXISTS (SELECT 1 FROM TIER_total);;
CREATE TRIGGER IF NOT EXISTS TIER_comes AFTER INSERT ON TIER_standing BEGIN
  UPDATE TIER_total SET entries = entries + 1, bytes = bytes + new.bytes, seq = new.seq;
  UPDATE TIER_tenant SET bytes = bytes + new.bytes WHERE id = new.tenant;
END;;
CREATE TRIGGER IF NOT EXISTS TIER_goes AFTER DELETE ON TIER_standing BEGIN
  UPDATE TIER_total SET entries = entries - 1, bytes = bytes - old.bytes;
  UPDATE TIER_tenant SET bytes = bytes - old.bytes WHERE id = old.tenant;
  DELETE FROM TIER_answer WHERE id = old.id;
  DELETE FROM TIER_label WHERE id = old.id;
END"""
SHARES_SCHEMA: Final = """;;
CREATE INDEX IF NOT EXISTS TIER_owners ON TIER_standing(tenant, rank, value, used_at, seq)"""
"""Only for who limits tenants: it costs each write a page."""

EXPIRED: Final = (
    "SELECT id FROM TIER_standing WHERE expires_at <= :now ORDER BY expires_at, seq LIMIT 1"
)
EXPIRED_OF_TENANT: Final = (
    "SELECT id FROM (SELECT id, tenant FROM TIER_standing WHERE expires_at <= :now"
    " ORDER BY expires_at, seq LIMIT :late) WHERE tenant = :tenant LIMIT 1"
)
CHEAPEST: Final = "SELECT id FROM TIER_standing ORDER BY rank, value, used_at, seq LIMIT 1"
CHEAPEST_OF_TENANT: Final = (
    "SELECT id FROM TIER_standing WHERE tenant = :tenant ORDER BY rank, value, used_at, seq LIMIT 1"
)
SUPERSEDE: Final = (
    "UPDATE TIER_standing SET worth = 0.0, seq = total.seq, value ="
    " CASE rank WHEN 0 THEN floor0 WHEN 1 THEN floor1 ELSE floor2 END FROM TIER_total AS total"
    " WHERE id = ?"
)
RANK: Final[Mapping[Priority, int]] = {"low": 0, "medium": 1, "high": 2}
BATCH: Final = 256
"""Entries looked at in one transaction of a removal."""
LATE: Final = 100
"""Expired entries looked through for one of a certain tenant."""
Touches = Mapping[int, tuple[int, float]]
"""By entry number: how many uses, the last when (unix seconds)."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a tier holds, as all processes see it."""

    entries: int
    size_bytes: int


class Shelf:
    """One tier's tables. Its methods want a connection, and those that write a transaction."""

    def __init__(
        self, tier: TierName, max_bytes: int, shares: Mapping[str, int] | None = None
    ) -> None:
        self.tier = tier
        self.bars = DiskBars(tier)
        self.max_bytes = max_bytes
        self._shares = dict(shares or {})

    def schema(self) -> str:
        """The statements that make the tables."""
        return self._sql(SCHEMA + BARS_SCHEMA + (SHARES_SCHEMA if self._shares else ""))

    def find(self, connection: sqlite3.Connection, key: bytes) -> Entry | None:
        """The entry, if it is there and every bit of it is what was written."""
        row = connection.execute(
            self._sql("SELECT head, body FROM TIER_answer WHERE id = ?"), (number_of(key),)
        ).fetchone()
        if row is None:
            return None
        try:
            entry = decode(row[0] + row[1])
        except (CodecError, TypeError):
            return None
        # another key with the same beginning, or a row that lies at the wrong place
        return entry if entry.meta.key == key and entry.meta.tier == self.tier else None

    def holds(self, connection: sqlite3.Connection, key: bytes) -> bool:
        """Whether anything lies at the key's place."""
        statement = self._sql(
            "SELECT EXISTS (SELECT 1 FROM TIER_standing WHERE id = ?1)"
            " OR EXISTS (SELECT 1 FROM TIER_answer WHERE id = ?1)"
        )
        return bool(connection.execute(statement, (number_of(key),)).fetchone()[0])

    def put(
        self, connection: sqlite3.Connection, entry: Entry, touches: Touches, *, now: float
    ) -> Stored:
        """Keep the entry; the order of victims is that of ``policies.eviction``."""
        if self.bars.refuse(connection, entry.meta, since_of(entry, self.tier)):
            return Stored(kept=False, barred=True)
        meta, head = entry.meta, encode_head(entry)
        number, size = number_of(meta.key), charge(meta, len(head), len(entry.body))
        self.touch(connection, touches)
        self._delete(connection, number)
        share = self._shares.get(meta.scope.tenant)
        if size > self.max_bytes or (share is not None and size > share):
            return Stored(kept=False)
        tenant = self._tenant(connection, meta.scope.tenant)
        if entry.supersedes is not None:
            connection.execute(self._sql("UPDATE TIER_total SET seq = seq + 1"))
            connection.execute(self._sql(SUPERSEDE), (number_of(entry.supersedes),))
        self._stand(connection, number, tenant, meta, size, now=now)
        gone: list[Entry | EntryMeta] = []
        kept = (
            share is None or self._make_room(connection, number, gone, tenant, share, now=now)
        ) and self._make_room(connection, number, gone, None, self.max_bytes, now=now)
        if kept:
            connection.execute(
                self._sql("INSERT OR REPLACE INTO TIER_answer VALUES (?, ?, ?)"),
                (number, head, entry.body),
            )
            connection.executemany(
                self._sql("INSERT OR IGNORE INTO TIER_label VALUES (?, ?)"),
                [(label, number) for label in labels(meta)],
            )
        return Stored(
            kept,
            evicted=[one for one in gone if isinstance(one, EntryMeta)],
            sinking=[one for one in gone if isinstance(one, Entry)],
        )

    def touch(self, connection: sqlite3.Connection, touches: Touches) -> None:
        """Count uses. A use can only raise an entry."""
        connection.executemany(
            self._sql(
                "UPDATE TIER_standing SET uses = uses + ?2, used_at = max(used_at, ?3),"
                " value = (uses + ?2) * worth + (SELECT CASE rank WHEN 0 THEN floor0"
                " WHEN 1 THEN floor1 ELSE floor2 END FROM TIER_total) WHERE id = ?1"
            ),
            [(number, uses, used_at) for number, (uses, used_at) in touches.items()],
        )

    def remove(
        self, connection: sqlite3.Connection, selector: Selector, after: "Place"
    ) -> tuple[list[EntryMeta], "Place | None"]:
        """Drop what is meant among the next :data:`BATCH`; what went, and where to go on."""
        places = self._places(connection, selector, after, BATCH)
        gone = []
        for place in places:
            meta = self._meta(connection, place.number)
            if meta is None or selector.matches(meta):
                self._delete(connection, place.number)
            if meta is not None and selector.matches(meta):
                gone.append(meta)
        return gone, places[-1] if len(places) == BATCH else None

    def scan(
        self, connection: sqlite3.Connection, selector: Selector, after: bytes | None, limit: int
    ) -> list[EntryMeta]:
        """Up to ``limit`` entries in the order of their keys."""
        found: list[EntryMeta] = []
        start = -(2**63) if after is None else number_of(after)
        while len(found) < limit:
            numbers = self._numbers(connection, selector, start, BATCH)
            for number in numbers:
                meta = self._meta(connection, number)
                if meta is None or not selector.matches(meta):
                    continue
                if after is None or meta.key > after:
                    found.append(meta)
            if len(numbers) < BATCH:
                break
            start = numbers[-1] + 1
        return found[:limit]

    def totals(self, connection: sqlite3.Connection) -> Totals:
        """How much it holds. Raises: DamagedError."""
        row = connection.execute(self._sql("SELECT entries, bytes FROM TIER_total")).fetchone()
        if row is None or not all(isinstance(one, int) for one in row):
            raise DamagedError("the totals are not numbers")
        return Totals(max(0, row[0]), max(0, row[1]))

    def _stand(
        self,
        connection: sqlite3.Connection,
        number: int,
        tenant: int,
        meta: EntryMeta,
        size: int,
        *,
        now: float,
    ) -> None:
        rank, worth = RANK[meta.priority], max(0.0, meta.cost_s) / size
        connection.execute(
            self._sql(
                "INSERT INTO TIER_standing SELECT ?1, ?2, ?3, ?4,"
                " CASE ?3 WHEN 0 THEN floor0 WHEN 1 THEN floor1 ELSE floor2 END + ?5,"
                " ?6, seq + 1, 1, ?5, ?7 FROM TIER_total"
            ),
            (number, tenant, rank, ends_at(meta), worth, now, size),
        )

    def _make_room(
        self,
        connection: sqlite3.Connection,
        newcomer: int,
        gone: list[Entry | EntryMeta],
        tenant: int | None,
        most: int,
        *,
        now: float,
    ) -> bool:
        """Drop the least valuable until no more than ``most`` is held; False: the newcomer went."""
        kept = True
        while self._held(connection, tenant) > most:
            number = self._victim(connection, tenant, now)
            if number is None:
                raise DamagedError("an empty tier is full")
            left = None if number == newcomer else self._left(connection, number, now)
            if not self._delete(connection, number):
                raise DamagedError("an index names an entry that is not there")
            kept = kept and number != newcomer
            if left is not None:
                gone.append(left)
        return kept

    def _left(
        self, connection: sqlite3.Connection, number: int, now: float
    ) -> Entry | EntryMeta | None:
        """A victim: whole if a lower tier could take it, else what is known about it."""
        meta = self._meta(connection, number)
        if meta is None or self.tier == "cold" or ends_at(meta) <= now:
            return meta
        return self.find(connection, meta.key)

    def _held(self, connection: sqlite3.Connection, tenant: int | None) -> int:
        if tenant is None:
            return self.totals(connection).size_bytes
        ((held,),) = connection.execute(
            self._sql("SELECT bytes FROM TIER_tenant WHERE id = ?"), (tenant,)
        )
        return int(held)

    def _victim(self, connection: sqlite3.Connection, tenant: int | None, now: float) -> int | None:
        expired, cheapest = (
            (EXPIRED, CHEAPEST) if tenant is None else (EXPIRED_OF_TENANT, CHEAPEST_OF_TENANT)
        )
        values = {"tenant": tenant, "now": now, "late": LATE}
        found = connection.execute(self._sql(expired), values).fetchone()
        if found is not None:
            return int(found[0])
        found = connection.execute(self._sql(cheapest), values).fetchone()
        if found is None:
            return None
        connection.execute(  # what is no longer used is overtaken by what comes later
            self._sql(
                "UPDATE TIER_total SET floor0 = iif(rank = 0, value, floor0),"
                " floor1 = iif(rank = 1, value, floor1), floor2 = iif(rank = 2, value, floor2)"
                " FROM (SELECT rank, value FROM TIER_standing WHERE id = ?)"
            ),
            found,
        )
        return int(found[0])

    def _tenant(self, connection: sqlite3.Connection, tenant: str) -> int:
        name = raw(tenant)
        row = connection.execute(
            self._sql("SELECT id FROM TIER_tenant WHERE name = ?"), (name,)
        ).fetchone()
        if row is not None:
            return int(row[0])
        added = connection.execute(
            self._sql("INSERT INTO TIER_tenant(name, bytes) VALUES (?, 0)"), (name,)
        )
        return int(added.lastrowid or 0)

    def _meta(self, connection: sqlite3.Connection, number: int) -> EntryMeta | None:
        row = connection.execute(
            self._sql("SELECT head FROM TIER_answer WHERE id = ?"), (number,)
        ).fetchone()
        with suppress(CodecError, TypeError):
            meta = decode_meta(row[0]) if row is not None else None
            if meta is not None and number_of(meta.key) == number:
                return meta
        return None

    def _delete(self, connection: sqlite3.Connection, number: int) -> bool:
        """Drop all rows of an entry; whether it had a standing."""
        gone = connection.execute(self._sql("DELETE FROM TIER_standing WHERE id = ?"), (number,))
        if gone.rowcount:
            return True
        # an answer is never without its standing, unless the file was damaged
        connection.execute(self._sql("DELETE FROM TIER_answer WHERE id = ?"), (number,))
        return False

    def _places(
        self, connection: sqlite3.Connection, selector: Selector, after: "Place", limit: int
    ) -> "list[Place]":
        """The next candidates in the order of the best index, which need not be that of keys."""
        if selector.key is not None:
            number = number_of(selector.key)
            held = after == START and self.holds(connection, selector.key)
            return [Place(b"", number)] if held else []
        span = span_of(selector)
        if span is None:
            start = after.number + (after != START)
            numbers = self._numbers(connection, selector, start, limit)
            return [Place(b"", number) for number in numbers]
        rows = connection.execute(
            self._sql(
                "SELECT label, id FROM TIER_label WHERE (label, id) > (?, ?) AND label >= ?"
                " AND label < ? ORDER BY label, id LIMIT ?"
            ),
            (after.label, after.number, *span, limit),
        ).fetchall()
        return [Place(bytes(label), number) for label, number in rows]

    def _numbers(
        self, connection: sqlite3.Connection, selector: Selector, start: int, limit: int
    ) -> list[int]:
        """The next candidates from ``start`` on in the order of keys."""
        if start >= 2**63:
            return []
        span = span_of(selector)
        values: tuple[Any, ...]
        if selector.key is not None:
            number = number_of(selector.key)
            return [number] if number >= start else []
        if span is not None:
            statement = (
                "SELECT DISTINCT id FROM TIER_label WHERE label >= ? AND label < ? AND id >= ?"
                " ORDER BY id LIMIT ?"
            )
            values = (*span, start, limit)
        elif selector.tenant is not None:
            statement = (
                "SELECT id FROM TIER_standing WHERE id >= ? AND +tenant ="
                " (SELECT id FROM TIER_tenant WHERE name = ?) ORDER BY id LIMIT ?"
            )
            values = (start, raw(selector.tenant), limit)
        else:
            statement = "SELECT id FROM TIER_standing WHERE id >= ? ORDER BY id LIMIT ?"
            values = (start, limit)
        return [row[0] for row in connection.execute(self._sql(statement), values)]

    def _sql(self, statement: str) -> str:
        return of_tier(statement, self.tier)

    def __repr__(self) -> str:
        return f"<Shelf {self.tier}, {self.max_bytes} bytes>"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a removal is in its index."""

    label: bytes
    number: int


START: Final = Place(b"", -(2**63))
