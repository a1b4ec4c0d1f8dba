"""The processes of the other ranks, as rank 0 sees them: started, watched, ended. Torch-free.

Signals do not end them, they end with rank 0: `end_all` on its way out, and each looks after its parent
for the ways out that nobody walks (SIGKILL).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from engine.errors import ConfigError

CANNOT_START: Final = 78
_started: Final[list[Ranks]] = []


class Ranks:
    """Ranks 1, 2, … in the order of `start`, and the folder in which they meet."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvgate-ranks-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._ending = False
        _started.append(self)

    def start(self, words: Sequence[str], *, path: str) -> None:
        """One more, with its Python's search path. Raises `ConfigError` when this process is ending."""
        with self._lock:
            if self._ending:
                raise ConfigError("tensor_parallel: the engine is ending")
            process = subprocess.Popen(  # noqa: S603 -- our own module
                words, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL
            )
            self._processes.append(process)

    def lost(self) -> str | None:
        """What became of one that has ended, or None."""
        for rank, process in enumerate(self._processes, 1):
            if process.poll() is not None:
                return _end_of(rank, process.returncode)
        return None

    def watch(self, on_lost: Callable[[str], None]) -> None:
        """From now on tell, in a thread, who ends before `end`."""
        for rank, process in enumerate(self._processes, 1):
            work = threading.Thread(target=self._await, args=(rank, process, on_lost), daemon=True)
            work.start()

    def _await(
        self, rank: int, process: subprocess.Popen[bytes], on_lost: Callable[[str], None]
    ) -> None:
        code = process.wait()
        if not self._ending:
            on_lost(_end_of(rank, code))

    def remove_folder(self) -> None:
        """They have met."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """End them and wait for it. They hold nothing that must be kept. May be called twice."""
        with self._lock:
            self._ending = True
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.wait()
            self.remove_folder()


def _end_of(rank: int, code: int) -> str:
    if code == CANNOT_START:
        return f"rank {rank} cannot start, and has said why"
    return f"rank {rank} has ended, with {code}"


def end_all() -> None:
    """The last thing that a process does which has other ranks."""
    for ranks in _started:
        ranks.end()
