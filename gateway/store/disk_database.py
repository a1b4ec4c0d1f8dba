"""One SQLite file that several processes share, off the event loop, and never in the way.

Jobs are functions of a connection. Reading jobs run on a few threads, writing jobs one after the
other on another, each in one short transaction; all processes take turns by SQLite's own locks.

The file may be cut short, changed or filled with something else at any time. What SQLite then
says decides: a full disk or a lock that does not come is a :class:`StoreError` and the file is
left alone; anything else, when it is seen twice in a row and the file can be read, means that the file is
damaged (SQLite takes a passing I/O error on read for damage), and the next *edition* of it begins:
``responses-1.db``, ``responses-2.db``, …. No file that may be open elsewhere is ever renamed or
written over, so that a write-ahead log never meets another file than its own; whoever has the
older edition open sees at its next job that there is a newer one. The latest damaged file stays
for whoever wants to look at it; those before it are removed.
"""

import asyncio
import errno
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import structlog

from gateway.store.base import StoreError, StoreFull

_log = structlog.get_logger("kvgate.store")

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

READERS: Final = 4
LOCK_S: Final = 5.0
"""How long a transaction waits for those of other processes."""
WAL_BYTES: Final = 4 * 2**20
"""How long the write-ahead log may get before it is carried over into the file."""
LONGEST_WAL_BYTES: Final = 8 * WAL_BYTES
"""From here on writers wait for that."""
PAGE_BYTES: Final = 4096
READ_BYTES: Final = 2**20
APPLICATION: Final = 0x6B766731
"""Marks a file as ours and of this layout ("kvg1"); another number is another program's file."""
PRAGMAS: Final = (
    f"PRAGMA page_size={PAGE_BYTES}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",  # a crash of the system may cost the last writes, never the file
    "PRAGMA wal_autocheckpoint=0",  # a checkpoint waits for the disk: not in a job, see _keep_up
    "PRAGMA journal_size_limit=16777216",
    "PRAGMA cache_size=-4096",  # KiB per connection; the system's own cache holds the rest
    "PRAGMA temp_store=MEMORY",
    "PRAGMA cell_size_check=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA foreign_keys=OFF",
    "PRAGMA recursive_triggers=OFF",
)  # no mmap: reading behind the end of a file that was cut short would kill the process
HARMLESS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_TOOBIG,
    }
)
"""Primary result codes that say nothing against the file."""
NO_ROOM: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}
)


class DamagedError(Exception):
    """A job found what no job of ours can have written."""


class _Opened:
    """A thread's connection, and which file it belongs to."""

    __slots__ = ("connection", "edition", "inode", "ready", "schema")

    def __init__(
        self, connection: sqlite3.Connection, edition: int, inode: int, schema: str
    ) -> None:
        self.connection = connection
        self.edition = edition
        self.inode = inode
        self.schema = schema
        self.ready = False


