"""The embedded engine: a child process that is started, watched and restarted.

It is one more HTTP backend; all that is known of it here is its command line, a file it writes
its port into, ``/healthz``, and two ways to end: exit code 78 means that trying again cannot help
(a bad model file, no network to fetch one), anything else is a crash.

::

    start() ─► starting ──/healthz 200──► ready ──exit──► restarting ──backoff──► starting
                   └──────────exit 78──────┴────────────► failed         stop() ─► stopped

No child outlives the gateway: :meth:`EngineProcess.stop` ends it, and it watches its parent for
the case that nobody calls that.
"""

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast

import aiohttp
import structlog

from gateway.config_sections import Engine
from gateway.errors import BackendFault
from gateway.flights import Tasks
from gateway.logs import redacted

State = Literal["stopped", "starting", "ready", "restarting", "failed"]

CANNOT_START: Final = 78  # sysexits.h EX_CONFIG
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
JITTER: Final = 0.25  # share of a delay that chance may take off
STEADY_S: Final = 60.0  # up for so long, and earlier crashes are forgotten
GRACE_S: Final = 5.0
DRAIN_S: Final = 1.0
POLL_S: Final = 0.05
RETRY_STARTING_S: Final = 2.0
RETRY_FAILED_S: Final = 60.0
TAIL_BYTES: Final = 4096
LONGEST_LINE: Final = 300
PASSED_ON: Final = (
    "model", "device", "dtype", "kernels", "kv_dtype", "mla", "max_model_len", "prefix_cache",
    "block_tokens", "kv_memory", "kv_host_memory", "kv_disk.path", "kv_disk.max", "tensor_parallel",
    "threads", "chunk_tokens", "max_sequences", "speculate_tokens", "verify_share",
    "max_waiting",
)  # fmt: skip
SHOW_CURSOR: Final = b"\x1b[?25h"
ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class EngineView:
    """What is known of an engine: ``address`` while there is one, and when to ask again."""

    state: State
    address: str | None = None
    retry_s: float = RETRY_STARTING_S

    def base_url(self) -> str:
        """Where its OpenAI routes are. Raises: BackendFault 503 while it is not ready."""
        if self.state == "ready" and self.address is not None:
            return self.address + "/v1"
        if self.state == "starting":
            raise _down("engine_starting", "the engine is starting", RETRY_STARTING_S)
        if self.state == "restarting":
            raise _down("engine_unavailable", "the engine is being restarted", self.retry_s)
        raise _down("engine_unavailable", "the engine does not run; see the log", RETRY_FAILED_S)


