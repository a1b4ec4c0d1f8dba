"""Running the application: sockets, signals, an orderly end.

The first SIGINT, SIGTERM or SIGHUP closes the listener and lets running answers finish. Shortly before
the grace ends, clients that still wait are answered 503 ``shutting_down``, and running streams get that as
an error event. A second signal ends at once. Either way no child process is left.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.app import GATEWAY, KEEPALIVE_S, build
from gateway.backends.embedded import CANNOT_START
from gateway.backends.replicas import watch_start
from gateway.config import Config
from gateway.http_server import JsonErrorRunner
from gateway.memory_share import allowed, fitted
from gateway.stop_signals import on_stop_signals
from gateway.workers.supervisor import Supervisor

BACKLOG: Final = 1024
INTERRUPTED: Final = 130  # as shells report a second Ctrl-C
FAREWELL_S: Final = 1.0  # of the grace, at most a quarter: for telling clients, and for cleaning up
_log = structlog.get_logger("kvgate")


def serve(config: Config) -> int:
    """Serve until a signal; returns the exit code: 78 if the only engine there is cannot start.

    Raises:
        OSError: the address cannot be bound (``EADDRINUSE`` and its like).
    """
    server = config.server
    if server.workers > 1:
        listeners = _bind_several(server.host, server.port, server.workers)
    else:
        listeners = [_bind(server.host, server.port)]
    try:
        config = fitted(config, allowed())
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            if server.workers > 1:
                url, bind = url_of(listeners[0]), _beside(listeners[0])
                return runner.run(Supervisor(config, listeners, url=url, bind=bind).run())
            return runner.run(_serve(config, listeners[0]))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    finally:
        for listener in listeners:
            listener.close()


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Before anything is started: a port in use should cost no model load."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _bind_several(host: str, port: int, count: int) -> list[socket.socket]:
    """A listening socket for each worker, on one port.

    The kernel deals new connections out among such sockets evenly. One socket that all workers
    inherit would leave a burst to whoever wakes first, for as long as its connections live.
    """
    if port:  # another kvgate of this user would share the port with us without an error
        _bind(host, port).close()
    listeners = [_bind(host, port, shared=True)]
    try:
        while len(listeners) < count:
            listeners.append(_beside(listeners[0])())
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _beside(listener: socket.socket) -> Callable[[], socket.socket]:
    """What makes one more listener on the same port."""
    host, port = listener.getsockname()[:2]
    return partial(_bind, host, port, shared=True)


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """The event loop of every process of the gateway."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - not there on Windows

    return uvloop.Loop


def _without_client_text(record: logging.LogRecord) -> bool:
    """A request that is no HTTP is the client's affair: a line, but none of its bytes.

    That a client has left is no line here: a call that ends so has one of its own.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ConnectionError):
        return False
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        record.msg, record.args, record.exc_info = "a request was no valid HTTP", None, None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


class Site:
    """The application on a listening socket, until it is stopped."""

    def __init__(self, app: web.Application, *, grace_s: float) -> None:
        self.app = app
        self._grace_s = grace_s
        self._runner = JsonErrorRunner(
            app,
            handler_cancellation=True,  # a client that leaves must end its generation
            access_log=None,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=grace_s,
        )

    async def start(self, listener: socket.socket) -> None:
        """Answer what comes on ``listener``."""
        logging.getLogger("aiohttp.server").addFilter(_without_client_text)
        await self._runner.setup()
        _settle_garbage()
        await web.SockSite(self._runner, listener, backlog=BACKLOG).start()

    async def stop(self) -> None:
        """Take no more calls, let running answers finish within the grace, clean up."""
        gateway, loop = self.app[GATEWAY], asyncio.get_running_loop()
        gateway.draining.set()
        farewell_s = min(FAREWELL_S, self._grace_s / 4)
        timers = [
            loop.call_later(self._grace_s - farewell_s, gateway.flights.close),
            # aiohttp waits the grace a second time for handlers that have not ended
            loop.call_later(self._grace_s - farewell_s / 2, self.hang_up),
        ]
        try:
            await self._runner.cleanup()
        finally:
            for timer in timers:
                timer.cancel()

    def hang_up(self) -> None:
        """End what is being answered, and nothing else: what cleans up must get to its end."""
        server = self._runner.server
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()


def url_of(listener: socket.socket) -> str:
    """Where clients reach it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


async def _serve(config: Config, listener: socket.socket) -> int:
    stop = asyncio.Event()
    signals = code = 0
    site: Site | None = None

    def asked_to_stop(number: signal.Signals) -> None:
        nonlocal signals
        signals += 1
        _log.info("stopping", signal=number.name, again="ends at once")
        stop.set()
        if signals > 1 and site is not None:
            site.hang_up()

    def given_up() -> None:
        nonlocal code
        code = CANNOT_START
        stop.set()

    on_stop_signals(asked_to_stop)
    app = await build(config)
    engines = app[GATEWAY].engines
    if engines is not None and not config.backends:
        watch_start(engines, given_up)
    site = Site(app, grace_s=config.server.shutdown_grace_s)
    try:
        await site.start(listener)
        _log.info("listening", url=url_of(listener), models=sorted(app[GATEWAY].router.models()))
        await stop.wait()
    finally:
        await site.stop()
    return code if signals < 2 else INTERRUPTED


def _settle_garbage() -> None:
    """Spare the collector what lives for ever, and requests most of the collector.

    What a request makes is freed by its reference counts; looking for cycles every few hundred
    objects cost 5 to 9 % of a cache hit. The middle generation is looked at often, while it is
    small: with 400,000 objects of a long stream in it that held up the event loop for 150 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 2, 400)