class Database:
    """The file ``<folder>/<name>-<edition>.db``, opened when it is first needed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._schema = ""
        self._edition = 0  # not looked for yet
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._connections: set[sqlite3.Connection] = set()
        self._readers = ThreadPoolExecutor(READERS, f"kvgate-{name}-read")
        self._writer = ThreadPoolExecutor(1, f"kvgate-{name}-write")
        self._carrier = ThreadPoolExecutor(1, f"kvgate-{name}-carry")
        self._carrying = threading.Lock()

    @property
    def path(self) -> Path:
        """The newest edition's file; the folder need not exist yet."""
        return self._path(max(1, self._edition))

    def expects(self, schema: str) -> None:
        """Have tables made: statements between ``;;``, harmless when they are run again."""
        with self._lock:
            self._schema = f"{self._schema};;{schema}" if self._schema else schema

    async def read(self, job: Job[T]) -> T:
        """What ``job`` returns, from a thread. Raises: StoreError."""
        return await asyncio.wrap_future(self.read_soon(job))

    def read_soon(self, job: Job[T]) -> Future[T]:
        """Like :meth:`read`, for who need not wait. Raises: StoreError when it is closed."""
        return self._submit(self._readers, job)

    async def write(self, job: Job[T], *, durable: bool = False) -> T:
        """What ``job`` returns, done as one transaction or not at all. Raises: StoreError.

        It is done although the caller is cancelled. ``durable``: it also outlives a crash of the
        system, which costs a wait for the disk.
        """
        return await self.work(lambda connection: _whole(connection, job, durable=durable))

    def write_soon(self, job: Job[T]) -> Future[T]:
        """Like :meth:`write`, for who need not wait. Raises: StoreError when it is closed."""
        return self._submit(self._writer, lambda connection: _whole(connection, job, durable=False))

    async def work(self, job: Job[T]) -> T:
        """Like :meth:`write`, for a job that makes transactions of its own. Raises: StoreError."""
        return await asyncio.shield(asyncio.wrap_future(self._submit(self._writer, job)))

    async def close(self) -> None:
        """Finish what was begun and close the file. Later jobs raise StoreError."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._writer.shutdown()
        self._carrier.shutdown(cancel_futures=True)
        with self._lock:
            for connection in self._connections:
                with suppress(sqlite3.Error):
                    connection.close()
            self._connections.clear()

    def _submit(self, threads: ThreadPoolExecutor, job: Job[T]) -> Future[T]:
        try:
            return threads.submit(self._run, job)
        except RuntimeError:
            raise StoreError(f"{self._name}: closed") from None

    def _run(self, job: Job[T]) -> T:
        """Run ``job`` in this thread; once more if the file seems damaged, and on a new edition if it is."""
        suspected: int | None = None
        for _ in range(4):
            try:
                result = job(self._open())
            except sqlite3.ProgrammingError:  # ours, not the file's
                raise
            except (sqlite3.Error, DamagedError, OSError) as error:
                failure = _failure(f"{self._name}: {error}", error)
                opened: _Opened | None = getattr(self._mine, "opened", None)
                # undone is enough after a refusal; opening anew may need room that is not there
                if not (isinstance(failure, StoreFull) and opened and opened.ready):
                    self._drop()
                if opened is None or not _is_damage(error, self._path(opened.edition)):
                    raise failure from error
                if suspected == opened.edition:
                    if not _is_readable(self._path(opened.edition)):
                        raise failure from error
                    self._set_aside(opened.edition, error)
                suspected = opened.edition
            else:
                self._keep_up()
                return result
        raise StoreError(f"{self._name}: a new file is damaged too")

    def _open(self) -> sqlite3.Connection:
        """This thread's connection to the newest edition."""
        opened: _Opened | None = getattr(self._mine, "opened", None)
        if opened is not None:
            current = opened.edition == self._edition and opened.schema is self._schema
            if current and self._is_newest(opened):
                return opened.connection
            self._drop()
        with self._lock:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._edition = max(1, self._edition, *self._editions())
            edition, path = self._edition, self._path(self._edition)
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                self._clear(before=edition - 1)
            inode, schema = path.stat().st_ino, self._schema
        connection = sqlite3.connect(
            path, timeout=LOCK_S, isolation_level=None, check_same_thread=False
        )
        with self._lock:
            self._connections.add(connection)
        opened = self._mine.opened = _Opened(connection, edition, inode, schema)
        _prepare(connection, schema)
        opened.ready = True
        return connection

    def _is_newest(self, opened: _Opened) -> bool:
        """Whether the file is still where it was, and no other process began a newer one."""
        try:
            inode = os.stat(self._path(opened.edition)).st_ino  # noqa: PTH116 - on the path of a hit
        except FileNotFoundError:
            return False
        return inode == opened.inode and not os.path.exists(self._path(opened.edition + 1))  # noqa: PTH110 - same

    def _drop(self) -> None:
        """Close this thread's connection, which undoes what it had begun."""
        opened: _Opened | None = getattr(self._mine, "opened", None)
        if opened is None:
            return
        self._mine.opened = None
        with self._lock:
            self._connections.discard(opened.connection)
        with suppress(sqlite3.Error):
            opened.connection.close()

    def _set_aside(self, edition: int, error: Exception) -> None:
        with self._lock:
            if self._edition > edition or self._path(edition + 1).exists():
                return  # another thread or process saw it too
            self._edition = edition + 1
            broken, new = self._path(edition), self._path(edition + 1)
        _log.warning(
            "a damaged file is set aside, a new one is begun",
            file=str(broken),
            new=new.name,
            error=str(error),
        )

    def _keep_up(self) -> None:
        """Have the write-ahead log carried over once it is long, by a thread nobody waits for."""
        try:
            size = os.stat(f"{self._path(self._edition)}-wal").st_size  # noqa: PTH116 - as above
        except OSError:
            return
        if size > WAL_BYTES and self._carrying.acquire(blocking=False):
            mode = "PASSIVE" if size < LONGEST_WAL_BYTES else "RESTART"
            try:
                self._carrier.submit(self._carry, mode)
            except RuntimeError:
                self._carrying.release()

    def _carry(self, mode: str) -> None:
        try:
            with suppress(sqlite3.Error, DamagedError, OSError):  # the next job will see it too
                self._open().execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        finally:
            self._carrying.release()

    def _path(self, edition: int) -> Path:
        return self._folder / f"{self._name}-{edition}.db"

    def _editions(self) -> Iterator[int]:
        pattern = re.compile(rf"{re.escape(self._name)}-([1-9][0-9]{{0,8}})\.db")
        for file in os.listdir(self._folder):  # noqa: PTH208 - names are enough
            if found := pattern.fullmatch(file):
                yield int(found[1])

    def _clear(self, *, before: int) -> None:
        for edition in self._editions():
            if edition < before:
                for more in ("", "-wal", "-shm"):
                    with suppress(OSError):
                        Path(f"{self._path(edition)}{more}").unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<Database {self.path}, {len(self._connections)} connections>"


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; the write lock is taken at once, so that nobody is overtaken within."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def synchronous(connection: sqlite3.Connection, *, full: bool) -> Iterator[None]:
    """``full``: what is committed within outlives a crash of the system."""
    if full:
        connection.execute("PRAGMA synchronous=FULL")
    yield
    if full:  # after a failure the connection is closed
        connection.execute("PRAGMA synchronous=NORMAL")


