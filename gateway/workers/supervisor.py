"""The supervisor: starts the workers, watches them, carries their messages, ends them.

It answers no request itself. The life of one worker's place::

    spawn ─► starting ──serving──► serving ──exit──► spawn again, at once or after a while
                 └─exit with a code, at the first start─► everything ends: it would not be better
                                                          the second time

At the first signal the listening sockets close, the workers finish their running answers, then the
engine ends, then we do. A second one ends at once. No child is left behind: a worker is killed by the
kernel, or ends when its channel does; the engine watches us.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from asyncio import FIRST_COMPLETED
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from gateway.backends.child import signal_name
from gateway.backends.embedded import CANNOT_START, code_environment
from gateway.backends.replicas import Replicas, watch_start
from gateway.config import Config
from gateway.flights import Tasks
from gateway.kv_secret import engine_token, kv_secret
from gateway.numbers import Numbers, added_up
from gateway.stop_signals import on_stop_signals
from gateway.tally import Statistics
from gateway.workers.channel import Channel, ChannelError, Handler
from gateway.workers.handover import Handover
from gateway.workers.team import COUNTED_WITHIN_S, HEARD_WITHIN_S, told

INTERRUPTED: Final = 130
FAILED: Final = 1
STEADY_S: Final = 60.0  # up for so long, and earlier crashes are forgotten
AT_ONCE: Final = 3  # crashes in a row after which the next start waits
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
BEYOND_GRACE_S: Final = 5.0  # for cleaning up, after the last answer
HALT_S: Final = 3.0
LAST_WORDS_S: Final = 1.0
COMMAND: Final = (sys.executable, "-P", "-m", "gateway.workers.worker")

Bind = Callable[[], socket.socket]
_log = structlog.get_logger("kvgate.workers")


@dataclass(slots=True, eq=False)
class Recruit:
    """A process, before and after it got its place. It has inherited ``listeners``, by number."""

    process: Process
    listeners: Mapping[int, socket.socket]
    place: "Place | None" = None
    hears: bool = False  # it takes messages: what it knows from now on, it knows after them

    def fits(self, place: "Place") -> bool:
        """Whether it could serve there."""
        return self.process.returncode is None and (
            self.listeners.get(place.number) is place.listener and place.listener.fileno() >= 0
        )


@dataclass(slots=True, eq=False)
class Place:
    """One worker's place: it stays while processes come and go."""

    number: int
    listener: socket.socket
    recruit: Recruit | None = None
    channel: Channel | None = None
    serving: bool = False
    began_s: float = 0.0
    crashes: int = 0
    counted: Numbers = field(default_factory=lambda: Numbers(Statistics()))


