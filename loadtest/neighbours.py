"""How much of the machine others used while something was measured, and how much memory we hold.

Read from ``/proc``; where that is missing nothing is known and nothing is claimed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_IDLE: Final = (3, 4)  # of the columns of /proc/stat: idle and waiting for a disk
_GUEST: Final = 8  # from here on columns are counted in others already


def family(pid: int) -> Iterator[int]:
    """A process and all that came of it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def rss_mib(pid: int) -> float:
    """Resident memory of one process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


class Neighbours:
    """Counts from its making on. ``pids`` and what came of them are ours, and so is this process."""

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._began = self._read()

    def cores(self, seconds: float) -> float | None:
        """Cores' worth of processor time that others used in the ``seconds`` since then."""
        now = self._read()
        if now is None or self._began is None:
            return None
        return round(max(0.0, now - self._began) / seconds, 2)

    def _read(self) -> float | None:
        try:
            columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
            busy = sum(int(column) for at, column in enumerate(columns[:_GUEST]) if at not in _IDLE)
            ours = {pid for parent in self._pids for pid in family(parent)}
            return (busy - sum(_ticks(pid) for pid in ours)) / _TICKS
        except OSError:
            return None


def _ticks(pid: int) -> int:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(after_name[column]) for column in (11, 12, 13, 14))  # ended children too
