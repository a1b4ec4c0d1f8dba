"""The embedded engine: a child process that is started, watched and restarted.

It is one more HTTP backend; all that is known of it here is its command line, a file it writes
its port into, ``/healthz``, and three ways to end: exit code 78 means that trying again cannot help
(a bad model file, a missing library), 75 that the model cannot be fetched yet, anything else is a crash.
The one line with which it says why it ended with 75 or 78 is logged here, and not passed on.

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
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final, Literal

import aiohttp
import structlog

from gateway.backends.child import LAST_WORDS, Child, signal_name
from gateway.config_sections import Engine, Server
from gateway.errors import BackendFault
from gateway.flights import Tasks

State = Literal["stopped", "starting", "ready", "restarting", "failed"]

CANNOT_START: Final = 78  # sysexits.h EX_CONFIG
TRY_AGAIN: Final = 75  # sysexits.h EX_TEMPFAIL
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
JITTER: Final = 0.25  # share of a delay that chance may take off
STEADY_S: Final = 60.0  # up for so long, and earlier crashes are forgotten
GRACE_S: Final = 5.0
POLL_S: Final = 0.05
RETRY_STARTING_S: Final = 2.0
RETRY_FAILED_S: Final = 60.0
PASSED_ON: Final = (
    "model", "device", "dtype", "kernels", "kv_dtype", "mla", "max_model_len", "prefix_cache",
    "block_tokens", "kv_memory", "kv_host_memory", "kv_disk.path", "kv_disk.max", "tensor_parallel",
    "threads", "chunk_tokens", "max_sequences", "speculate_tokens", "verify_share",
    "max_waiting",
)  # fmt: skip
TOKEN_VARIABLE: Final = "KVGATE_ENGINE__TOKEN"  # noqa: S105 - its name, no token
LOGGING: Final = ("log_level", "log_format")  # as we do


@dataclass(frozen=True, slots=True)
class EngineView:
    """What is known of an engine: ``address`` while there is one, and when to ask again."""

    state: State
    address: str | None = None
    retry_s: float = RETRY_STARTING_S
    reason: str | None = None

    def base_url(self) -> str:
        """Where its OpenAI routes are. Raises: BackendFault 503 while it is not ready."""
        if self.state == "ready" and self.address is not None:
            return self.address + "/v1"
        if self.state == "starting":
            raise _down("engine_starting", "the engine is starting", RETRY_STARTING_S)
        if self.state == "restarting" and self.reason is not None:
            message = "the engine waits for its model, which cannot be fetched yet"
            raise _down("engine_unavailable", message, self.retry_s)
        if self.state == "restarting":
            raise _down("engine_unavailable", "the engine is being restarted", self.retry_s)
        raise _down("engine_unavailable", "the engine does not run; see the log", RETRY_FAILED_S)


class EngineProcess:
    """The engine as a child: where it listens, how it is, and nobody left behind.

    Args:
        section: the engine's options, handed on as ``KVGATE_ENGINE__*``.
        name: for the log, where there are several.
        tasks: runs the watching.
        server: how we log, and so does the engine.
        command: what to start; flags are added.
        output: where the child's output goes on to; our own standard error by default.
        clock, sleep, draw, grace_s: time and chance, for the tests.
        on_change: called when :meth:`view` has changed.
        token: what the engine is to want of every command, asked for at each start of the child.
    """

    def __init__(
        self,
        section: Engine,
        *,
        tasks: Tasks,
        name: str | None = None,
        server: Server | None = None,
        command: Sequence[str] = (sys.executable, "-P", "-m", "engine"),
        environ: Mapping[str, str] = os.environ,
        output: BinaryIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,  # noqa: TID251  # spreads restarts, nothing else
        grace_s: float = GRACE_S,
        on_change: Callable[[], None] = lambda: None,
        token: Callable[[], str] | None = None,
    ) -> None:
        self._token = token
        self._state: State = "stopped"
        self._on_change = on_change
        self.reason: str | None = None
        """Why it failed, or is tried again later, in the engine's own words."""
        self.restarts = 0
        self._tasks = tasks
        self._command = tuple(command)
        server = server or Server()
        self._environ = child_environment(section, environ, server)
        self._as_json = server.log_format == "json"
        self._output = output if output is not None else getattr(sys.stderr, "buffer", None)
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._grace_s = grace_s
        self._folder: Path | None = None
        self._watching: asyncio.Task[None] | None = None
        self._child: Child | None = None
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
        return EngineView(self._state, self._address, wait_s + RETRY_STARTING_S, self.reason)

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
        child = self._child = Child(self._output, self._log.info if self._as_json else None)
        try:
            # By the environment: any local user may read a command line.
            token = {} if self._token is None else {TOKEN_VARIABLE: self._token()}
            await child.spawn(command, {**self._environ, **token})
        except OSError as error:
            self._child = None
            self._log.error("engine not started", reason=error.strerror)
            return 0.0
        self._log.info("engine starting", pid=child.pid)
        began_s, ready_s = self._clock(), None
        if await self._until_ready(child, port_file):
            ready_s, self.reason = self._clock(), None
            self._become("ready")
            self._log.info("engine ready", pid=child.pid, after_s=round(ready_s - began_s, 2))
        await child.exited.wait()
        self._become("restarting")  # at once: its last output may take a moment to arrive
        await child.gone()
        self._child = None
        return self._last_words(child, self._clock() - ready_s if ready_s is not None else 0.0)

    async def _until_ready(self, child: "Child", port_file: Path) -> bool:
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

    def _last_words(self, child: "Child", up_s: float) -> float | None:
        code, last_line, self.reason = child.returncode, child.last_line(), None
        if code in {CANNOT_START, TRY_AGAIN}:
            self.reason = last_line.removeprefix(LAST_WORDS) or "no reason given"
        if code == TRY_AGAIN:
            self._log.warning("engine waits for its model", reason=self.reason)
            return 0.0
        if code == CANNOT_START:
            self._log.error("engine cannot start", reason=self.reason)
            return None
        ended = {"signal": signal_name(-code)} if code < 0 else {"exit_code": code}
        self._log.error("engine crashed", **ended, up_s=round(up_s, 1), last_line=last_line)
        return up_s


def code_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child that looks for its code where ours is.

    With ``-P`` it never looks in the working directory: a folder called ``engine`` may lie there.
    """
    here = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (here, environ.get("PYTHONPATH"))))
    return {**environ, "PYTHONPATH": path}


def child_environment(
    section: Engine, environ: Mapping[str, str], server: Server
) -> dict[str, str]:
    """Ours without the gateway's own options (tenants' keys among them), with the engine's."""
    kept = {name: text for name, text in environ.items() if _is_kept(name.upper())}
    ours = code_environment(kept) | {"PYTHONUNBUFFERED": "1"}
    ours |= {f"KVGATE_ENGINE__{name.upper()}": getattr(server, name) for name in LOGGING}
    if (
        sys.stderr.isatty() and server.log_format != "json"
    ):  # the child writes to a pipe; its progress bars end at a person
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
