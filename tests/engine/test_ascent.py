"""Blocks on their way up: shared, checked, given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kv.ascent import Fetch, Fetcher
from tests.engine.test_stock import FINGERPRINT, Bench, identity
from tests.kit.clock import Clock
from tests.kit.tiered import Later


class Lab:
    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.bench.write(1, 2)
        self.clock, self.reads, self.woken = Clock(), Later(at_once=False), 0
        self.fetcher = Fetcher(FINGERPRINT, 100, self.clock.monotonic, self.reads)
        self.fetcher.wake = self._woken

    def _woken(self) -> None:
        self.woken += 1

    def begin(self, number: int, *, as_if: int | None = None) -> Fetch:
        name = identity(number if as_if is None else as_if)
        part = self.fetcher.under_way(name.key)
        if part is None:
            item = self.bench.disk.shelf.get(identity(number).key)
            assert item is not None
            part = self.fetcher.begin(self.bench.disk, item, name)
        part.users += 1
        return Fetch(0, [part])


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_a_block_is_usable_once_it_was_read_and_is_given_by_its_number(lab: Lab) -> None:
    fetch = lab.begin(1)
    before = fetch.done, fetch.part(0)
    lab.reads.do()
    assert before == (False, None)
    assert fetch.done
    assert lab.woken == 1
    part = fetch.part(0)
    assert part is not None
    assert part.payload == b"\1" * 100
    assert fetch.part(1) is None
    assert fetch.part(-1) is None
    lab.fetcher.judge(part)
    lab.fetcher.judge(part)
    assert lab.bench.disk.counts.reads == 1
    lab.fetcher.release(part)
    assert lab.fetcher.blocks == 0


def test_two_who_want_the_same_block_read_it_once(lab: Lab) -> None:
    one, two = lab.begin(1), lab.begin(1)
    assert one.parts == two.parts
    assert len(lab.reads.waiting) == 1
    lab.reads.do()
    (part,) = one.parts
    lab.fetcher.release(part)
    assert two.part(0) is part, "the other still needs it"
    assert part.item.readers == 1
    lab.fetcher.release(part)
    assert part.item.readers == 0
    assert lab.fetcher.under_way(part.item.key) is None


def test_who_leaves_early_is_not_read_for_and_the_block_moves_only_afterwards(lab: Lab) -> None:
    fetch = lab.begin(1)
    (part,) = fetch.parts
    lab.fetcher.release(part)
    assert part.item.readers == 1, "the reader may be at it"
    again = lab.begin(1)
    assert again.parts != fetch.parts
    lab.reads.do()
    lab.fetcher.sweep()
    assert part.payload == b""
    assert again.part(0) is not None
    lab.fetcher.judge(part)
    assert lab.bench.disk.counts.quarantined == 0
    lab.fetcher.release(again.parts[0])
    assert lab.fetcher.blocks == 0


def test_what_is_not_the_block_that_was_asked_for_is_quarantined(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    fetch = lab.begin(2, as_if=1)
    lab.reads.do()
    assert fetch.done
    assert fetch.part(0) is None
    lab.fetcher.judge(fetch.parts[0])
    assert "a block of the cold tier is not used: it is another block" in caplog.text
    assert lab.bench.disk.counts.quarantined == 1


def test_a_read_that_fails_is_quarantined_too(
    lab: Lab, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "0" / "blocks").write_bytes(b"")
    fetch = lab.begin(1)
    lab.reads.do()
    lab.fetcher.judge(fetch.parts[0])
    assert "ends after 0 of" in caplog.text
    assert fetch.part(0) is None


def test_what_is_invalidated_on_its_way_is_not_used(lab: Lab) -> None:
    fetch = lab.begin(1)
    lab.reads.do()
    (part,) = fetch.parts
    lab.bench.disk.forget([part.item])
    assert fetch.part(0) is None
    assert lab.fetcher.under_way(part.item.key) is None
    lab.fetcher.release(part)
    lab.bench.write(3, 4)
    assert lab.bench.on_disk() == {2, 3, 4}


def test_who_asks_for_a_damaged_block_before_it_is_judged_does_not_wait_for_ever(lab: Lab) -> None:
    damaged = lab.begin(1, as_if=2)
    lab.reads.do()
    again = lab.begin(1)  # the first asker still waits for others of its blocks, so nobody judged
    lab.fetcher.judge(damaged.parts[0])
    lab.reads.do()
    assert again.done
    assert again.part(0) is None


def test_whatever_a_read_raises_who_waits_for_it_hears_of_it(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(lab.bench.disk, "read", no_memory)
    fetch = lab.begin(1)
    lab.reads.do()
    assert fetch.done
    assert lab.woken == 1
    lab.fetcher.judge(fetch.parts[0])
    assert "a block of the cold tier is not used: MemoryError" in caplog.text
