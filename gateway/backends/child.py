"""A child process whose output is passed on as it comes, and whose last words are kept for the log."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, cast

from gateway.logs import redacted

DRAIN_S: Final = 1.0
TAIL_BYTES: Final = 4096
LONGEST_LINE: Final = 300
SHOW_CURSOR: Final = b"\x1b[?25h"
LAST_WORDS: Final = "kvgate engine: "
"""What the one line begins with that says why the engine cannot start: its parent logs it."""
SAID_BY_US: Final = re.compile(rb"(?m)^%b.*\n" % LAST_WORDS.encode())
ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Child(asyncio.SubprocessProtocol):
    """One process: its output passed on as it comes, the end of it kept for the log.

    With ``say`` its lines are passed on whole, and those that are no JSON object are said by ``say``.
    """

    def __init__(self, output: BinaryIO | None, say: Callable[[str], None] | None) -> None:
        self.exited = asyncio.Event()
        self._drained = asyncio.Event()
        self.pid = 0
        self._output = output
        self._tail = bytearray()
        self._say = say
        self._unfinished = b""
        self._transport: asyncio.SubprocessTransport | None = None

    async def spawn(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it in a session of its own, so that a Ctrl-C meant for us does not reach it."""
        await asyncio.get_running_loop().subprocess_exec(
            lambda: self,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one in all but its bases
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes), fd
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if self._say is None:
            self._pass_on(SAID_BY_US.sub(b"", data))
            return
        *lines, self._unfinished = re.split(rb"[\r\n]+", self._unfinished + data)
        for line in lines:
            self._pass_on_line(line)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._drained.set()  # it has exited and its pipe is read to the end

    @property
    def returncode(self) -> int:
        """How it ended; negative for a signal."""
        assert self._transport is not None
        code = self._transport.get_returncode()
        assert code is not None
        return code

    def last_line(self) -> str:
        """The last thing it said, without colours and keys."""
        text = ANSI.sub("", self._tail.decode(errors="replace"))
        lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
        return redacted(next((line for line in reversed(lines) if line), ""))[:LONGEST_LINE]

    async def gone(self) -> None:
        """Wait until it has exited and said its last words."""
        await self.exited.wait()
        with contextlib.suppress(TimeoutError):  # what it started may hold the pipe open
            async with asyncio.timeout(DRAIN_S):
                await self._drained.wait()
        if self._output is not None and not self._output.closed and self._output.isatty():
            self._pass_on(SHOW_CURSOR)  # it may have ended in the middle of a progress bar
        if self._unfinished:
            self._pass_on_line(self._unfinished)
        self._close()

    def _pass_on_line(self, line: bytes) -> None:
        assert self._say is not None
        if line.startswith(b"{") and line.endswith(b"}"):
            self._pass_on(line + b"\n")
            return
        text = ANSI.sub("", line.decode(errors="replace")).rstrip()
        if text and not text.startswith(LAST_WORDS):
            self._say(redacted(text))

    def _pass_on(self, data: bytes) -> None:
        if self._output is not None:
            with contextlib.suppress(OSError, ValueError):  # the reader of our log has gone
                self._output.write(data)
                self._output.flush()

    async def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL for it and all it started when the grace is over."""
        if self._transport is None:
            return
        try:
            with contextlib.suppress(TimeoutError, ProcessLookupError):
                self._transport.terminate()
                async with asyncio.timeout(grace_s):
                    await self.exited.wait()
        finally:
            self._kill_group()
            await self.gone()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads its session: the group has its number

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def signal_name(number: int) -> str:
    """The name of a signal, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
