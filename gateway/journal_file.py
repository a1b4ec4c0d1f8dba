"""The journal on disk: lines of ``journal_lines``, written by a thread of its own.

A call costs the event loop one put into a queue; hashing, JSON and the disk are the thread's. The file
can only help: a disk that fails, or falls behind, loses lines, which are counted, and never a request.
When a file is full it becomes ``PATH.1``, that one ``PATH.2``, and so on; the oldest goes.

Beside it lies ``PATH.key``, 32 random bytes that key the hashes, so that they are the same after a
restart. Who hands a journal on keeps the key.
"""

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from operator import methodcaller
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

import orjson
import structlog

from gateway.journal_lines import Hasher
from gateway.request_log import Answered
from policies.freshness import EntryMeta

MOST_WAITING: Final = 2048
"""Lines that wait for the disk; further ones are lost. Each holds its request in memory."""
MOST_WAITING_BYTES: Final = 64 * 2**20
"""Of those requests' bodies; understood, they take about twice as much."""
CLOSE_S: Final = 5.0
"""How long the end of the process waits for a disk."""
MOST_AT_ONCE: Final = 256
KEYS_IN_A_LINE: Final = 1000
KEY_BYTES: Final = 32

_log = structlog.get_logger("kvgate.journal")
Line = dict[str, Any]


class Scribe(Protocol):
    """Makes the lines; see :class:`gateway.journal_lines.Lines`."""

    def begin(self, *, at: float) -> Line:
        """The first line of a file."""
        ...

    def call(self, answered: Answered) -> Line:
        """A call."""
        ...

    def stored(self, meta: EntryMeta, *, at: float, order: int) -> Line:
        """An answer that was stored."""
        ...

    def cleared(self, keys: Sequence[bytes], *, at: float, order: int) -> Line:
        """Answers that were removed."""
        ...


class _Waiting(NamedTuple):
    """A line to be made, and how large the request that it holds is."""

    make: Callable[[Scribe], Line]
    size_bytes: int