class EngineProcess:
    """The engine as a child: where it listens, how it is, and nobody left behind.

    Args:
        section: the engine's options, handed on as ``KVGATE_ENGINE__*``.
        name: for the log, where there are several.
        tasks: runs the watching.
        command: what to start; flags are added.
        output: where the child's output goes on to; our own standard error by default.
        clock, sleep, draw, grace_s: time and chance, for the tests.
        on_change: called when :meth:`view` has changed.
    """

    def __init__(
        self,
        section: Engine,
        *,
        tasks: Tasks,
        name: str | None = None,
        command: Sequence[str] = (sys.executable, "-P", "-m", "engine"),
        environ: Mapping[str, str] = os.environ,
        output: BinaryIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,  # noqa: TID251  # spreads restarts, nothing else
        grace_s: float = GRACE_S,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._state: State = "stopped"
        self._on_change = on_change
        self.reason: str | None = None
        """Why it failed, in the engine's own words."""
        self.restarts = 0
        self._tasks = tasks
        self._command = tuple(command)
        self._environ = child_environment(section, environ)
        self._output = output if output is not None else getattr(sys.stderr, "buffer", None)
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._grace_s = grace_s
        self._folder: Path | None = None
        self._watching: asyncio.Task[None] | None = None
        self._child: _Child | None = None
        self._address: str | None = None
        self._next_try_s = 0.0
        self._log = structlog.get_logger("kvgate.engine", **({"engine": name} if name else {}))

    def __repr__(self) -> str:
        pid = self._child.pid if self._child else None
        return f"<EngineProcess {self.state} pid={pid} restarts={self.restarts}>"

    @property
    def state(self) -> State:
        """How it is."""
        return self._state

    def view(self) -> EngineView:
        """How it is and where, to be told to others."""
        wait_s = max(self._next_try_s - self._clock(), 0.0)
        return EngineView(self._state, self._address, wait_s + RETRY_STARTING_S)

    async def start(self) -> None:
        """Begin to start it; returns at once."""
        self._folder = Path(tempfile.mkdtemp(prefix="kvgate-"))
        self._become("starting")
        self._watching = self._tasks.start(self._guarded(self._folder), name="engine")

    def base_url(self) -> str:
        """Where its OpenAI routes are. Raises: BackendFault 503 while it is not ready."""
        return self.view().base_url()

    def _become(self, state: State) -> None:
        self._state = state
        self._on_change()

    async def stop(self) -> None:
        """End the child: SIGTERM, a grace, SIGKILL. Safe to call at any time, and twice."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._address = None
        self._become("stopped")
        child, self._child = self._child, None
        if child is not None:
            await child.end(self._grace_s)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _guarded(self, folder: Path) -> None:
        try:
            await self._watch(folder)
        except Exception:
            self.reason = "a defect of the gateway"
            self._become("failed")
            self._log.exception("engine no longer watched")
            raise

    async def _watch(self, folder: Path) -> None:
        crashes = 0
        while True:
            self._become("starting")
            up_s = await self._live_once(folder / f"port-{self.restarts}")
            self._address = None
            if up_s is None:
                self._become("failed")
                return
            crashes = 1 if up_s >= STEADY_S else crashes + 1
            delay_s = min(FIRST_DELAY_S * 2 ** min(crashes - 1, 16), LONGEST_DELAY_S)
            delay_s *= 1 - JITTER * self._draw()
            self._next_try_s = self._clock() + delay_s
            self._become("restarting")
            self.restarts += 1
            self._log.warning("engine restarts", in_s=round(delay_s, 2), restarts=self.restarts)
            await self._sleep(delay_s)

    async def _live_once(self, port_file: Path) -> float | None:
        """One life of the child: how many seconds it was ready, None if another is pointless."""
        flags = {"--host": "127.0.0.1", "--port": 0, "--port-file": port_file}
        flags["--parent-pid"] = os.getpid()
        command = (*self._command, *(str(word) for pair in flags.items() for word in pair))
        child = self._child = _Child(self._output)
        try:
            await child.spawn(command, self._environ)
        except OSError as error:
            self._child = None
            self._log.error("engine not started", reason=error.strerror)
            return 0.0
        self._log.info("engine starting", pid=child.pid)
        began_s, ready_s = self._clock(), None
        if await self._until_ready(child, port_file):
            ready_s = self._clock()
            self._become("ready")
            self._log.info("engine ready", pid=child.pid, after_s=round(ready_s - began_s, 2))
        await child.exited.wait()
        self._become("restarting")  # at once: its last output may take a moment to arrive
        await child.gone()
        self._child = None
        return self._last_words(child, self._clock() - ready_s if ready_s is not None else 0.0)

    async def _until_ready(self, child: "_Child", port_file: Path) -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not child.exited.is_set():
                if self._address is None:
                    self._address = _address_in(port_file)
                if self._address is not None:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with session.get(self._address + "/healthz") as answer:
                            if answer.status == 200:
                                return True
                await self._sleep(POLL_S)
        return False

    def _last_words(self, child: "_Child", up_s: float) -> float | None:
        code, last_line = child.returncode, child.last_line()
        if code == CANNOT_START:
            self.reason = last_line or "no reason given"
            self._log.error("engine cannot start", reason=self.reason)
            return None
        ended = {"signal": _signal_name(-code)} if code < 0 else {"exit_code": code}
        self._log.error("engine crashed", **ended, up_s=round(up_s, 1), last_line=last_line)
        return up_s


class _Child(asyncio.SubprocessProtocol):
    """One process: its output passed on as it comes, the end of it kept for the log."""

    def __init__(self, output: BinaryIO | None) -> None:
        self.exited = asyncio.Event()
        self._drained = asyncio.Event()
        self.pid = 0
        self._output = output
        self._tail = bytearray()
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
        self._pass_on(data)

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
        self._close()

    def _pass_on(self, data: bytes) -> None:
        if self._output is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads our log any more
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


def code_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child that looks for its code where ours is.

    With ``-P`` it never looks in the working directory: a folder called ``engine`` may lie there.
    """
    here = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (here, environ.get("PYTHONPATH"))))
    return {**environ, "PYTHONPATH": path}


def child_environment(section: Engine, environ: Mapping[str, str]) -> dict[str, str]:
    """Ours without the gateway's own options (tenants' keys among them), with the engine's."""
    kept = {name: text for name, text in environ.items() if _is_kept(name.upper())}
    ours = code_environment(kept) | {"PYTHONUNBUFFERED": "1"}
    if sys.stderr.isatty():  # the child writes to a pipe; its progress bars end at a person
        width = str(shutil.get_terminal_size().columns)
        ours |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": width}
    for name in PASSED_ON:
        value = attrgetter(name)(section)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if value is not None:
            ours[f"KVGATE_ENGINE__{name.upper().replace('.', '__')}"] = text
    return ours


def _is_kept(variable: str) -> bool:
    kept = ("KVGATE_CACHE_DIR", "KVGATE_TEST_")
    return not variable.startswith("KVGATE_") or variable.startswith(kept)


def _address_in(port_file: Path) -> str | None:
    try:
        return f"http://127.0.0.1:{int(port_file.read_text())}"
    except (OSError, ValueError):
        return None  # not written yet


def _down(code: str, message: str, retry_after_s: float) -> BackendFault:
    return BackendFault(
        message, code=code, status=503, retry_after_s=retry_after_s, cause="not_asked"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