class Supervisor:
    """All places, the engine, and the way of messages between them."""

    def __init__(
        self,
        config: Config,
        listeners: Sequence[socket.socket],
        *,
        url: str,
        bind: Bind,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
        delay_after: Callable[[int], float] | None = None,
    ) -> None:
        self._config = config
        self._bind = bind
        self._command = tuple(command)
        self._clock = clock
        self._delay_after = delay_after or _delay_after
        self._kv_secret = b""
        self._tasks = Tasks()
        self._places = [Place(number, sock) for number, sock in enumerate(listeners, 1)]
        self._url = url
        self._left = Numbers(Statistics())
        self._announced = False
        self._spare: tuple[Recruit, Channel] | None = None
        self._stopping = asyncio.Event()
        self._halting = asyncio.Event()
        self._code = 0
        self._engines: Replicas | None = None
        if config.engine_enabled():
            more: Any = {"server": config.server, "token": lambda: engine_token(self._kv_secret)}
            self._engines = Replicas(config.engine, tasks=self._tasks, **more)
            self._engines.watch(self._tell_of_engines)
            if not config.backends:
                watch_start(self._engines, self._given_up)

    def __repr__(self) -> str:
        serving = sum(place.serving for place in self._places)
        return f"<Supervisor {serving}/{len(self._places)} serving, engines {self._engines!r}>"

    async def run(self) -> int:
        """Until a signal; returns the exit code."""
        on_stop_signals(self._asked_to_stop)
        try:
            self._kv_secret = await kv_secret(self._config)
            if self._engines is not None:
                await self._engines.start()
            keeping = [
                self._tasks.start(self._keep(place), name=f"worker {place.number}")
                for place in self._places
            ]
            self._tasks.start(self._keep_spare(), name="spare worker")
            await self._stopping.wait()
            await self._drain(keeping)
        finally:
            await self._dismiss_spare()
            for place in self._places:
                _kill(place.recruit)
            if self._engines is not None:
                await self._engines.stop()
            await self._tasks.close()
        return self._code

    def _asked_to_stop(self, number: signal.Signals) -> None:
        _log.info("stopping", signal=number.name, again="ends at once")
        if self._stopping.is_set():
            self._code = INTERRUPTED
            self._halting.set()
        self._stopping.set()

    def _given_up(self) -> None:
        self._code = CANNOT_START
        self._stopping.set()

    async def _drain(self, keeping: Sequence["asyncio.Task[None]"]) -> None:
        """Take no more connections, wait for the running answers, and not for ever."""
        await self._dismiss_spare()
        for place in self._places:
            place.listener.close()
            if place.serving and place.channel is not None:
                place.channel.say("drain")
            elif place.recruit is not None:
                place.recruit.process.terminate()  # it may not hear yet
        ended = self._tasks.start(_all(keeping), name="all workers")
        halting = self._tasks.start(_until(self._halting), name="halting")
        within_s = self._config.server.shutdown_grace_s + BEYOND_GRACE_S
        await asyncio.wait([ended, halting], timeout=within_s, return_when=FIRST_COMPLETED)
        if not ended.done():
            for place in self._places:
                if place.channel is not None:
                    place.channel.say("halt")
            await asyncio.wait([ended], timeout=HALT_S)
        for place in self._places:
            _kill(place.recruit)
        await ended

    async def _keep(self, place: Place) -> None:
        """Keep a process in this place."""
        while not self._stopping.is_set():
            try:
                exit_code = await self._live_once(place)
            except OSError as error:  # no memory, no descriptors: it may pass
                _log.error("worker not started", worker=place.number, reason=str(error))
                exit_code = FAILED
            if self._stopping.is_set():
                return
            if exit_code > 0 and not self._announced:
                _log.error("a worker cannot start; the reason is above", worker=place.number)
                self._code = FAILED
                self._stopping.set()
                return
            await self._pause(place, exit_code)

    async def _live_once(self, place: Place) -> int:
        """One process in this place, to its end; returns how it ended."""
        place.began_s = self._clock()
        if place.listener.fileno() < 0:
            place.listener = self._bind()
        recruit, channel = self._take_spare(place) or await self._spawn(place)
        process, recruit.place = recruit.process, place
        place.recruit, place.channel = recruit, channel
        _log.info("worker starting", worker=place.number, pid=process.pid)
        handover = Handover(place.number, self._config, self._kv_secret)
        channel.say("handover", handover.as_dict())
        if self._engines is not None:
            channel.say("engines", told(self._engines.view()))
        try:
            exit_code = await process.wait()
            await channel.gone(within_s=LAST_WORDS_S)
        finally:
            channel.close()
            place.serving, place.channel, place.recruit = False, None, None
            self._left = added_up([self._left, place.counted.left()])
            place.counted = Numbers(Statistics())
        ended = {"signal": signal_name(-exit_code)} if exit_code < 0 else {"exit_code": exit_code}
        level = "info" if exit_code == 0 else "error"
        getattr(_log, level)("worker ended", worker=place.number, pid=process.pid, **ended)
        return exit_code

    async def _spawn(self, *places: Place) -> tuple[Recruit, Channel]:
        """A process that can take one of these places."""
        listeners = {place.number: place.listener for place in places}
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            names = [f"{number}:{sock.fileno()}" for number, sock in listeners.items()]
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(theirs.fileno()),
                    *names,
                    pass_fds=(theirs.fileno(), *(sock.fileno() for sock in listeners.values())),
                    stdin=DEVNULL,
                    env=code_environment(os.environ),
                    start_new_session=True,  # a Ctrl-C meant for us does not reach it
                )
            except OSError:
                ours.close()
                raise
        recruit = Recruit(process, listeners)
        channel = await Channel.over(ours, tasks=self._tasks, handlers=self._handlers(recruit))
        self._tasks.start(channel.run(), name=f"channel of {process.pid}")
        return recruit, channel

    def _handlers(self, recruit: Recruit) -> dict[str, Handler]:
        async def hears(_: Any) -> None:
            recruit.hears = True
            if recruit.place is None:
                _log.info("spare worker ready", pid=recruit.process.pid)

        def at(handle: Callable[[Place, Any], Awaitable[Any]]) -> Handler:
            async def handled(body: Any) -> Any:
                assert recruit.place is not None  # nobody speaks before it has one
                return await handle(recruit.place, body)

            return handled

        return {
            "hears": hears,
            "serving": at(self._is_serving),
            "numbers": at(self._has_counted),
            "others": at(self._others),
            "tell": at(self._pass_on),
        }

    def _take_spare(self, place: Place) -> tuple[Recruit, Channel] | None:
        """The one that waits, if it can serve in this place."""
        spare = self._spare
        if spare is None or not spare[0].fits(place):
            return None
        self._spare = None
        return spare

    async def _keep_spare(self) -> None:
        """Have a process wait with everything loaded: a replacement then starts in no time."""
        try:
            spare = await self._spawn(*self._places)
        except OSError as error:
            _log.warning("no spare worker", reason=str(error))
            return
        self._set_spare(spare)
        recruit, channel = spare
        if self._stopping.is_set() or not all(map(recruit.fits, self._places)):
            _kill(recruit)
        await recruit.process.wait()
        if self._spare is spare:
            channel.close()
            self._set_spare(None)

    def _set_spare(self, spare: tuple[Recruit, Channel] | None) -> None:
        self._spare = spare

    async def _dismiss_spare(self) -> None:
        if self._spare is not None:
            recruit, _ = self._spare
            _kill(recruit)
            await recruit.process.wait()

    async def _pause(self, place: Place, exit_code: int) -> None:
        """Wait before the next start when the last ones did not live long."""
        if exit_code == 0 or self._clock() - place.began_s >= STEADY_S:
            place.crashes = 0
        place.crashes += exit_code != 0
        delay_s = self._delay_after(place.crashes)
        if not delay_s:
            return
        _log.warning("worker restarts", worker=place.number, in_s=delay_s, crashes=place.crashes)
        place.listener.close()  # or its share of the connections would wait for all that time
        await self._dismiss_spare()  # it holds it, too
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    async def _is_serving(self, place: Place, said: Any) -> None:
        place.serving = True
        after_s = round(self._clock() - place.began_s, 2)
        _log.info("worker serving", worker=place.number, after_s=after_s)
        if not self._announced and all(one.serving for one in self._places):
            self._announced = True
            _log.info("listening", url=self._url, models=said["models"], workers=len(self._places))
        if all(one.serving for one in self._places) and self._spare is None:
            self._tasks.start(self._keep_spare(), name="spare worker")

    async def _has_counted(self, place: Place, said: Any) -> None:
        if said is not None:
            place.counted = Numbers.of(said)

    async def _others(self, asking: Place, _: Any) -> Any:
        """The numbers of all but ``asking``: of the living as of now, of the dead the last ones."""
        answers = await self._ask_others(asking, "numbers", None, within_s=COUNTED_WITHIN_S / 2)
        for place, answer in answers.items():
            if not isinstance(answer, ChannelError):
                await self._has_counted(place, answer)
        others = [place.counted for place in self._places if place is not asking]
        return added_up([*others, self._left]).as_dict()

    async def _pass_on(self, telling: Place, news: Any) -> None:
        """Tell all others; returns when each of them has heard or has ended.

        Raises:
            ChannelError: one lives and has not heard in time, or could not do what it heard.
        """
        answers = await self._ask_others(telling, "news", news, within_s=HEARD_WITHIN_S)
        for place, answer in answers.items():
            if isinstance(answer, ChannelError) and place.channel is not None:
                raise ChannelError(f"worker {place.number}: {answer}")

    async def _ask_others(
        self, asking: Place, kind: str, body: Any, *, within_s: float
    ) -> dict[Place, Any]:
        others = [
            (place, place.channel)
            for place in self._places
            if place is not asking and place.channel is not None
            if place.recruit is not None and place.recruit.hears
        ]
        answers = await asyncio.gather(
            *(channel.ask(kind, body, within_s=within_s) for _, channel in others),
            return_exceptions=True,
        )
        return {
            place: answer
            for (place, channel), answer in zip(others, answers, strict=True)
            if channel.open
        }

    def _tell_of_engines(self, _: str) -> None:
        assert self._engines is not None  # it says so
        views = told(self._engines.view())
        for place in self._places:
            if place.channel is not None:
                place.channel.say("engines", views)


def _delay_after(crashes: int) -> float:
    """Seconds to wait after so many crashes in a row."""
    if crashes <= AT_ONCE:
        return 0.0
    return min(FIRST_DELAY_S * 2.0 ** min(crashes - AT_ONCE - 1, 16), LONGEST_DELAY_S)


async def _all(tasks: Sequence["asyncio.Task[None]"]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _kill(recruit: Recruit | None) -> None:
    if recruit is not None:
        with suppress(ProcessLookupError):
            recruit.process.kill()
