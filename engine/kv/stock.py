"""The two tiers below the pool: a directory each (`shelf`), and where the bytes are.

    Memory   host memory beside a device's own; a block that goes up leaves it
    Disk     slots of a file (`disk`), written behind by one thread; a block that goes up stays, so that
             it need not be written again when the pool lets go of it

The engine's thread owns both directories; other threads only carry bytes. So that a block which is
forgotten while it is being written does not come back, its record is written under the lock under which
it is forgotten.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from engine.kv.blob import Bytes, Identity, salt_digest, seal
from engine.kv.disk import BlockFile, Record
from engine.kv.retention import Retention
from engine.kv.shelf import Item, Shelf
from engine.request import Tier

Run = Callable[[Callable[[], None]], object]
"""Has a piece of work done, by and by, in the order it was given."""
FAILURES_UNTIL_OFF: Final = 3
PAUSE_AFTER_FAILURES_S: Final = 60.0
_log = logging.getLogger("engine")


@dataclass(frozen=True, slots=True)
class Goods:
    """A block on its way down. `wanted` is in seconds of the wall clock."""

    identity: Identity
    salt: str
    wanted: Retention
    turn: int
    shared: bool
    payload: Bytes


@dataclass(slots=True)
class Counts:
    """Of one tier since start, in blocks."""

    hits: int = 0
    misses: int = 0
    declined: int = 0
    reads: int = 0
    writes: int = 0
    evictions: int = 0
    quarantined: int = 0
    dropped: int = 0
    errors: int = 0
    invalidated: int = 0


class Stock(Protocol):
    """One tier below the pool. Called by the engine's thread, but for `read`."""

    name: Literal["warm", "cold"]
    shelf: Shelf
    counts: Counts

    def use(self, item: Item, /, *, now: float) -> None:
        """It was asked for. `now` of the wall clock."""

    def keep(self, item: Item, wanted: Retention, /, *, superseded: bool, now: float) -> None:
        """The pool let go of it too: the stronger wish of both counts, and this is a use."""

    def read(self, item: Item, payload: bytearray, /) -> tuple[Bytes, Bytes]:
        """Header and payload; `payload` may be filled and returned. From any thread. Raises `OSError`."""

    def forget(self, items: Iterable[Item], /) -> int:
        """These blocks are gone, and stay so after a kill. Returns how many. Raises `OSError`."""

    def done_with(self, item: Item, /, *, used: bool) -> None:
        """A reader that had opened it on the shelf is done; the pool may have it now."""

    def quarantine(self, item: Item, /) -> None:
        """What was read is not what it should be: never to be read again."""


class Memory:
    """Blocks in host memory, at most `most`."""

    name: Literal["warm", "cold"] = "warm"

    def __init__(
        self, most: int, *, fingerprint: bytes, tiers_below: tuple[Tier, ...] = ()
    ) -> None:
        self.shelf = Shelf(most, tiers_below=tiers_below)
        self.counts = Counts()
        self._fingerprint = fingerprint

    def put(self, goods: Goods, *, now: float) -> Goods | None:
        """Take a block in; returns who had to go for it, perhaps this one."""
        item = _item_of(goods)
        header = seal(
            goods.identity,
            goods.payload,
            fingerprint=self._fingerprint,
            expires_at=item.wanted.expires_at,
        )
        item.held = (header, goods)
        victim = self.shelf.put(item, now=now)
        self.counts.writes += 1
        if victim is None:
            return None
        self.counts.evictions += 1
        gone: Goods = victim.held[1]
        victim.held = None
        return gone

    def use(self, item: Item, /, *, now: float) -> None:  # noqa: ARG002 - nothing to write down
        self.shelf.use(item)

    def keep(self, item: Item, wanted: Retention, /, *, superseded: bool, now: float) -> None:
        self.shelf.retain(item, wanted, superseded=superseded, now=now)
        self.use(item, now=now)

    def read(self, item: Item, payload: bytearray, /) -> tuple[Bytes, Bytes]:  # noqa: ARG002 - no copy
        held = item.held
        if held is None:
            raise OSError("it has left the memory")
        header, goods = held
        return header, goods.payload

    def forget(self, items: Iterable[Item], /) -> int:
        count = 0
        for item in items:
            self.shelf.remove(item)
            item.held = None
            count += 1
        return count

    def done_with(self, item: Item, /, *, used: bool) -> None:
        self.shelf.close(item)
        if used and not item.readers and not item.gone:
            self.shelf.remove(item)
            item.held = None

    def quarantine(self, item: Item, /) -> None:
        if not item.gone:
            self.counts.quarantined += 1
            self.shelf.remove(item)
            item.held = None


