"""The file under the disk tier: threads, transactions, and every kind of damage."""

import asyncio
import errno
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.store.base import StoreError, StoreFull
from gateway.store.disk import DiskStore, open_database
from gateway.store.disk_database import Database
from tests.kit.doomed_writer import NAMES, answer, found_in
from tests.kit.entries import NOW, entry_of, key_of

ROOT = Path(__file__).parent.parent.parent.parent
KEPT = 8
TABLE = "CREATE TABLE IF NOT EXISTS thing(name TEXT)"


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path, "things")
    database.expects(TABLE)
    yield database
    await database.close()


def add(name: str) -> "Add":
    return Add(name)


class Add:
    """A job that adds a thing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, connection: sqlite3.Connection) -> int:
        return connection.execute("INSERT INTO thing VALUES (?)", (self.name,)).rowcount


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM thing").fetchone()[0])


async def test_a_job_that_fails_leaves_nothing_behind(things: Database) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        add("x")(connection)
        raise ValueError("after the first half")

    with pytest.raises(ValueError, match="half"):
        await things.write(fail)
    assert await things.read(count) == 0
    await things.write(add("x"), durable=True)
    assert await things.read(count) == 1


async def test_a_write_whose_caller_leaves_is_done_all_the_same(things: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> int:
        begun.set()
        go_on.wait()
        return add("x")(connection)

    writing = asyncio.ensure_future(things.write(slow))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    go_on.set()
    await things.write(add("y"))
    assert await things.read(count) == 2


async def test_a_read_whose_caller_leaves_breaks_nothing(things: Database) -> None:
    for _ in range(20):
        reading = asyncio.ensure_future(things.read(count))
        await asyncio.sleep(0)
        reading.cancel()
    assert await things.read(count) == 0


async def test_what_is_closed_says_so(things: Database) -> None:
    await things.close()
    with pytest.raises(StoreError, match="closed"):
        await things.read(count)
    with pytest.raises(StoreError, match="closed"):
        await things.write(add("x"))


async def test_our_own_mistakes_are_not_taken_for_damage(things: Database) -> None:
    with pytest.raises(sqlite3.ProgrammingError):
        await things.read(lambda connection: connection.execute("SELECT ?"))
    assert things.path.name == "things-1.db"


async def test_tables_may_be_asked_for_when_the_file_is_open(things: Database) -> None:
    await things.write(add("x"))
    things.expects("CREATE TABLE IF NOT EXISTS more(name TEXT)")
    await things.write(
        lambda connection: connection.execute("INSERT INTO more VALUES (1)").rowcount
    )
    assert await things.read(count) == 1


async def test_a_long_log_is_carried_over_behind_the_writers(things: Database) -> None:
    def much(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO thing VALUES (zeroblob(6000000))")

    for _ in range(8):
        await things.write(much)
    await things.close()
    assert size_of(things.path) > 40_000_000
    assert names_in(things.path.parent) == {"things-1.db"}


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def size_of(path: Path) -> int:
    return path.stat().st_size


def test_threads_and_processes_that_begin_a_file_at_once_agree(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from gateway.store.disk_database import Database\n"
        f"database = Database(Path(sys.argv[1]), 'things'); database.expects({TABLE!r})\n"
        "def job(c): return c.execute('INSERT INTO thing VALUES (1)').rowcount\n"
        "async def main():\n"
        "    await asyncio.gather(*(database.read(lambda c: 1) for _ in range(8)))\n"
        "    await asyncio.gather(*(database.write(job) for _ in range(25)))\n"
        "    await database.close()\n"
        "asyncio.run(main())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT) for _ in range(4)
    ]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    with sqlite3.connect(tmp_path / "things-1.db") as connection:
        assert count(connection) == 100
    connection.close()
    assert [file.name for file in tmp_path.glob("*.db")] == ["things-1.db"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few answers, closed, and beside it one as a crash leaves it, with its log."""
    folder = tmp_path_factory.mktemp("sound")

    async def fill() -> None:
        dice = random.Random(1)
        database = open_database(folder / "closed")
        store = DiskStore("warm", database, max_bytes=10**6)
        for name in NAMES[:KEPT]:
            await store.put(answer(name, dice), now=NOW)
        shutil.copytree(folder / "closed", folder / "crashed")
        await database.close()

    asyncio.run(fill())
    return folder


async def survives(folder: Path) -> int:
    """Each answer is exact or a miss, and new ones are kept; how many were found."""
    database = open_database(folder)
    store = DiskStore("warm", database, max_bytes=10**6)
    found, wrong = await found_in(store)
    assert wrong == 0
    assert (await store.put(entry_of("new"), now=NOW)).kept
    assert await store.get(key_of("new"), now=NOW) == entry_of("new")
    await database.close()
    return found


async def test_sound_files_lose_nothing(sound: Path, tmp_path: Path) -> None:
    for kind in ("closed", "crashed"):
        shutil.copytree(sound / kind, tmp_path / kind)
        assert await survives(tmp_path / kind) == KEPT


@pytest.mark.parametrize(
    ("kind", "file"), [("closed", ".db"), ("crashed", ".db-wal"), ("crashed", ".db-shm")]
)
async def test_flipped_bytes_are_misses_at_worst(
    sound: Path, tmp_path: Path, kind: str, file: str
) -> None:
    dice = random.Random(7)
    length = size_of(sound / kind / f"responses-1{file}")
    places = [*range(0, 100, 2), *(dice.randrange(length) for _ in range(60))]
    for number, place in enumerate(places):
        folder = tmp_path / str(number)
        shutil.copytree(sound / kind, folder)
        change(folder / f"responses-1{file}", place, dice.randrange(1, 256))
        await survives(folder)
        shutil.rmtree(folder)


