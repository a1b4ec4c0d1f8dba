"""Running the application: sockets, signals, an orderly end.

The first SIGINT or SIGTERM closes the listener and lets running answers finish within the
grace; a second one ends at once. Either way no child process is left.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.app import GATEWAY, KEEPALIVE_S, build
from gateway.config import Config

BACKLOG: Final = 1024
INTERRUPTED: Final = 130  # as shells report a second Ctrl-C
_log = structlog.get_logger("kvgate")


def serve(config: Config) -> int:
    """Serve until a signal; returns the exit code.

    Raises:
        OSError: the address cannot be bound (``EADDRINUSE`` and its like).
    """
    listener = _bind(config.server.host, config.server.port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(config, listener))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    finally:
        listener.close()


def _bind(host: str, port: int) -> socket.socket:
    """Before anything is started: a port in use should cost no model load."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - not there on Windows

    return uvloop.Loop


def _without_client_text(record: logging.LogRecord) -> bool:
    """A request that is no HTTP is the client's affair: a line, but none of its bytes."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        record.msg, record.args, record.exc_info = "a request was no valid HTTP", None, None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


async def _serve(config: Config, listener: socket.socket) -> int:
    stop = asyncio.Event()
    signals = 0
    logging.getLogger("aiohttp.server").addFilter(_without_client_text)
    app = await build(config)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that leaves must end its generation
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=config.server.shutdown_grace_s,
    )

    def asked_to_stop(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        _log.info("stopping", signal=number.name, again="ends at once")
        stop.set()
        if signals > 1:
            _hang_up(runner)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop, number)
    try:
        await runner.setup()
        _settle_garbage()
        await web.SockSite(runner, listener).start()
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info(
            "listening", url=f"http://{shown}:{port}", models=sorted(app[GATEWAY].router.models())
        )
        await stop.wait()
    finally:
        await runner.cleanup()
    return 0 if signals < 2 else INTERRUPTED


def _settle_garbage() -> None:
    """Spare the collector what lives for ever, and requests most of the collector.

    What a request makes is freed by its reference counts; looking for cycles every few hundred
    objects cost 5 to 9 % of a cache hit.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _hang_up(runner: web.AppRunner) -> None:
    """End what is being answered, and nothing else: what cleans up must get to its end."""
    for connection in runner.server.connections if runner.server is not None else ():
        if connection.transport is not None:
            connection.transport.abort()
