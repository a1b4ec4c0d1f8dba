"""Generations in a file: what a new file refuses, and how many bars it holds."""

import sqlite3

import pytest

from gateway.store.bars import MOST_BARS
from gateway.store.base import Selector
from gateway.store.disk_bars import BARS_SCHEMA, DiskBars
from gateway.store.disk_database import DamagedError
from gateway.store.disk_rows import of_tier
from tests.kit.entries import meta_of


@pytest.fixture
def connection() -> sqlite3.Connection:
    one = sqlite3.connect(":memory:", isolation_level=None)
    for statement in filter(None, of_tier(BARS_SCHEMA, "warm").split(";;")):
        one.execute(statement)
    return one


def test_a_new_file_refuses_what_began_before_it(connection: sqlite3.Connection) -> None:
    bars = DiskBars("warm")
    number = bars.number(connection)
    assert bars.refuse(connection, meta_of(), number - 1)
    assert not bars.refuse(connection, meta_of(), number)
    assert bars.refuse(connection, meta_of(), number + 1)  # of a file that is no more
    assert not bars.refuse(connection, meta_of(), None)
    assert repr(bars) == "<DiskBars warm>"


def test_the_file_holds_so_many_bars_of_a_tenant_and_no_more(
    connection: sqlite3.Connection,
) -> None:
    bars = DiskBars("warm")
    for number in range(MOST_BARS + 9):
        bars.add(connection, Selector("t", cache_key=str(number)))
    ((rows,),) = connection.execute("SELECT count(*) FROM warm_bar WHERE tenant != X''")
    assert rows == MOST_BARS + 1  # the last one is for all that are no longer there


def test_a_generation_that_is_no_number_is_damage(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE warm_generation SET number = 'x'")
    with pytest.raises(DamagedError):
        DiskBars("warm").number(connection)
