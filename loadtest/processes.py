"""Servers as child processes: started, pinned to a core, waited for, ended by their own id."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self, TypedDict, Unpack

from loadtest.neighbours import family

HERE: Final = Path(__file__).resolve().parent
START_S: Final = 30.0
STOP_S: Final = 15.0


class Kept(TypedDict, total=False):
    """What :class:`Program` may be told besides."""

    core: int | None
    ready_path: str | None
    ready_s: float
    environment: Mapping[str, str] | None
    log: Path | None


class Program:
    """A command that serves on ``port`` of loopback. A context manager.

    What it prints goes to ``log``. Ready is when ``ready_path`` answers 200, or, without one, when
    the port takes connections.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        core: int | None = None,
        ready_path: str | None = None,
        ready_s: float = START_S,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.port = port
        self._command = list(command)
        self._core = core
        self._ready_path = ready_path
        self._ready_s = ready_s
        self._environment = environment
        self._log = log

    @property
    def pid(self) -> int:
        """The process, while it runs."""
        return self._process.pid

    def __enter__(self) -> Self:
        sink = self._log.open("wb") if self._log else None
        self._process = subprocess.Popen(
            self._command,
            cwd=HERE.parent,
            env={**os.environ, **(self._environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=sink or subprocess.DEVNULL,
            stderr=sink,
        )
        if sink:
            sink.close()
        try:
            if self._core is not None:
                os.sched_setaffinity(self._process.pid, {self._core})
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + self._ready_s
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._shown()} ended with {self._process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self._shown()} was not ready within {self._ready_s:g} s")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            if self._ready_path is None:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            url = f"http://127.0.0.1:{self.port}{self._ready_path}"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _shown(self) -> str:
        log = "" if self._log is None or not self._log.exists() else self._log.read_text()[-1000:]
        return f"{' '.join(self._command[1:])}\n{log}\nIt"

    def cpu_s(self) -> float:
        """Seconds of processor time the server and its children used; 0 where nobody says."""
        try:
            return sum(_cpu_s(pid) for pid in family(self.pid))
        except OSError:
            return 0.0


class Server(Program):
    """``python -m MODULE ...`` on a free port; ``arguments`` may hold ``{port}``."""

    def __init__(self, module: str, *arguments: str, **kept: Unpack[Kept]) -> None:
        port = free_port()
        command = [sys.executable, "-m", module]
        command += [argument.format(port=port) for argument in arguments]
        super().__init__(command, port, **kept)


def _cpu_s(pid: int) -> float:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def end_properly() -> None:
    """Let SIGTERM end this process like an exception, so that the servers it started end too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> Sequence[int | None]:
    """Two cores to keep server and load generator apart; ``None`` where that is not possible."""
    if not hasattr(os, "sched_getaffinity"):
        return (None, None)
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)
