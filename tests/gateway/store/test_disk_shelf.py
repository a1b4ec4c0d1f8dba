"""The tables of a tier: who goes first, what a tenant may take, what an index is believed."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.base import Entry, Selector
from gateway.store.disk_database import DamagedError
from gateway.store.disk_rows import number_of
from gateway.store.disk_shelf import BATCH, START, Shelf
from policies.eviction import EvictionOrder
from tests.kit.entries import NOW, entry_of, key_of


def connected(shelf: Shelf) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in shelf.schema().split(";;"):
        connection.execute(statement)
    return connection


@pytest.fixture
def shelf() -> Shelf:
    return Shelf("warm", 10**9)


@pytest.fixture
def connection(shelf: Shelf) -> Iterator[sqlite3.Connection]:
    one = connected(shelf)
    yield one
    one.close()


def everything(shelf: Shelf, connection: sqlite3.Connection) -> set[bytes]:
    return {meta.key for meta in shelf.scan(connection, Selector(None), None, 10**6)}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefghij"),
            st.sampled_from(["high", "medium", "low"]),
            st.integers(0, 4),  # what it cost
            st.integers(0, 3),  # when it expires
            st.integers(0, 3),  # uses
            st.sampled_from([None, "a", "b", "c"]),  # what it supersedes
        ),
        max_size=20,
        unique_by=lambda one: one[0],
    )
)
def test_victims_go_in_the_order_of_the_policy(
    facts: list[tuple[str, str, int, int, int, str | None]],
) -> None:
    shelf, order = Shelf("cold", 10**9), EvictionOrder[bytes]()
    connection = connected(shelf)
    now = NOW
    for name, priority, cost, ttl, uses, older in facts:
        now += 1
        entry = entry_of(
            name, tier="cold", priority=priority, cost_s=float(cost), ttl_s=500.0 * ttl
        )
        if older is not None:
            entry = replace(entry, supersedes=key_of(older))
            order.supersede(key_of(older))
        before = shelf.totals(connection).size_bytes
        shelf.put(connection, entry, {}, now=now)
        size = shelf.totals(connection).size_bytes - before
        order.add(
            entry.meta.key,
            priority=entry.meta.priority,
            expires_at=NOW + 500.0 * ttl,
            cost=entry.meta.cost_s,
            size=size,
            now=now,
        )
        if uses:
            shelf.touch(connection, {number_of(entry.meta.key): (uses, now)})
            for _ in range(uses):
                order.touch(entry.meta.key, now=now)
    now = NOW + 600
    while (victim := order.pop(now=now)) is not None:
        assert shelf._victim(connection, None, now) == number_of(victim)
        assert shelf._delete(connection, number_of(victim))
    assert shelf._victim(connection, None, now) is None
    connection.close()


def test_what_is_no_longer_used_is_overtaken(connection: sqlite3.Connection) -> None:
    shelf = Shelf("warm", 40_000)
    body = b"x" * 9000
    shelf.put(connection, entry_of("once loved", body), {}, now=NOW)
    shelf.touch(connection, {number_of(key_of("once loved")): (20, NOW)})
    for number in range(100):
        shelf.put(connection, entry_of(str(number), body), {}, now=NOW + number)
    assert shelf.find(connection, key_of("once loved")) is None


def test_a_tenant_takes_its_share_and_only_its_own_go_for_it() -> None:
    shelf = Shelf("warm", 10**6, {"small": 40_000})
    connection = connected(shelf)
    body = b"x" * 9000
    shelf.put(connection, entry_of("theirs", body, tenant="big", priority="low"), {}, now=NOW)
    for number in range(10):
        stored = shelf.put(connection, entry_of(str(number), body, tenant="small"), {}, now=NOW)
        assert stored.kept
        assert all(meta.scope.tenant == "small" for meta in stored.gone)
    assert 1 <= len(everything(shelf, connection)) - 1 <= 4
    assert shelf.find(connection, key_of("theirs")) is not None
    assert not shelf.put(
        connection, entry_of("huge", b"x" * 50_000, tenant="small"), {}, now=NOW
    ).kept
    late = NOW + 1000  # the tenant's own expired ones go first
    shelf.put(connection, entry_of("n", body, tenant="small", stored_at=late), {}, now=late)
    assert shelf.find(connection, key_of("n")) is not None
    connection.close()


def test_a_lower_tier_is_offered_what_is_still_good() -> None:
    body = b"x" * 9000
    for tier, sinks in (("warm", True), ("cold", False)):
        shelf = Shelf(tier, 25_000)  # type: ignore[arg-type]  # both are tiers
        connection = connected(shelf)
        first = entry_of("a", body, tier=tier, cost_s=0.1)
        shelf.put(connection, first, {}, now=NOW)
        shelf.put(connection, entry_of("b", body, tier=tier), {}, now=NOW)
        stored = shelf.put(connection, entry_of("c", body, tier=tier), {}, now=NOW)
        assert list(stored.sinking) == ([first] if sinks else [])
        assert list(stored.evicted) == ([] if sinks else [first.meta])
        connection.close()


def test_many_entries_are_removed_and_scanned_batch_by_batch(
    shelf: Shelf, connection: sqlite3.Connection
) -> None:
    total = 2 * BATCH + 10
    for number in range(total):
        more: dict[str, Any] = {
            "cache_key": f"faq:{number}",
            "tags": ("even",) if number % 2 == 0 else (),
        }
        shelf.put(connection, entry_of(str(number), **more), {}, now=NOW)
    for selector, meant in (
        (Selector("t", tag="even"), total // 2),
        (Selector("t", prefix="faq:"), total),
        (Selector("t", model="m"), total),
        (Selector("t", model="other"), 0),
        (Selector("other", prefix="faq:"), 0),
    ):
        assert len(shelf.scan(connection, selector, None, 10**6)) == meant
    gone, place = [], START
    while True:
        some, go_on = shelf.remove(connection, Selector("t", prefix="faq:", tag="even"), place)
        gone += some
        if go_on is None:
            break
        place = go_on
    assert len(gone) == total // 2
    assert shelf.totals(connection).entries == total - total // 2
    assert connection.execute("SELECT count(*) FROM warm_label").fetchone()[0] == total // 2


def changed(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE warm_answer SET head = x'00'",
        "UPDATE warm_answer SET head = 'text'",
        "UPDATE warm_answer SET body = x'00'",
        "UPDATE warm_answer SET id = id + 1",
        "UPDATE warm_answer SET (head, body) = (SELECT head, body FROM warm_answer ORDER BY id LIMIT 1)",
        "DELETE FROM warm_standing",
    ],
)
def test_rows_that_are_not_what_was_written_are_misses_and_can_be_replaced(
    shelf: Shelf, connection: sqlite3.Connection, statement: str
) -> None:
    entries = [entry_of("a", b"1"), entry_of("b", b"2")]
    for entry in entries:
        shelf.put(connection, entry, {}, now=NOW)
    connection.execute(statement)
    for entry in entries:
        assert shelf.find(connection, entry.meta.key) in (None, entry)
        shelf.put(connection, entry, {}, now=NOW)
        assert shelf.find(connection, entry.meta.key) == entry
    shelf.remove(connection, Selector("t"), START)
    for entry in entries:
        shelf.remove(connection, Selector("t", key=entry.meta.key), START)
        assert shelf.find(connection, entry.meta.key) is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE warm_total SET bytes = 1000000000000",
        "DELETE FROM warm_total",
    ],
)
def test_totals_that_cannot_be_are_damage_and_end_no_process(
    shelf: Shelf, connection: sqlite3.Connection, statement: str
) -> None:
    shelf.put(connection, entry_of("a"), {}, now=NOW)
    connection.execute(statement)
    with pytest.raises(DamagedError):
        put_and_total(shelf, connection)


def put_and_total(shelf: Shelf, connection: sqlite3.Connection) -> None:
    shelf.put(connection, entry_of("b"), {}, now=NOW)
    shelf.totals(connection)


def test_an_entry_of_another_tier_is_not_found(connection: sqlite3.Connection) -> None:
    shelf = Shelf("warm", 10**6)
    shelf.put(connection, entry_of("a", tier="hot"), {}, now=NOW)
    assert shelf.find(connection, key_of("a")) is None


def test_keys_that_begin_alike_take_each_others_place(
    shelf: Shelf, connection: sqlite3.Connection
) -> None:
    one, other = (entry_of("x", key=b"12345678" + end * 24) for end in (b"a", b"b"))
    shelf.put(connection, one, {}, now=NOW)
    assert shelf.find(connection, other.meta.key) is None
    shelf.put(connection, other, {}, now=NOW)
    assert shelf.find(connection, other.meta.key) == other
    assert shelf.find(connection, one.meta.key) is None


def test_a_read_is_one_descent_and_a_victim_is_found_by_index(
    shelf: Shelf, connection: sqlite3.Connection
) -> None:
    for statement in (
        "SELECT id FROM warm_standing ORDER BY rank, value, used_at, seq LIMIT 1",
        "SELECT id FROM warm_standing WHERE expires_at <= 1 ORDER BY expires_at, seq LIMIT 1",
        "SELECT head, body FROM warm_answer WHERE id = 1",
    ):
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert all("USING" in row[3] and "TEMP" not in row[3] for row in plan)


def test_an_entry_whose_numbers_are_odd_is_kept(
    shelf: Shelf, connection: sqlite3.Connection, tmp_path: Path
) -> None:
    odd: list[Entry] = [
        entry_of("nan", cost_s=float("nan"), ttl_s=float("nan")),
        entry_of("inf", cost_s=float("inf"), ttl_s=float("inf")),
        entry_of("negative", cost_s=-1.0, ttl_s=-5.0),
    ]
    for entry in odd:
        assert shelf.put(connection, entry, {}, now=NOW).kept
        assert shelf.find(connection, entry.meta.key) is not None