def _whole(connection: sqlite3.Connection, job: Job[T], *, durable: bool) -> T:
    with synchronous(connection, full=durable), transaction(connection):
        return job(connection)


def _prepare(connection: sqlite3.Connection, schema: str) -> None:
    """Make the file ours if it is empty. Raises: DamagedError when it is somebody else's."""
    for attempt in range(100):
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma).fetchall()
            break
        except sqlite3.OperationalError as error:
            # of two that turn a new file to WAL at once, one is refused without waiting
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or attempt == 99:
                raise
            threading.Event().wait(0.02)
    wanted = _fingerprint(schema)
    if _marks(connection) == (APPLICATION, wanted):
        return
    with transaction(connection):
        mark, version = _marks(connection)  # another thread or process may have been first
        empty = not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        if mark != APPLICATION and not (mark == 0 and empty):
            raise DamagedError("the file belongs to another program or version")
        if version == wanted:
            return
        for statement in filter(None, schema.split(";;")):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={wanted}")


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose file it is, and for which tables."""
    ((mark,),) = connection.execute("PRAGMA application_id").fetchall()
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    return mark, version


def _fingerprint(schema: str) -> int:
    """A number for the schema's text, so that it is run again only when it changed."""
    number = 0
    for character in schema.encode():
        number = (number * 31 + character) % 0x7FFFFFFF
    return number


def _failure(message: str, error: Exception) -> StoreError:
    code = getattr(error, "sqlite_errorcode", None)
    no_room = code in NO_ROOM or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
    return StoreFull(message) if no_room else StoreError(message)


def _is_readable(path: Path) -> bool:
    """Whether the system gives the file's bytes, whatever they are."""
    try:
        with path.open("rb") as file:
            at = 0
            while data := os.pread(file.fileno(), READ_BYTES, at):
                at += len(data)
    except OSError:
        return False
    return True


def _is_damage(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError):
        return False
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_IOERR_SHORT_READ:
            return True
        if code == sqlite3.SQLITE_READONLY:  # its head says so; does the system?
            return os.access(path, os.W_OK)
        return code is None or code & 0xFF not in HARMLESS
    return True
