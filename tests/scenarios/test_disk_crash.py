"""Processes that write to the disk tier are killed at random moments, two hundred times over.

Whoever opens the file afterwards finds each entry exact or not at all, and can write.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.store.disk import DiskStore, open_database
from tests.kit.doomed_writer import MAX_BYTES, answer, found_in
from tests.kit.entries import NOW

ROOT = Path(__file__).parent.parent.parent
ROUNDS = 200
LONGEST_LIFE_S = 0.04


class Doomed:
    """One process at a time that writes, and is killed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def write(self, seed: int) -> int:
        """Have one begin; its process number."""
        self._say(str(seed))
        return int(self._hear())

    def end(self, number: int) -> None:
        """Kill it, and return when it is gone."""
        os.kill(number, signal.SIGKILL)
        assert self._hear() == "ended"

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def doomed(folder: Path) -> Iterator[Doomed]:
    command = [sys.executable, "-m", "tests.kit.doomed_writer", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Doomed(process)
        finally:
            process.kill()


def files_in(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*.db")]


async def test_two_hundred_kills_under_write_load_leave_no_wrong_answer_and_no_failed_start(
    tmp_path: Path,
) -> None:
    dice = random.Random(20261122)
    found = wrong = 0
    with doomed(tmp_path) as one, doomed(tmp_path) as other:
        for seed in range(ROUNDS // 2):
            first, second = one.write(2 * seed), other.write(2 * seed + 1)
            time.sleep(dice.random() * LONGEST_LIFE_S)  # noqa: ASYNC251 - the moment is the test
            one.end(first)
            time.sleep(dice.random() * LONGEST_LIFE_S)  # noqa: ASYNC251 - same
            other.end(second)
            database = open_database(tmp_path)
            store = DiskStore("warm", database, max_bytes=MAX_BYTES)
            await store.put(answer("0", dice), now=NOW)
            there, not_exact = await found_in(store)
            found, wrong = found + there, wrong + not_exact
            assert store.fill().size_bytes <= MAX_BYTES
            await database.close()
    assert wrong == 0
    assert found > 5 * ROUNDS  # there was something to be wrong
    assert files_in(tmp_path) == ["responses-1.db"]


async def test_a_writer_that_was_killed_holds_up_nobody_who_writes_beside_it(
    tmp_path: Path,
) -> None:
    database = open_database(tmp_path)
    store = DiskStore("warm", database, max_bytes=MAX_BYTES)
    dice = random.Random(1)
    with doomed(tmp_path) as one:
        for seed in range(4):
            number = one.write(seed)
            for _ in range(10):
                await store.put(answer("0", dice), now=NOW)
            one.end(number)
            await store.put(answer("0", dice), now=NOW)
            assert (await found_in(store))[1] == 0
    await database.close()