class JournalFile:
    """Takes what happened in one process. ``now`` is unix time, in seconds."""

    def __init__(
        self,
        path: Path,
        scribe: Callable[[Hasher], Scribe],
        *,
        key_path: Path | None = None,
        max_bytes: int,
        files: int,
        now: Callable[[], float],
    ) -> None:
        """``key_path``: several processes may share a key; ``PATH.key`` if None."""
        self._place = Rotating(path, max_bytes=max_bytes, files=files)
        self._key_path = key_path or path.with_name(f"{path.name}.key")
        self._make_scribe = scribe
        self._now = now
        self.moments = count(1)
        """Numbers for what happens, in its order: the time may stand still."""
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._put_bytes = 0  # counted up by those who put, and the other by the thread: no lock
        self._done_bytes = 0
        self._thread: threading.Thread | None = None
        self._crowded_out = 0
        self._failed = 0
        self._written = 0
        self._is_failing = False

    @property
    def written(self) -> int:
        """Lines written so far."""
        return self._written

    @property
    def lost(self) -> int:
        """Lines that the disk did not take, or not in time."""
        return self._crowded_out + self._failed

    def calls(self, answered: Sequence[Answered]) -> None:
        """Calls that were answered; those of jobs, which no client asked, have no time and no line."""
        for one in answered:
            if one.visit.asked_at:
                self._put(methodcaller("call", one), one.visit.size_bytes)

    def stored(self, meta: EntryMeta) -> None:
        """An answer was handed to the store."""
        at, order = self._now(), next(self.moments)
        self._put(methodcaller("stored", meta, at=at, order=order))

    def cleared(self, gone: Sequence[EntryMeta]) -> None:
        """Answers were removed."""
        at, order = self._now(), next(self.moments)
        for start in range(0, len(gone), KEYS_IN_A_LINE):
            keys = [meta.key for meta in gone[start : start + KEYS_IN_A_LINE]]
            self._put(methodcaller("cleared", keys, at=at, order=order))

    def close(self) -> None:
        """Write what waits, for ``CLOSE_S`` at most. Blocks; nothing may be noted afterwards."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():  # as is the file; both end with the process
                _log.warning("journal not written to its end", path=str(self._place.path))
                return
            self._thread = None
        self._place.close()

    def _put(self, make: Callable[[Scribe], Line], size_bytes: int = 0) -> None:
        waiting_bytes = self._put_bytes - self._done_bytes
        too_much = waiting_bytes and waiting_bytes + size_bytes > MOST_WAITING_BYTES
        if too_much or self._queue.qsize() >= MOST_WAITING:
            self._crowded_out += 1
            return
        self._put_bytes += size_bytes
        self._queue.put(_Waiting(make, size_bytes))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        scribe: Scribe | None = None
        last = False
        while not last:
            waiting = [self._queue.get()]
            with suppress(Empty):
                while len(waiting) < MOST_AT_ONCE:
                    waiting.append(self._queue.get_nowait())
            last = None in waiting
            made = [one.make for one in waiting if one is not None]
            try:
                if scribe is None:
                    scribe = self._make_scribe(Hasher(key_at(self._key_path)))
                self._write(scribe, made)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next lines are tried again
                self._fails(error, len(made))
            self._done_bytes += sum(one.size_bytes for one in waiting if one is not None)

    def _write(self, scribe: Scribe, made: Sequence[Callable[[Scribe], Line]]) -> None:
        lines: list[bytes] = []
        for make in made:
            try:
                lines.append(_encoded(make(scribe)))
            except Exception as error:  # noqa: BLE001 - a line that cannot be made costs that line
                self._fails(error, 1)
        self._place.write(lines, lambda: _encoded(scribe.begin(at=self._now())))
        self._written += len(lines)
        if self._is_failing and lines:
            self._is_failing = False
            _log.warning("journal written again", path=str(self._place.path), lost=self.lost)

    def _fails(self, error: Exception, lines: int) -> None:
        self._failed += lines
        if not self._is_failing:
            self._is_failing = True
            reason = f"{type(error).__name__}: {getattr(error, 'strerror', None) or ''}"
            _log.warning("journal not written", path=str(self._place.path), reason=reason)

    def __repr__(self) -> str:
        return f"<JournalFile {self._place.path.name}: {self._written} lines, {self.lost} lost>"


class Rotating:
    """A file that becomes ``PATH.1`` when it is full. Not thread-safe. Only whole lines stay in it."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._files = files
        self._file: int | None = None
        self._size = 0

    def write(self, lines: Sequence[bytes], first: Callable[[], bytes]) -> None:
        """Append ``lines``; a file that is begun, or gone on with, gets ``first``. Raises: OSError."""
        if not lines:
            return
        if self._file is None:
            self._open(first())
        portion: list[bytes] = []
        room = self._max_bytes - self._size
        for line in lines:
            if len(line) > room:
                self._append(b"".join(portion))
                portion = []
                self._rotate()
                self._open(first())
                room = self._max_bytes - self._size
            portion.append(line)
            room -= len(line)
        self._append(b"".join(portion))

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, first: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._file).st_size
        # A process that was killed may have left half a line; it shall not swallow ours.
        torn = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"
        self._append(b"\n" + first if torn else first)

    def _append(self, data: bytes) -> None:
        assert self._file is not None, "it is opened before anything is appended"
        try:
            done = os.write(self._file, data)
            if done < len(data):  # a full disk takes a part first
                raise OSError(28, "No space left on device")
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            self.close()
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        self.close()
        older = [self.path.with_name(f"{self.path.name}.{one}") for one in range(1, self._files)]
        places = [self.path, *older]
        for newer, old in reversed(list(zip(places, older, strict=False))):
            with suppress(FileNotFoundError):
                newer.replace(old)
        if not older:
            self.path.unlink(missing_ok=True)


def key_at(path: Path) -> bytes:
    """The key in a file; made when there is none. Raises: OSError, also for a file that holds none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # the first of several processes makes it
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, secrets.token_bytes(KEY_BYTES))
        finally:
            os.close(file)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise OSError(f"{path.name} holds no key of {KEY_BYTES} bytes")
    return key


def _encoded(line: Line) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
