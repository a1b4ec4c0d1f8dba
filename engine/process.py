"""The process: listen at once, load the model, serve until told to stop.

Exit codes: 0 stopped by a signal or because the parent ended, 70 the engine failed and a restart may
help, 75 the model has to be fetched and the network does not let it (another start may), 78 it cannot start
as it was asked to (bad option, bad model file, a library or a compiler that is missing, port in use). For
75 and 78 one line says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from engine.config import EngineConfig, parse_config, usage
from engine.errors import ConfigError, MissingExtraError, StartError
from engine.server import Slot, make_app
from engine.service import Service

STOPPED, FAILED = 0, 70
_GRACE_S = 1.0  # for handlers to tell their clients
_PARENT_POLL_S = 0.5
TOKEN_VARIABLE = "KVGATE_ENGINE__TOKEN"  # noqa: S105 - its name, no token
"""With a token in it every route but /healthz wants `Authorization: Bearer <token>`. No flag says it:
any local user may read a command line."""
_log = logging.getLogger("engine")


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, and return the exit code."""
    # before torch is loaded. Its OpenMP threads else spin while they wait for each other: on a machine
    # that does anything beside, steps then take up to twenty times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(given):
        sys.stdout.write(usage() + "\n")
        return STOPPED
    try:
        token = os.environ.pop(TOKEN_VARIABLE, None)  # no child of ours needs it
        config = parse_config(given, os.environ)
        _log_to_stderr(config)
        return _run(lambda: Server(config, token).run())
    except StartError as error:
        sys.stderr.write(f"kvgate engine: {' '.join(str(error).split())}\n")
        return error.exit_code


def _log_to_stderr(config: EngineConfig) -> None:
    handler = logging.StreamHandler(sys.stderr)
    lines = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(JsonLines() if config.log_format == "json" else logging.Formatter(lines))
    logging.basicConfig(handlers=[handler], level=config.log_level.upper())
    logging.captureWarnings(capture=True)


class JsonLines(logging.Formatter):
    """One JSON object per line, with the fields that the gateway's log has."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _run(make: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        import uvloop  # noqa: PLC0415 - it is not there on Windows
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(make())


class Server:
    """One process: a listening socket, a model that is being loaded or there, a reason to stop."""

    def __init__(self, config: EngineConfig, token: str | None = None) -> None:
        self._token = token
        self._config = config
        self._slot = Slot()
        self._stopping = asyncio.Event()
        self._code = STOPPED
        self._failure: StartError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> int:
        """Serve until a signal, the parent's end, a failure to load, or a failure of the engine."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._stop, STOPPED)
        if self._config.parent_pid is not None:
            _daemon(self._watch_parent, self._config.parent_pid)
        web_runner = web.AppRunner(
            make_app(self._slot, token=self._token),
            handler_cancellation=True,
            shutdown_timeout=_GRACE_S,
            access_log=None,
        )
        await web_runner.setup()
        try:
            await self._listen(web_runner)
            _daemon(self._load)
            await self._stopping.wait()
        finally:
            if self._slot.service is not None:
                # first, so that every open stream hears an end before its connection goes
                await asyncio.to_thread(self._slot.service.engine.close)
            await web_runner.cleanup()
        if self._failure is not None:
            raise self._failure
        return self._code

    async def _listen(self, web_runner: web.AppRunner) -> None:
        config = self._config
        site = web.TCPSite(web_runner, config.host, config.port)
        try:
            await site.start()
        except (OSError, ValueError) as error:  # UnicodeError: a name that cannot be asked for
            message = f"cannot listen on {config.host!r} port {config.port}: {_reason(error)}"
            raise ConfigError(message) from None
        port = web_runner.addresses[0][1]
        _log.info("listening on http://%s:%d", config.host, port)
        if config.port_file is not None:
            try:
                _write_port(Path(config.port_file), port)
            except (OSError, ValueError) as error:
                message = f"cannot write the port file {config.port_file!r}: {_reason(error)}"
                raise ConfigError(message) from None

    def _load(self) -> None:
        """In a thread of its own: /healthz answers and signals work meanwhile."""
        try:
            try:
                from engine.loading import make_service  # noqa: PLC0415 - imports torch
            except (ImportError, OSError) as error:  # OSError: a library that a library needs
                raise MissingExtraError.of(error) from error
            service = make_service(
                self._config,
                wall_clock=time.time,  # noqa: TID251 - this is the engine's composition root
                on_fatal=self._fatal,
                draw=random.random,  # noqa: TID251 - as above: chance comes from here
            )
        except StartError as error:
            self._failure = error
            self._soon(self._stop, error.exit_code)
        except Exception:  # noqa: BLE001 - a thread's last words
            _log.exception("loading the model failed")
            self._soon(self._stop, FAILED)
        else:
            self._soon(self._loaded, service)

    def _loaded(self, service: Service) -> None:
        if not self._stopping.is_set():
            service.engine.start()
            self._slot.service = service
            _log.info("ready")

    def _fatal(self, why: str) -> None:
        _log.critical("the engine failed: %s", why)
        self._soon(self._stop, FAILED)

    def _stop(self, code: int) -> None:
        if not self._stopping.is_set():
            self._code = code
            self._stopping.set()

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        """From another thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _watch_parent(self, parent_pid: int) -> None:
        """Nobody is left to serve once the parent has ended, however it ended."""
        is_child = os.getppid() == parent_pid
        while os.getppid() == parent_pid if is_child else _exists(parent_pid):
            time.sleep(_PARENT_POLL_S)
        _log.warning("process %d has ended, so do I", parent_pid)
        self._soon(self._stop, STOPPED)
        time.sleep(2 * _GRACE_S)
        os._exit(STOPPED)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _daemon(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _reason(error: Exception) -> str:
    """In one line."""
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(said.split()) or type(error).__name__


def _write_port(path: Path, port: int) -> None:
    """All of it or nothing: whoever waits for the file reads a whole number."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(f"{port}\n", encoding="ascii")
    partial.replace(path)