class Disk:
    """Blocks in a file, written by `run` after the call has returned; bytes in memory are bounded."""

    name: Literal["warm", "cold"] = "cold"

    def __init__(
        self,
        file: BlockFile,
        *,
        run: Run,
        queue_blocks: int,
        now: float,
    ) -> None:
        """Find what is there; what has expired by `now` (wall clock) goes. Raises `OSError`."""
        self.file = file
        self.shelf = Shelf(file.slots)
        self.counts = Counts()
        self._run = run
        self._queue_blocks = queue_blocks
        self.wake: Callable[[], None] = lambda: None
        """Called by the writer's thread when something was written."""
        self._guard = threading.Lock()
        self._written: deque[tuple[Item, str | None]] = deque()
        self._writing = 0
        self._failures = 0
        self._resting_until = -math.inf
        self._recover(now)

    def _recover(self, now: float) -> None:
        found = sorted(self.file.records(), key=lambda one: (one[1].used_at, one[0]))
        used: set[int] = set()
        for slot, record in found:
            if record.expires_at <= now or record.key in self.shelf:
                self.file.clear(slot)
                continue
            used.add(slot)
            item = Item(
                key=record.key,
                parent=record.parent,
                salt=record.salt,
                wanted=record.wanted,
                turn=record.turn,
                shared=record.shared,
                place=slot,
            )
            gone = self.shelf.put(item, now=now)
            assert gone is None, "there are as many places as slots"
        self._fresh = max(used, default=-1) + 1  # slots from here on were never used
        self._free = [slot for slot in range(self._fresh - 1, -1, -1) if slot not in used]

    @property
    def free_slots(self) -> int:
        """Slots that a block could be written to now."""
        return len(self._free) + self.file.slots - self._fresh

    def _slot(self) -> int:
        """A free slot; those that were used before first, so that the file stays short."""
        if self._free:
            return self._free.pop()
        self._fresh += 1
        return self._fresh - 1

    @property
    def spare_writes(self) -> int:
        """How many blocks could be queued for writing now."""
        return self._queue_blocks - self._writing

    def may_write(self, *, now: float) -> bool:
        """False for a while after writing has failed several times. `now` of the wall clock."""
        return now >= self._resting_until

    def keep(self, item: Item, wanted: Retention, /, *, superseded: bool, now: float) -> None:
        self.shelf.retain(item, wanted, superseded=superseded, now=now)
        self.use(item, now=now)

    def use(self, item: Item, /, *, now: float) -> None:
        """It was asked for, which is written down: a restart knows what was used last."""
        self.shelf.use(item)
        if item.held is None and not item.gone:
            try:
                self.file.describe(item.place, _record_of(item, used_at=now))
            except OSError as error:
                self._failed(error, now=now)

    def put(self, goods: Goods, *, now: float) -> bool:
        """Have a block written. False when it is not worth a place, or the queue is full."""
        if self.spare_writes <= 0:
            self.counts.dropped += 1
            return False
        item = _item_of(goods)
        header = seal(
            goods.identity,
            goods.payload,
            fingerprint=self.file.geometry.fingerprint,
            expires_at=item.wanted.expires_at,
        )
        victim = self.shelf.put(item, now=now)
        if victim is item:
            return False
        if victim is not None:
            self.counts.evictions += 1
            self.drop(victim, now=now)
        if not self.free_slots:  # slots in quarantine, or still being written
            self.shelf.remove(item)
            self.counts.dropped += 1
            return False
        item.place = self._slot()
        item.held = (header, goods.payload)
        self._writing += 1
        self._run(lambda: self._write(item, header, goods.payload, now))
        return True

    def _write(self, item: Item, header: Bytes, payload: Bytes, now: float) -> None:
        """In the writer's thread."""
        failure = None
        try:
            if not item.gone:
                self.file.write(item.place, header, payload)
            with self._guard:
                if not item.gone:
                    self.file.describe(item.place, _record_of(item, used_at=now))
        except Exception as error:  # noqa: BLE001 - else its place in the queue were lost
            failure = str(error) or type(error).__name__
        self._written.append((item, failure))
        self.wake()

    def collect(self, *, now: float) -> None:
        """Take note of what was written since the last call. `now` of the wall clock."""
        while self._written:
            item, failure = self._written.popleft()
            self._writing -= 1
            item.held = None
            if failure is None:
                self._failures = 0
                self.counts.writes += 1
            else:
                self._failed(OSError(failure), now=now)
                self.shelf.remove(item)
            if item.gone and not item.readers:
                self._free.append(item.place)

    def sync_soon(self) -> None:
        """Have what was forgotten stay forgotten even if the machine itself goes down."""
        self._run(self._sync)

    def _sync(self) -> None:
        try:
            self.file.sync()
        except OSError as error:
            _log.error("%r: %s", self.file, error)

    def write_at_once(self) -> None:
        """From now on writing is done before the call returns: the writer's thread has ended."""
        self._run = lambda work: work()

    def read(self, item: Item, payload: bytearray, /) -> tuple[Bytes, Bytes]:
        held = item.held
        if held:  # not written yet, or just now; of what is in quarantine it is empty
            header, kept = held
            return header, kept
        return self.file.read(item.place, payload), payload

    def forget(self, items: Iterable[Item], /) -> int:
        failure: OSError | None = None
        count = 0
        for item in items:
            count += 1
            self.shelf.remove(item)
            try:
                self._vacate(item)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
        return count

    def drop(self, item: Item, /, *, now: float) -> None:
        """As `forget`, but the engine is to go on: what a failing disk keeps, the next process finds."""
        self.shelf.remove(item)
        try:
            self._vacate(item)
        except OSError as error:
            self._failed(error, now=now)

    def _vacate(self, item: Item) -> None:
        """The slot of a block that is gone: free now, or when its reader or writer is done."""
        with self._guard:
            self.file.clear(item.place)
        if item.held is None and not item.readers:
            self._free.append(item.place)

    def done_with(self, item: Item, /, *, used: bool) -> None:  # noqa: ARG002 - it stays
        self.shelf.close(item)
        if item.gone and item.held is None and not item.readers:
            self._free.append(item.place)

    def quarantine(self, item: Item, /) -> None:
        """Its slot is not used again by this process: what failed there once may fail again."""
        if item.gone:
            return
        self.counts.quarantined += 1
        self.shelf.remove(item)
        try:
            self.file.clear(item.place)
        except OSError as error:
            _log.error("%r: %s", self.file, error)
        item.held = item.held or ()  # never free

    def _failed(self, error: OSError, *, now: float) -> None:
        self.counts.errors += 1
        self._failures += 1
        _log.error("%r: %s", self.file, error)
        if self._failures >= FAILURES_UNTIL_OFF:
            self._failures = 0
            self._resting_until = now + PAUSE_AFTER_FAILURES_S
            _log.error("%r: nothing is written for %.0f s", self.file, PAUSE_AFTER_FAILURES_S)

    def __repr__(self) -> str:
        return f"Disk({len(self.shelf)} of {self.shelf.most} blocks, {self._writing} being written)"


def _item_of(goods: Goods) -> Item:
    return Item(
        key=goods.identity.key,
        parent=goods.identity.parent,
        salt=salt_digest(goods.salt),
        wanted=goods.wanted,
        turn=goods.turn,
        shared=goods.shared,
    )


def _record_of(item: Item, *, used_at: float) -> Record:
    return Record(
        key=item.key,
        parent=item.parent,
        salt=item.salt,
        priority=item.wanted.priority,
        expires_at=item.wanted.expires_at,
        floor=item.wanted.floor,
        used_at=used_at,
        turn=item.turn,
        shared=item.shared,
    )
