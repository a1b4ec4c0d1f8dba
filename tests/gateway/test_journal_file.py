"""The journal reaches the disk whole, in bounds, and its failures cost nothing but lines."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import journal_file as module
from gateway.journal_file import JournalFile, Rotating, key_at
from gateway.journal_lines import Hasher
from gateway.request_log import Answered, Visit
from policies.freshness import EntryMeta
from policies.outcome import Outcome
from tests.kit.clock import Clock
from tests.kit.entries import asked, meta_of


class Scribe:
    """Says little, and what it is told to."""

    def __init__(self, hasher: Hasher) -> None:
        self.hasher = hasher

    def begin(self, *, at: float) -> dict[str, Any]:
        return {"kind": "begin", "at": at}

    def call(self, answered: Answered) -> dict[str, Any]:
        if answered.visit.request_id == "defect":
            raise ValueError("a defect")
        return {"kind": "call", "id": answered.visit.request_id, "key": self.hasher.of("key", "k")}

    def stored(self, meta: EntryMeta, *, at: float, order: int) -> dict[str, Any]:
        return {"kind": "stored", "at": at, "order": order, "bytes": meta.size_bytes}

    def cleared(self, keys: Sequence[bytes], *, at: float, order: int) -> dict[str, Any]:
        return {"kind": "cleared", "keys": len(keys), "at": at, "order": order}


def journal(path: Path, scribe: Callable[[Hasher], Scribe] = Scribe, **more: Any) -> JournalFile:
    clock = Clock()
    return JournalFile(
        path,
        scribe,
        now=clock.now,
        **{"max_bytes": 2**20, "files": 3, **more},
    )


def call(request_id: str, *, asked_at: float = 1.0, size_bytes: int = 0) -> Answered:
    request, plan = asked()
    visit = Visit(request_id, "chat", 0.0, request, plan, asked_at=asked_at)
    visit.size_bytes = size_bytes
    return Answered(visit, plan, Outcome(key="k", tier="warm"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_what_happened_is_written_in_its_order_by_the_time_of_closing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    book = journal(path)
    book.calls([call("1"), call("of a job", asked_at=0.0)])
    book.stored(meta_of(size_bytes=7))
    book.cleared([meta_of("a"), meta_of("b")])
    book.cleared([])
    book.close()
    begin, first, stored, cleared = lines(path)
    assert begin == {"kind": "begin", "at": 1_700_000_000.0}
    assert (first["id"], len(first["key"])) == ("1", 16)
    assert (stored["bytes"], stored["at"], stored["order"]) == (7, 1_700_000_000.0, 1)
    assert cleared["keys"] == 2
    assert (book.written, book.lost) == (3, 0)
    assert repr(book) == "<JournalFile j.jsonl: 3 lines, 0 lost>"
    assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "j.jsonl.key").stat().st_mode & 0o077 == 0


def test_nothing_is_opened_before_there_is_something_to_write(tmp_path: Path) -> None:
    book = journal(tmp_path / "j")
    book.close()
    book.calls([])
    assert list(tmp_path.iterdir()) == []


def test_the_hashes_are_the_same_after_a_restart_and_a_file_goes_on(tmp_path: Path) -> None:
    for name in ("1", "2"):
        book = journal(tmp_path / "j")
        book.calls([call(name)])
        book.close()
    kinds = [line["kind"] for line in lines(tmp_path / "j")]
    assert kinds == ["begin", "call", "begin", "call"]
    assert len({line["key"] for line in lines(tmp_path / "j") if line["kind"] == "call"}) == 1


def test_a_removal_of_many_has_several_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEYS_IN_A_LINE", 2)
    book = journal(tmp_path / "j")
    book.cleared([meta_of(name) for name in "abcde"])
    book.close()
    assert [line["keys"] for line in lines(tmp_path / "j")[1:]] == [2, 2, 1]


def test_a_full_file_makes_way_and_the_oldest_goes(tmp_path: Path) -> None:
    place = Rotating(tmp_path / "j", max_bytes=30, files=3)
    for number in range(10):
        place.write([b"line %d....\n" % number, b"more %d....\n" % number], lambda: b"first\n")
    place.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["j", "j.1", "j.2"]
    for file in tmp_path.iterdir():
        text = file.read_bytes()
        assert len(text) <= 30
        assert text.startswith(b"first\n")
        assert text.endswith(b"\n")
    assert b"line 9" in (tmp_path / "j").read_bytes() + (tmp_path / "j.1").read_bytes()
    assert (tmp_path / "j").read_bytes().endswith(b"more 9....\n")


def test_a_single_file_begins_anew(tmp_path: Path) -> None:
    place = Rotating(tmp_path / "j", max_bytes=20, files=1)
    place.write([b"one\n" * 3], lambda: b"first\n")
    place.write([b"two\n" * 3], lambda: b"first\n")
    place.write([], lambda: b"not asked for")
    place.close()
    assert [file.name for file in tmp_path.iterdir()] == ["j"]
    assert (tmp_path / "j").read_bytes() == b"first\ntwo\ntwo\ntwo\n"


def test_half_a_line_of_a_process_that_was_killed_swallows_no_other(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'whole\n{"half')
    place = Rotating(tmp_path / "j", max_bytes=100, files=1)
    place.write([b"one\n"], lambda: b"first\n")
    place.close()
    assert (tmp_path / "j").read_bytes() == b'whole\n{"half\nfirst\none\n'


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many bytes as the list's number says can be written, then no more."""
    room, write = [0], os.write

    def scarce(file: int, data: bytes) -> int:
        if len(data) == module.KEY_BYTES:
            return write(file, data)
        if not room[0] and data:
            raise OSError(28, "No space left on device")
        done = write(file, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", scarce)
    return room


def test_a_full_disk_loses_lines_and_leaves_no_half_ones(
    tmp_path: Path, full_disk: list[int]
) -> None:
    place = Rotating(tmp_path / "j", max_bytes=1000, files=2)
    full_disk[0] = 11
    with pytest.raises(OSError, match="No space"):
        place.write([b"does not fit\n"], lambda: b"first\n")
    assert (tmp_path / "j").read_bytes() == b"first\n"
    full_disk[0] = 1000
    place.write([b"fits\n"], lambda: b"again\n")
    place.close()
    assert (tmp_path / "j").read_bytes() == b"first\nagain\nfits\n"


def test_a_disk_that_fails_is_told_of_once_and_lines_go_on_when_it_works(
    tmp_path: Path, full_disk: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(module._log, "warning", lambda event, **_: told.append(event))
    monkeypatch.setattr(module, "MOST_AT_ONCE", 1)
    book = journal(tmp_path / "j")
    book.calls([call("1"), call("2")])
    wait_until(lambda: book.lost == 2)
    full_disk[0] = 10**6
    book.calls([call("3")])
    book.close()
    assert (book.written, book.lost) == (1, 2)
    assert [line.get("id") for line in lines(tmp_path / "j")] == [None, "3"]
    assert told == ["journal not written", "journal written again"]


def wait_until(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(10_000):
        if condition():
            return
        waited.wait(0.01)
    raise AssertionError("it never came")


def test_a_path_that_cannot_be_costs_lines_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    book = journal(tmp_path / "file" / "j")
    book.calls([call("1")])
    book.close()
    assert (book.written, book.lost) == (0, 1)


def test_a_line_that_cannot_be_made_costs_that_line(tmp_path: Path) -> None:
    book = journal(tmp_path / "j")
    book.calls([call("1"), call("defect"), call("2")])
    book.close()
    assert [line.get("id") for line in lines(tmp_path / "j")] == [None, "1", "2"]
    assert (book.written, book.lost) == (2, 1)


def test_a_defect_in_the_first_line_ends_no_thread(tmp_path: Path) -> None:
    broken = [True]

    class Sometimes(Scribe):
        def begin(self, *, at: float) -> dict[str, Any]:
            if broken.pop():
                raise ValueError("a defect")
            broken.append(False)
            return {}

    broken.insert(0, False)
    book = journal(tmp_path / "j", Sometimes)
    book.calls([call("1")])
    wait_until(lambda: book.lost == 1)
    book.calls([call("2")])
    book.close()
    assert (book.written, book.lost) == (1, 1)


class SlowDisk:
    """A scribe's maker that takes as long as it is told to."""

    def __init__(self) -> None:
        self.released, self.entered = threading.Event(), threading.Event()

    def __call__(self, hasher: Hasher) -> Scribe:
        self.entered.set()
        assert self.released.wait(60)
        return Scribe(hasher)


def test_lines_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    disk = SlowDisk()
    book = journal(tmp_path / "j", disk)
    book.calls([call("1")])
    assert disk.entered.wait(60)
    book.calls([call("2"), call("3"), call("4")])
    disk.released.set()
    book.close()
    assert (book.written, book.lost) == (3, 1)


def test_requests_that_wait_are_bounded_by_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_BYTES", 100)
    disk = SlowDisk()
    book = journal(tmp_path / "j", disk)
    book.calls([call("alone, it may be as large as it likes", size_bytes=500)])
    book.calls([call("too much", size_bytes=1)])
    disk.released.set()
    wait_until(lambda: book.written == 1)
    wait_until(lambda: book._done_bytes == book._put_bytes)
    book.calls([call("small again", size_bytes=60)])
    book.close()
    assert [line["id"] for line in lines(tmp_path / "j")[1:]] == [
        "alone, it may be as large as it likes",
        "small again",
    ]
    assert book.lost == 1


def test_a_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.01)
    disk = SlowDisk()
    book = journal(tmp_path / "j", disk)
    book.calls([call("1")])
    book.close()
    assert "journal not written to its end" in capsys.readouterr().out
    disk.released.set()
    wait_until(lambda: book.written == 1)
    monkeypatch.undo()
    book.close()


def test_a_key_is_made_once_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    key = key_at(path)
    assert len(key) == 32
    assert key_at(path) == key
    assert key_at(tmp_path / "other") != key
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="no key of 32 bytes"):
        key_at(path)
