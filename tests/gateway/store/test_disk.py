"""The disk tier's face; what every store promises is in tests/contracts/test_store.py."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from sqlite3 import Connection

import pytest

from gateway.store import disk
from gateway.store.base import Entry, Selector, StoreError
from gateway.store.codec import CodecError
from gateway.store.disk import FLUSH_S, DiskStore, default_folder, open_database
from gateway.store.disk_database import Database
from gateway.store.disk_rows import number_of
from gateway.store.disk_shelf import BATCH
from tests.kit.entries import NOW, entry_of, key_of


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    one = open_database(tmp_path)
    yield one
    await one.close()


async def uses_of(database: Database, name: str) -> int:
    (found,) = await database.read(
        lambda connection: connection.execute(
            "SELECT uses FROM warm_standing WHERE id = ?", (number_of(key_of(name)),)
        ).fetchone()
    )
    return int(found)


async def test_hits_are_counted_in_memory_and_written_down_later(database: Database) -> None:
    store = DiskStore("warm", database, max_bytes=10**6)
    await store.put(entry_of("a"), now=NOW)
    await store.get(key_of("a"), now=NOW)  # the first is written at once
    for _ in range(5):
        await store.get(key_of("a"), now=NOW + FLUSH_S / 2)
    await database.write(lambda _: None)
    assert await uses_of(database, "a") == 2
    await store.put(entry_of("b"), now=NOW)
    assert await uses_of(database, "a") == 7
    await store.get(key_of("a"), now=NOW + FLUSH_S)
    await database.write(lambda _: None)
    assert await uses_of(database, "a") == 8
    await store.get(key_of("a"), now=NOW + FLUSH_S)
    await store.close()
    assert await uses_of(database, "a") == 9


async def test_what_outlived_the_process_is_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        database = open_database(tmp_path)
        store = DiskStore("warm", database, max_bytes=10**6)
        await store.put(entry_of("a", b"x"), now=NOW)
        await store.close()
        await database.close()
    database = open_database(tmp_path)
    store = DiskStore("warm", database, max_bytes=10**6)
    assert await store.get(key_of("a"), now=NOW) == entry_of("a", b"x")
    await database.close()


async def test_tiers_in_one_file_do_not_see_each_other(database: Database) -> None:
    warm = DiskStore("warm", database, max_bytes=10**6)
    cold = DiskStore("cold", database, max_bytes=10**6)
    await warm.put(entry_of("a"), now=NOW)
    assert await cold.get(key_of("a"), now=NOW) is None
    assert await cold.remove(Selector(None)) == []
    assert await warm.get(key_of("a"), now=NOW) is not None


async def test_writers_need_not_wait_until_a_long_removal_has_ended(database: Database) -> None:
    store = DiskStore("warm", database, max_bytes=10**7)

    def filled(connection: Connection) -> None:
        for number in range(3 * BATCH):
            store._shelf.put(connection, entry_of(str(number)), {}, now=NOW)

    await database.write(filled)
    removal = asyncio.ensure_future(store.remove(Selector("t")))
    await asyncio.sleep(0)
    left = await database.write(store._shelf.totals)
    assert left.entries == 2 * BATCH
    assert len(await removal) == 3 * BATCH
    assert store.fill().entries == 0


async def test_a_removal_that_gets_no_further_is_given_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "STEP_S", 0.01)
    store, goes_on = DiskStore("warm", database, max_bytes=10**6), threading.Event()
    held = database.write_soon(lambda _: goes_on.wait(30))
    try:
        with pytest.raises(StoreError, match="got no further"):
            await store.remove(Selector("t"))
    finally:
        goes_on.set()
        await asyncio.wrap_future(held)


async def test_an_entry_that_has_no_bytes_is_refused(database: Database) -> None:
    store = DiskStore("warm", database, max_bytes=10**6)
    odd: Entry = entry_of("a", cache_key="\ud800")
    with pytest.raises(CodecError):
        await store.put(odd, now=NOW)
    assert issubclass(CodecError, StoreError)
    assert (await store.put(entry_of("b"), now=NOW)).kept


async def test_a_closed_database_fails_as_a_store_does(database: Database) -> None:
    store = DiskStore("warm", database, max_bytes=10**6)
    await store.put(entry_of("a"), now=NOW)
    await store.get(key_of("a"), now=NOW)
    await database.close()
    with pytest.raises(StoreError):
        await store.get(key_of("a"), now=NOW)
    assert store.fill().entries == 1
    await store.close()


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"KVGATE_CACHE_DIR": "/own"}, "/own/responses"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/kvgate/responses"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/kvgate/responses"),
        ("darwin", {}, "~/Library/Caches/kvgate/responses"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kvgate/Cache/responses"),
    ],
)
def test_answers_lie_in_the_users_cache_folder(
    platform: str, environment: dict[str, str], folder: str
) -> None:
    assert default_folder(environment, platform=platform) == Path(folder).expanduser()
