"""Blocks on disk: one file of slots, one file that says what lies in them. Reads and writes, nothing else.

    <folder>/<n>/lock     held while a process uses place n; replicas take the first that is free
    <folder>/<n>/blocks   slot i at i * slot_bytes: header, payload (`engine.kv.blob`)
    <folder>/<n>/index    record 0: whose the place is; record i + 1: which block lies in slot i

A record is 128 bytes with a checksum of its own (its number in it) and is written in place. The order of
writes is the whole of the crash safety:

    put      clear the record of the slot  >  write the slot  >  write the record
    remove   clear the record

So whenever the process is killed a record names a block that lies there whole, or nothing; what the
process had written the system keeps. When the machine itself goes down writes may be lost in any order:
then a slot holds something else than its record says, the block's own checksums (and its key in the
header) show it, and it is a miss. Nothing is ever repaired, so nothing can be repaired wrongly, and a start
reads the index (128 bytes a block) and no data. `sync` makes removals outlive the machine as well.

Why not a database, or a file for each block (64 blocks of 720 KiB, ext4 on an NVMe disk, 2 cores; ms a
block for write / overwrite / read from the system's cache / read from the disk):

    slots of one file                  0.27 / 0.21 / 0.06 / 0.79
    the same, allocated beforehand     0.27 / 0.21 / 0.12 / 0.84     no gain: the file grows as it fills
    a file for each block, renamed     1.09 / 0.76 / 0.14 / 0.79
    SQLite (WAL), pages of 4 KiB       5.06 / 5.29 / 1.90 / 1.33     of 64 KiB: 2.12 / 4.23 / 0.27 / 0.64

and a record costs 0.002 ms where a row of SQLite costs 0.064, so the last use of a block can be written down
each time. A flipped bit costs the one block whose record it is in; it may cost a whole database.

A place belongs to one fingerprint: an engine with another model or version begins it anew.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.kv.blob import CHECKSUM_BYTES, Bytes, checksum, header_bytes
from engine.kv.retention import Retention
from engine.request import TIERS, Priority, Tier

RECORD_BYTES: Final = 128
MOST_PLACES: Final = 64
_PAGE: Final = 4096
_PRIORITIES: Final[tuple[Priority, ...]] = ("low", "medium", "high")
_FLOORS: Final[tuple[Tier | None, ...]] = (None, *TIERS)
_RECORD: Final = struct.Struct("<4s32s32s16sddBBBB")
_USED: Final = b"kvgR"
_HEAD: Final = struct.Struct("<8s32sQQQ")
_MAGIC: Final = b"kvgidx01"
_AT_ONCE: Final = 4096  # records read in one piece
_log = logging.getLogger("engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What lies in a slot. Times in seconds of the wall clock; `salt` is a digest.

    What is here may be on disk, so the ceiling needs no place; and a pin is the pool's affair.
    """

    key: bytes
    parent: bytes
    salt: bytes
    priority: Priority
    expires_at: float
    floor: Tier | None
    used_at: float
    turn: int
    shared: bool

    @property
    def wanted(self) -> Retention:
        """Its retention, in seconds of the wall clock."""
        return Retention(self.priority, self.expires_at, floor=self.floor)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Whose blocks, and how large they are."""

    fingerprint: bytes
    block_tokens: int
    block_bytes: int

    @property
    def header_bytes(self) -> int:
        return header_bytes(self.block_tokens)

    @property
    def slot_bytes(self) -> int:
        """Header and payload, in whole pages."""
        return -(-(self.header_bytes + self.block_bytes) // _PAGE) * _PAGE


class BlockFile:
    """A place on disk that this process alone uses. Every method may raise `OSError`.

    Slots may be read and written by several threads; one slot by one at a time, which is the caller's care.
    """

    def __init__(self, folder: Path, geometry: Geometry, *, max_bytes: int) -> None:
        """Take a place in `folder`, which is made if need be, and keep it until `close`."""
        self.geometry = geometry
        self.slots = max_bytes // (geometry.slot_bytes + RECORD_BYTES)
        self.folder, self._lock = _take_place(folder)
        self._index = _open(self.folder / "index")
        self._blocks = _open(self.folder / "blocks")
        if os.pread(self._index, RECORD_BYTES, 0) != self._head():
            self._begin()
        _shorten(self._index, (self.slots + 1) * RECORD_BYTES)  # a smaller `max` than last time
        _shorten(self._blocks, self.slots * geometry.slot_bytes)

    def _head(self) -> bytes:
        geometry = self.geometry
        words = _HEAD.pack(
            _MAGIC, geometry.fingerprint, geometry.block_tokens, geometry.block_bytes,
            geometry.slot_bytes,
        )  # fmt: skip
        return _sealed(words, 0)

    def _begin(self) -> None:
        if os.fstat(self._index).st_size:
            _log.info("%s: blocks of another model or version go", self.folder)
        os.truncate(self._index, 0)
        os.truncate(self._blocks, 0)
        os.pwrite(self._index, self._head(), 0)

    def records(self) -> Iterator[tuple[int, Record]]:
        """(slot, what lies there), by the index alone; records that are damaged are left out."""
        for first in range(0, self.slots, _AT_ONCE):
            wanted = min(_AT_ONCE, self.slots - first)
            piece = os.pread(self._index, wanted * RECORD_BYTES, (first + 1) * RECORD_BYTES)
            if not piece:
                break
            for slot in range(first, first + len(piece) // RECORD_BYTES):
                at = (slot - first) * RECORD_BYTES
                record = _record_in(piece[at : at + RECORD_BYTES], slot)
                if record is not None:
                    yield slot, record

    def describe(self, slot: int, record: Record) -> None:
        """Say what lies in a slot; the last write of `put`."""
        words = _RECORD.pack(
            _USED, record.key, record.parent, record.salt, record.expires_at, record.used_at,
            _PRIORITIES.index(record.priority), min(record.turn, 255), _FLOORS.index(record.floor),
            record.shared,
        )  # fmt: skip
        os.pwrite(self._index, _sealed(words, slot + 1), (slot + 1) * RECORD_BYTES)

    def clear(self, slot: int) -> None:
        """Nothing lies in this slot any more, not even after a kill."""
        os.pwrite(self._index, bytes(RECORD_BYTES), (slot + 1) * RECORD_BYTES)

    def write(self, slot: int, header: Bytes, payload: Bytes) -> None:
        """The bytes of a block; its record must be clear, and is not written here."""
        assert len(header) + len(payload) <= self.geometry.slot_bytes
        pieces, at = [memoryview(header), memoryview(payload)], slot * self.geometry.slot_bytes
        while pieces:
            done = os.pwritev(self._blocks, pieces, at)
            at += done
            while pieces and done >= len(pieces[0]):
                done -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][done:]

    def read(self, slot: int, payload: bytearray) -> bytes:
        """Fill `payload` and return the header. Less than was asked for is an `OSError`."""
        header = bytearray(self.geometry.header_bytes)
        wanted = len(header) + len(payload)
        found = os.preadv(self._blocks, [header, payload], slot * self.geometry.slot_bytes)
        if found != wanted:
            raise OSError(f"slot {slot} ends after {found} of {wanted} bytes")
        return bytes(header)

    def sync(self) -> None:
        """What was removed stays removed even if the machine goes down now. Waits for the disk."""
        os.fdatasync(self._index)

    def close(self) -> None:
        """Give the place up. May be called twice."""
        for name in ("_index", "_blocks", "_lock"):
            descriptor = getattr(self, name)
            setattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)

    def __repr__(self) -> str:
        return f"BlockFile({self.folder}, {self.slots} slots of {self.geometry.slot_bytes} bytes)"


def _sealed(words: bytes, number: int) -> bytes:
    """A record: its words and a checksum that also covers where it stands."""
    body = words.ljust(RECORD_BYTES - CHECKSUM_BYTES, b"\0")
    return body + checksum(number.to_bytes(8, "little") + body)


def _record_in(data: bytes, slot: int) -> Record | None:
    words = data[: _RECORD.size]
    if not words.startswith(_USED) or _sealed(words, slot + 1) != data:
        return None
    _, key, parent, salt, expires_at, used_at, rank, turn, floor, shared = _RECORD.unpack(words)
    return Record(
        key=key,
        parent=parent,
        salt=salt,
        priority=_PRIORITIES[rank],
        expires_at=expires_at,
        floor=_FLOORS[floor],
        used_at=used_at,
        turn=turn,
        shared=bool(shared),
    )


def _shorten(file: int, most: int) -> None:
    os.truncate(file, min(os.fstat(file).st_size, most))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _take_place(folder: Path) -> tuple[Path, int]:
    """The first place that no living process holds. Raises `OSError`."""
    for number in range(MOST_PLACES):
        place = folder / str(number)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _open(place / "lock")
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return place, lock
        os.close(lock)
    raise OSError(f"{folder}: {MOST_PLACES} engines use it already")
