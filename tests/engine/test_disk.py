"""Slots and records on disk: what is written is what a next process finds, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kv.disk import RECORD_BYTES, BlockFile, Geometry, Record

GEOMETRY = Geometry(b"f" * 32, 4, 5000)
ROOM = 8 * (GEOMETRY.slot_bytes + RECORD_BYTES)


def record(number: int) -> Record:
    return Record(
        key=bytes([number]) * 32,
        parent=bytes([number + 1]) * 32,
        salt=b"s" * 16,
        priority="high",
        expires_at=float("inf"),
        floor="cold",
        used_at=12.5,
        turn=300,
        shared=True,
    )


@pytest.fixture
def file(tmp_path: Path) -> BlockFile:
    return BlockFile(tmp_path, GEOMETRY, max_bytes=ROOM)


def test_what_is_written_is_read_and_described_after_a_restart(
    tmp_path: Path, file: BlockFile
) -> None:
    header, payload = b"h" * GEOMETRY.header_bytes, os.urandom(5000)
    file.write(3, header, payload)
    file.describe(3, record(7))
    file.describe(0, record(8))
    file.clear(0)
    file.sync()
    file.close()
    file.close()
    again = BlockFile(tmp_path, GEOMETRY, max_bytes=ROOM)
    ((slot, found),) = again.records()
    assert slot == 3
    assert found == Record(**{name: getattr(record(7), name) for name in Record.__slots__[:-2]},
                           turn=255, shared=True)  # fmt: skip
    buffer = bytearray(5000)
    assert again.read(3, buffer) == header
    assert buffer == payload


def test_a_slot_that_is_not_there_whole_is_an_error(file: BlockFile) -> None:
    with pytest.raises(OSError, match="slot 5 ends after 0 of"):
        file.read(5, bytearray(5000))


def test_every_flipped_byte_of_a_record_loses_that_record_alone(
    tmp_path: Path, file: BlockFile
) -> None:
    for slot in (1, 2):
        file.describe(slot, record(slot))
    index = tmp_path / "0" / "index"
    whole = index.read_bytes()
    for at in range(2 * RECORD_BYTES, 3 * RECORD_BYTES):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        index.write_bytes(flipped)
        assert [slot for slot, _ in file.records()] == [2], at
    index.write_bytes(whole)
    assert [slot for slot, _ in file.records()] == [1, 2]


def test_a_record_in_anothers_place_is_not_believed(tmp_path: Path, file: BlockFile) -> None:
    file.describe(1, record(1))
    index = tmp_path / "0" / "index"
    whole = bytearray(index.read_bytes())
    whole[4 * RECORD_BYTES : 5 * RECORD_BYTES] = whole[2 * RECORD_BYTES : 3 * RECORD_BYTES]
    index.write_bytes(whole)
    assert [slot for slot, _ in file.records()] == [1]


def test_another_fingerprint_or_a_damaged_head_begins_the_place_anew(tmp_path: Path) -> None:
    def opened(geometry: Geometry = GEOMETRY) -> list[int]:
        file = BlockFile(tmp_path, geometry, max_bytes=ROOM)
        found = [slot for slot, _ in file.records()]
        if not found:
            file.describe(1, record(1))
        file.close()
        return found

    assert opened() == []
    assert opened() == [1]
    assert opened(Geometry(b"g" * 32, 4, 5000)) == []
    assert opened() == []
    index = tmp_path / "0" / "index"
    for at in range(RECORD_BYTES):
        flipped = bytearray(index.read_bytes())
        flipped[at] ^= 1
        index.write_bytes(flipped)
        assert opened() == [], at
        assert opened() == [1], at


def test_a_smaller_size_than_last_time_cuts_the_files(tmp_path: Path, file: BlockFile) -> None:
    file.write(7, b"", b"x")
    for slot in (0, 7):
        file.describe(slot, record(slot))
    file.close()
    smaller = BlockFile(tmp_path, GEOMETRY, max_bytes=ROOM // 2)
    assert smaller.slots == 4
    assert [slot for slot, _ in smaller.records()] == [0]
    assert (tmp_path / "0" / "blocks").stat().st_size == 4 * GEOMETRY.slot_bytes


def test_each_process_has_a_place_of_its_own_and_a_dead_ones_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from tests.engine.test_disk import *\n"
        "file = BlockFile(pathlib.Path(sys.argv[1]), GEOMETRY, max_bytes=ROOM)\n"
        "print(file.folder.name, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        mine = BlockFile(tmp_path, GEOMETRY, max_bytes=ROOM)
        assert mine.folder.name == "1"
        other.kill()
        other.wait()
        assert BlockFile(tmp_path, GEOMETRY, max_bytes=ROOM).folder.name == "0"
        mine.close()
    assert repr(mine).startswith("BlockFile(")


def test_files_are_the_owners_alone(tmp_path: Path, file: BlockFile) -> None:
    for name in ("index", "blocks", "lock"):
        assert (tmp_path / "0" / name).stat().st_mode & 0o077 == 0
    assert (tmp_path / "0").stat().st_mode & 0o077 == 0