def change(file: Path, place: int, by: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= by
    file.write_bytes(data)


@pytest.mark.parametrize(("kind", "file"), [("closed", ".db"), ("crashed", ".db-wal")])
async def test_files_cut_short_are_misses_at_worst(
    sound: Path, tmp_path: Path, kind: str, file: str
) -> None:
    dice = random.Random(8)
    length = size_of(sound / kind / f"responses-1{file}")
    for number, place in enumerate(
        [0, 1, 99, 100, 4096, *(dice.randrange(length) for _ in "x" * 25)]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(sound / kind, folder)
        cut(folder / f"responses-1{file}", place)
        await survives(folder)


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


async def test_somebody_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "responses-1.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious(x)")
    connection.close()
    with capture_logs() as lines:
        await survives(tmp_path)
    assert [line["event"] for line in lines] == ["a damaged file is set aside, a new one is begun"]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM precious").fetchone() == (0,)
    connection.close()


async def test_damage_is_told_once_and_the_file_is_kept_until_the_next(tmp_path: Path) -> None:
    for edition in (1, 2, 3):
        write(tmp_path / f"responses-{edition}.db", b"not a database" * 100)
        with capture_logs() as lines:
            await survives(tmp_path)
            await survives(tmp_path)
        assert len(lines) == 1
        assert lines[0]["file"].endswith(f"responses-{edition}.db")
    assert names_in(tmp_path) == {"responses-3.db", "responses-4.db"}


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_who_has_the_older_file_open_moves_on_with_the_others(tmp_path: Path) -> None:
    mine, others = open_database(tmp_path), open_database(tmp_path)
    my_store = DiskStore("warm", mine, max_bytes=10**6)
    their_store = DiskStore("warm", others, max_bytes=10**6)
    await my_store.put(entry_of("a"), now=NOW)
    assert await their_store.get(key_of("a"), now=NOW) is not None
    write(tmp_path / "responses-2.db", b"")
    assert await their_store.get(key_of("a"), now=NOW) is None
    await their_store.put(entry_of("b"), now=NOW)
    assert await my_store.get(key_of("b"), now=NOW) == entry_of("b")
    await mine.close()
    await others.close()


async def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    database = open_database(tmp_path / "folder")
    store = DiskStore("warm", database, max_bytes=10**6)
    await store.put(entry_of("a"), now=NOW)
    shutil.rmtree(tmp_path / "folder")
    assert await store.get(key_of("a"), now=NOW) is None
    assert (await store.put(entry_of("a"), now=NOW)).kept
    assert await store.get(key_of("a"), now=NOW) == entry_of("a")
    await database.close()


async def test_a_file_that_is_locked_too_long_is_an_error_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.disk_database.LOCK_S", 0.01)
    database = open_database(tmp_path)
    store = DiskStore("warm", database, max_bytes=10**6)
    await store.put(entry_of("a"), now=NOW)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        await store.put(entry_of("b"), now=NOW)
    assert await store.get(key_of("a"), now=NOW) is not None
    other.execute("ROLLBACK")
    other.close()
    assert (await store.put(entry_of("b"), now=NOW)).kept
    assert database.path.name == "responses-1.db"
    await database.close()


FULL = """
import asyncio, resource, sys
from pathlib import Path
from gateway.store.base import StoreFull
from gateway.store.disk import DiskStore, open_database
from tests.kit.entries import NOW, entry_of, key_of

async def main():
    store = DiskStore("warm", database := open_database(Path(sys.argv[1])), max_bytes=10**9)
    refused = 0
    for number in range(60):
        try:
            await store.put(entry_of(f"x{number}", b"x" * 50_000), now=NOW)
        except StoreFull:
            refused += 1
    for number in range(60):
        found = await store.get(key_of(f"x{number}"), now=NOW)
        assert found is None or found == entry_of(f"x{number}", b"x" * 50_000)
    await database.close()
    print(refused, database.path.name)

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
asyncio.run(main())
"""


def test_a_full_disk_refuses_answers_and_gives_back_what_it_has(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    refused, file = ended.stdout.split()
    assert 10 < int(refused) < 60
    assert file == "responses-1.db"
    assert asyncio.run(survives(tmp_path)) == 0  # of the names that are looked for


def test_full_is_a_kind_of_failure() -> None:
    assert issubclass(StoreFull, StoreError)


class Failing:
    """A job that meets what SQLite makes of a read error, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, connection: sqlite3.Connection) -> int:
        if self.left:
            self.left -= 1
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # what EIO on read becomes
            raise error
        return count(connection)


async def test_a_passing_error_on_read_costs_nothing_and_sets_no_file_aside(
    things: Database,
) -> None:
    await things.write(add("x"))
    for _ in range(5):
        assert await things.read(Failing(1)) == 1
    assert names_in(things.path.parent) >= {"things-1.db"}
    assert things.path.name == "things-1.db"


async def test_a_file_that_the_system_cannot_read_is_an_error_and_not_damage(
    things: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await things.write(add("x"))

    def unreadable(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", unreadable)
        with pytest.raises(StoreError, match="malformed"):
            await things.read(Failing(9))
    assert things.path.name == "things-1.db"
    assert await things.read(count) == 1


async def test_damage_that_stays_sets_the_file_aside(things: Database) -> None:
    await things.write(add("x"))
    assert await things.read(Failing(2)) == 0
    assert things.path.name == "things-2.db"
