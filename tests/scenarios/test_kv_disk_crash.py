"""Processes that write KV to disk are killed at random moments, two hundred times over.

Whoever opens the place afterwards starts, and finds each block exact or not at all.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.doomed_kv_writer import SLOTS, found_in, opened

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 200
LONGEST_LIFE_S = 0.05


class Doomed:
    """One process at a time that writes, and is killed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def write(self, seed: str) -> int:
        """Have one begin; its process number."""
        assert self._process.stdin is not None
        self._process.stdin.write(seed + "\n")
        self._process.stdin.flush()
        return int(self.hear())

    def hear(self) -> str:
        """The next line it says."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self, number: int) -> None:
        """Kill it, and return when it is gone."""
        os.kill(number, signal.SIGKILL)
        assert self.hear() == "ended"


@contextmanager
def doomed(folder: Path) -> Iterator[Doomed]:
    command = [sys.executable, "-m", "tests.kit.doomed_kv_writer", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Doomed(process)
        finally:
            process.kill()


def test_two_hundred_kills_under_write_load_leave_exact_hits_and_misses(tmp_path: Path) -> None:
    dice = random.Random(20261126)
    found = wrong = changed = 0
    before = -1
    with doomed(tmp_path) as one:
        for seed in range(ROUNDS):
            number = one.write(str(seed))
            time.sleep(dice.random() * LONGEST_LIFE_S)  # the moment is the test
            one.end(number)
            disk = opened(tmp_path)
            disk.shelf.check_integrity()
            there, not_exact, _ = found_in(disk)
            assert there == len(disk.shelf) <= SLOTS
            found, wrong, changed = found + there, wrong + not_exact, changed + (there != before)
            before = there
            disk.file.close()
    assert wrong == 0
    assert found > 10 * ROUNDS, "there was something to be wrong"
    assert changed > ROUNDS / 4, "the writers did something in their lives"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["0"], (
        "a dead one's place is taken"
    )


def test_what_was_forgotten_before_a_kill_stays_forgotten(tmp_path: Path) -> None:
    dice = random.Random(7)
    with doomed(tmp_path) as one:
        for seed in range(20):
            number = one.write(f"{seed} forget")
            assert one.hear() == "gone"
            time.sleep(dice.random() * LONGEST_LIFE_S / 4)  # the moment is the test
            one.end(number)
            disk = opened(tmp_path)
            there, wrong, salts = found_in(disk)
            assert wrong == 0
            assert salts <= {"b"}
            assert there
            disk.file.close()
