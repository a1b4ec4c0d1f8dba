"""Memory and disk as tiers: who goes for whom, what a slot's life is, and what a failing disk does."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from engine.kv.blob import Identity, complaint, fingerprint_of
from engine.kv.disk import RECORD_BYTES, BlockFile, Geometry
from engine.kv.retention import Retention
from engine.kv.stock import FAILURES_UNTIL_OFF, PAUSE_AFTER_FAILURES_S, Disk, Goods, Memory
from tests.kit.tiered import Later

FINGERPRINT = fingerprint_of(["x"])
GEOMETRY = Geometry(FINGERPRINT, 4, 100)


def identity(number: int) -> Identity:
    name = number.to_bytes(32, "big")
    return Identity(name, bytes(32), struct.pack("<4I", number, 1, 2, 3))


def goods(number: int, *, salt: str = "s", **wanted: object) -> Goods:
    retention = Retention(**wanted)  # type: ignore[arg-type]  # named at the call
    return Goods(identity(number), salt, retention, 2, False, bytes([number]) * 100)


class Bench:
    """A disk tier whose writer works when it is told to."""

    def __init__(self, folder: Path, *, slots: int = 3, queue: int = 2) -> None:
        self.later = Later(at_once=False)
        room = slots * (GEOMETRY.slot_bytes + RECORD_BYTES)
        self.file = BlockFile(folder, GEOMETRY, max_bytes=room)
        self.disk = Disk(self.file, run=self.later, queue_blocks=queue, now=0.0)

    def write(self, *numbers: int, **more: object) -> None:
        for number in numbers:
            assert self.disk.put(goods(number, **more), now=0.0)  # type: ignore[arg-type]
            self.settle()

    def settle(self) -> None:
        self.later.do()
        self.disk.collect(now=0.0)

    def on_disk(self) -> set[int]:
        return {int.from_bytes(record.key, "big") for _, record in self.file.records()}

    def there(self, number: int) -> bool:
        """Whether the block can be read, and is itself."""
        item = self.disk.shelf.get(identity(number).key)
        if item is None:
            return False
        header, payload = self.disk.read(item, bytearray(100))
        assert complaint(header, payload, identity(number), fingerprint=FINGERPRINT) is None
        assert payload == bytes([number]) * 100
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_memory_gives_back_what_it_was_given_and_what_had_to_go() -> None:
    memory = Memory(2, fingerprint=FINGERPRINT)
    assert memory.put(goods(1), now=0.0) is None
    assert memory.put(goods(2), now=0.0) is None
    gone = memory.put(goods(3), now=0.0)
    assert gone is not None
    assert gone.identity == identity(1)
    item = memory.shelf.get(identity(2).key)
    assert item is not None
    memory.shelf.open(item)
    header, payload = memory.read(item, bytearray())
    assert complaint(header, payload, identity(2), fingerprint=FINGERPRINT) is None
    memory.done_with(item, used=True)
    assert item.gone, "what went up is not kept twice"
    with pytest.raises(OSError, match="left the memory"):
        memory.read(item, bytearray())


def test_memory_keeps_what_was_read_for_nothing_and_forgets_what_is_wrong() -> None:
    memory = Memory(2, fingerprint=FINGERPRINT)
    memory.put(goods(1), now=0.0)
    (item,) = memory.shelf
    memory.shelf.open(item)
    memory.done_with(item, used=False)
    assert not item.gone
    memory.quarantine(item)
    memory.quarantine(item)
    assert memory.counts.quarantined == 1
    assert len(memory.shelf) == 0


def test_a_block_can_be_read_while_it_is_being_written_and_after(bench: Bench) -> None:
    bench.disk.put(goods(1), now=0.0)
    assert bench.there(1)
    assert bench.on_disk() == set()
    bench.settle()
    assert bench.there(1)
    assert bench.on_disk() == {1}
    assert bench.disk.counts.writes == 1


def test_the_queue_is_bounded_and_what_does_not_fit_is_counted(bench: Bench) -> None:
    assert bench.disk.put(goods(1), now=0.0)
    assert bench.disk.put(goods(2), now=0.0)
    assert not bench.disk.put(goods(3), now=0.0)
    assert bench.disk.counts.dropped == 1
    bench.settle()
    assert bench.on_disk() == {1, 2}


def test_a_full_disk_gives_the_victims_slot_to_the_newcomer(bench: Bench) -> None:
    bench.write(1, 2, 3, 4)
    assert bench.on_disk() == {2, 3, 4}
    assert [bench.there(number) for number in range(1, 5)] == [False, True, True, True]
    assert bench.disk.counts.evictions == 1
    assert not bench.disk.put(goods(5, priority="low"), now=0.0), (
        "worth less than all that is there"
    )
    assert bench.on_disk() == {2, 3, 4}


def test_what_is_being_read_is_not_overwritten(bench: Bench) -> None:
    bench.write(1, 2, 3)
    item = bench.disk.shelf.get(identity(1).key)
    assert item is not None
    bench.disk.shelf.open(item)
    bench.write(4, 5)
    assert bench.there(1)
    bench.disk.done_with(item, used=True)
    bench.write(6)
    assert bench.on_disk() == {4, 5, 6}


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("read", [False, True])
def test_what_is_forgotten_is_gone_from_the_disk_at_once_and_its_slot_is_free_when_nobody_uses_it(
    bench: Bench, *, written: bool, read: bool
) -> None:
    bench.disk.put(goods(1), now=0.0)
    (item,) = bench.disk.shelf
    if written:
        bench.settle()
    if read:
        bench.disk.shelf.open(item)
    assert bench.disk.forget([item]) == 1
    assert bench.on_disk() == set()
    bench.settle()
    assert bench.on_disk() == set(), "the writer came late"
    if read:
        bench.disk.done_with(item, used=False)
    bench.write(2, 3, 4)
    assert bench.on_disk() == {2, 3, 4}, "all three slots are in use again"


def test_the_stronger_wish_and_the_last_use_are_written_down(bench: Bench) -> None:
    bench.write(1, 2)
    item = bench.disk.shelf.get(identity(1).key)
    assert item is not None
    bench.disk.keep(item, Retention("high", 99.0), superseded=False, now=7.0)
    found = {record.key: record for _, record in bench.file.records()}
    record = found[identity(1).key]
    assert (record.priority, record.used_at, record.turn) == ("high", 7.0, 2)


def test_a_restart_knows_what_was_used_last_and_leaves_out_what_has_expired(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(1, 2)
    bench.disk.put(goods(3, expires_at=50.0), now=0.0)
    bench.settle()
    item = bench.disk.shelf.get(identity(1).key)
    assert item is not None
    bench.disk.use(item, now=9.0)
    bench.file.close()
    again = Bench(tmp_path)
    assert again.there(3)
    again.file.close()
    room = 3 * (GEOMETRY.slot_bytes + RECORD_BYTES)
    file = BlockFile(tmp_path, GEOMETRY, max_bytes=room)
    disk = Disk(file, run=lambda work: work(), queue_blocks=2, now=60.0)
    assert len(disk.shelf) == 2
    for number in (4, 5):
        disk.put(goods(number), now=60.0)
        disk.collect(now=60.0)
    kept = {int.from_bytes(item.key, "big") for item in disk.shelf}
    assert kept == {1, 4, 5}, "2 was not used since"


def test_what_was_damaged_is_not_read_again_and_its_slot_rests(bench: Bench) -> None:
    bench.write(1)
    (item,) = bench.disk.shelf
    bench.disk.shelf.open(item)
    bench.disk.quarantine(item)
    bench.disk.quarantine(item)
    bench.disk.done_with(item, used=False)
    assert bench.disk.counts.quarantined == 1
    assert bench.on_disk() == set()
    bench.write(2, 3)
    assert not bench.disk.put(goods(4), now=0.0), "two of three slots are left"
    assert bench.disk.counts.dropped == 1


def test_whatever_a_write_raises_its_place_in_the_queue_and_its_slot_are_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(bench.file, "write", no_memory)
        bench.write(1, 2)
    assert bench.disk.spare_writes == 2
    assert len(bench.disk.shelf) == 0
    assert bench.disk.counts.errors == 2
    bench.write(3, 4, 5)
    assert bench.on_disk() == {3, 4, 5}


def test_a_disk_that_fails_is_left_alone_for_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(slot: int, header: bytes, payload: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.file, "write", full)
    for _ in range(FAILURES_UNTIL_OFF):
        assert bench.disk.may_write(now=0.0)
        bench.disk.put(goods(1), now=0.0)
        bench.settle()
        assert len(bench.disk.shelf) == 0
    assert not bench.disk.may_write(now=0.0)
    assert bench.disk.may_write(now=PAUSE_AFTER_FAILURES_S)
    assert bench.disk.counts.errors == FAILURES_UNTIL_OFF
    monkeypatch.undo()
    bench.write(1, 2, 3)
    assert bench.on_disk() == {1, 2, 3}, "no slot was lost"


def test_a_record_that_cannot_be_cleared_fails_who_wanted_it_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(1, 2)

    def broken(slot: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bench.file, "clear", broken)
    with pytest.raises(OSError, match="Input/output error"):
        bench.disk.forget(list(bench.disk.shelf))
    assert len(bench.disk.shelf) == 0


def test_syncing_is_the_writers_and_its_failure_is_logged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.disk.sync_soon()
    bench.settle()

    def broken() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bench.file, "sync", broken)
    bench.disk.sync_soon()
    bench.settle()
    assert "Input/output error" in caplog.text
    bench.disk.write_at_once()
    bench.disk.put(goods(1), now=0.0)
    assert bench.on_disk() == {1}
    assert repr(bench.disk) == "Disk(1 of 3 blocks, 1 being written)"
