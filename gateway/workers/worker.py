"""One worker: ``python -m gateway.workers.worker CHANNEL NUMBER:LISTENER …``, file descriptors.

Which listener is its own it learns with its number; it closes the others.

It serves until its supervisor says so or a SIGTERM comes, then lets running answers finish. When
the supervisor is gone there is nobody to watch it and it ends at once, however it is occupied.
"""

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

import structlog

from gateway import logs
from gateway.app import GATEWAY, build, own_numbers
from gateway.flights import Tasks
from gateway.serve import Site, loop_factory
from gateway.stop_signals import on_stop_signals
from gateway.workers.channel import Channel
from gateway.workers.handover import Handover
from gateway.workers.team import FarEngines, Team

PUSH_S: Final = 1.0
"""Counts that a killed worker takes along are at most this old."""
PR_SET_PDEATHSIG: Final = 1
_log = structlog.get_logger("kvgate.workers")


class Worker:
    """What the supervisor says, and what becomes of it."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._handed_over: asyncio.Future[Handover] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._engines = FarEngines()
        self._team: Team | None = None
        self._site: Site | None = None

    async def run(
        self, channel_socket: socket.socket, listeners: Mapping[int, socket.socket]
    ) -> int:
        """Serve on one of ``listeners``, by worker's number; returns the exit code."""
        on_stop_signals(lambda _: self._asked_to_stop())
        channel = await Channel.over(
            channel_socket,
            tasks=self._tasks,
            handlers={
                "handover": self._take_over,
                "engines": self._hear_of_engines,
                "news": self._hear_news,
                "numbers": self._count,
                "drain": self._drain,
                "halt": self._halt,
            },
        )
        hearing = self._tasks.start(channel.run(), name="channel")
        hearing.add_done_callback(lambda _: self._orphaned())
        channel.say("hears")
        try:
            handover = await self._first_message()
            if handover is not None:
                for worker, other in listeners.items():
                    if worker != handover.worker:
                        other.close()
                await self._serve(handover, channel, listeners[handover.worker])
        except Exception:  # noqa: BLE001 - the process's last words, for the log
            _log.exception("worker failed")
            return 1
        finally:
            await channel.flush()
            await self._tasks.close()
        return 0

    async def _first_message(self) -> Handover | None:
        """What we are to do; None when we are not wanted any more."""
        await asyncio.wait([self._handed_over])
        if self._stop.is_set() or self._handed_over.cancelled():
            return None
        return self._handed_over.result()

    async def _serve(self, handover: Handover, channel: Channel, listener: socket.socket) -> None:
        config = handover.config
        server = config.server
        logs.configure(server.log_level, server.log_format, sys.stderr, worker=handover.worker)
        team = self._team = Team(
            handover.worker,
            kv_secret=handover.kv_secret,
            channel=channel,
            engines=self._engines if config.engine_enabled() else None,
        )
        app = await build(config, team=team)
        self._site = Site(app, grace_s=server.shutdown_grace_s)
        pushing: asyncio.Task[None] | None = None
        try:
            await self._site.start(listener)
            channel.say("serving", {"models": sorted(app[GATEWAY].router.models())})
            pushing = self._tasks.start(self._push(channel), name="numbers")
            await self._stop.wait()
        finally:
            await self._site.stop()
            if pushing is not None:
                pushing.cancel()
            channel.say("numbers", await self._count())

    async def _push(self, channel: Channel) -> None:
        """Tell what was counted, whenever that has changed."""
        told = None
        while True:
            await asyncio.sleep(PUSH_S)
            if (numbers := await self._count()) != told:
                channel.say("numbers", numbers)
                told = numbers

    async def _take_over(self, said: Any) -> None:
        self._handed_over.set_result(Handover.of(said))

    async def _hear_of_engines(self, views: Any) -> None:
        self._engines.hear(views)

    async def _hear_news(self, news: Any) -> None:
        if self._team is not None:  # else it has nothing yet that the news could be about
            await self._team.news.hear(news)

    async def _count(self, _: Any = None) -> Any:
        return own_numbers(self._site.app[GATEWAY]).as_dict() if self._site is not None else None

    async def _drain(self, _: Any) -> None:
        self._finish()

    async def _halt(self, _: Any) -> None:
        self._finish()
        self._hang_up()

    def _asked_to_stop(self) -> None:
        again = self._stop.is_set()
        self._finish()
        if again:
            self._hang_up()

    def _orphaned(self) -> None:
        self._finish()
        self._hang_up()

    def _finish(self) -> None:
        self._stop.set()
        self._handed_over.cancel()  # if it has not come yet, it need not come any more

    def _hang_up(self) -> None:
        if self._site is not None:
            self._site.hang_up()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, where it can (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Serve on what was inherited."""
    die_with_parent()
    channel_fd, *named = arguments
    channel = socket.socket(fileno=int(channel_fd))
    pairs = [name.split(":") for name in named]
    listeners = {int(number): socket.socket(fileno=int(fd)) for number, fd in pairs}
    try:
        for inherited in (channel, *listeners.values()):
            inherited.setblocking(False)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(channel, listeners))
    finally:
        for inherited in (channel, *listeners.values()):
            inherited.close()


async def _run(channel: socket.socket, listeners: Mapping[int, socket.socket]) -> int:
    return await Worker().run(channel, listeners)


if __name__ == "__main__":
    logs.catch_stray()
    sys.exit(main(sys.argv[1:]))
