"""The engine: one thread that runs steps, and an async face for the server.

`Engine.step` is the whole of it: schedule -> forward -> sample -> commit. Everything else here carries
wishes into the thread and events out of it.

    event loop                         engine thread
    generate() ──add──► inbox ───────► between steps: add, abort, ask
                                       step(): events
    sinks ◄──call_soon_threadsafe──────┘

Every request that was accepted hears exactly one terminal event. A step that raises fails only the
sequences that were in it (a NaN only those it belongs to); after `FAILED_STEPS_LIMIT` failing steps in a
row the model is taken for broken, everybody is told, and `on_fatal` is called so that the process can end
and be restarted. With other ranks, the first forward that raises is that already.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from engine.errors import ContextLengthError, NotReadyError, OverloadedError
from engine.latency import Latency
from engine.receipt import PrefillRate
from engine.request import GenerationRequest, NonFiniteError, Pick, TokenEvent
from engine.scheduler import Schedule, Scheduler

FAILED_STEPS_LIMIT = 3
_ENDING = "The engine is shutting down."
_log = logging.getLogger("engine")
LogitsT = TypeVar("LogitsT")
_MadeT_co = TypeVar("_MadeT_co", covariant=True)
_TakenT_contra = TypeVar("_TakenT_contra", contravariant=True)
ResultT = TypeVar("ResultT")


class Runner(Protocol[_MadeT_co]):
    """The model: computes the rows of a schedule, writes their KV."""

    def forward(self, schedule: Schedule, /) -> _MadeT_co:
        """Logits of the last row of each span with `sample`, in order. Raises `NonFiniteError`."""

    def close(self) -> None:
        """End what runs for it, such as threads: no step will come. May be called twice."""


class Sampler(Protocol[_TakenT_contra]):
    """Chooses tokens."""

    def pick(self, logits: _TakenT_contra, schedule: Schedule, /) -> list[Pick]:
        """One pick for each span with `sample`, in order."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since start, and what is going on now."""

    running: int
    waiting: int
    steps: int
    failed_steps: int
    rows: int
    generated_tokens: int
    preemptions: int
    finished: int


class Engine(Generic[LogitsT]):
    """Runs requests through a model. `generate` from the event loop that called `start`."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner[LogitsT],
        sampler: Sampler[LogitsT],
        *,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.monotonic,
        on_fatal: Callable[[str], None] = _log.critical,
        on_thread: Callable[[], None] = lambda: None,
        sharded: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.sampler = sampler
        self._max_waiting = max_waiting
        self._clock = clock
        self._on_fatal = on_fatal
        self._on_thread = on_thread
        self._sharded = sharded
        self._ranks_lost = False
        self._inbox: deque[Callable[[], list[TokenEvent]]] = deque()
        self._wake = threading.Condition()
        self._closing = self._failed = self._news = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sinks: dict[str, asyncio.Queue[TokenEvent]] = {}  # the event loop's own
        self._steps = self._failed_steps = self._failed_in_a_row = 0
        self._rows = self._generated = self._finished = 0
        self.latency = Latency()
        self.prefill_rate = PrefillRate()
        self.witness: Callable[[Schedule, LogitsT], None] | None = None  # sees each step (`verify`)

    # -- the step --------------------------------------------------------------------------------

    def step(self) -> list[TokenEvent]:
        """One step of every sequence whose turn it is. Called by the engine's thread (or a test)."""
        began = self._clock()
        schedule = self.scheduler.schedule(now=began)
        if not schedule.spans:
            return []
        self._steps += 1
        self._rows += schedule.rows
        computed = False
        try:
            logits = self.runner.forward(schedule)
            computed = True
            picks = self.sampler.pick(logits, schedule)
        except NonFiniteError as error:
            events = self._not_finite(error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, others are to go on
            # the other ranks are somewhere in this step, and would take the next one for its rest
            self._ranks_lost = self._sharded and not computed
            events = self._step_failed(schedule, error)
        else:
            self._failed_in_a_row = 0
            if self.witness is not None:
                self.witness(schedule, logits)
            ended = self._clock()
            self.prefill_rate.saw(schedule.prefill_rows, seconds=ended - began)
            if self.scheduler.tiers is not None:
                self.scheduler.tiers.choice.computed(schedule.prefills, ended - began)
            events = self.scheduler.commit(schedule, picks, now=ended)
        self._generated += sum(event.token is not None for event in events)
        self.latency.heard(events, now=self._clock())
        return events

    def _step_failed(self, schedule: Schedule, error: Exception) -> list[TokenEvent]:
        self._failed_steps += 1
        self._failed_in_a_row += 1
        _log.exception("step %d failed with %d rows", self._steps, schedule.rows, exc_info=error)
        message = f"The step that computed this request failed ({type(error).__name__})."
        sequences = [span.sequence for span in schedule.spans]
        return self.scheduler.fail(sequences, message, now=self._clock())

    def _not_finite(self, error: NonFiniteError) -> list[TokenEvent]:
        """Only theirs: the others' rows are not committed, so the next step computes them again.

        Nor is it held against a sequence whose guesses may be the cause: it goes on without them.
        """
        self._failed_steps += 1
        _log.error("step %d: %s", self._steps, error)
        message = "The model computed no finite numbers for this request."
        blamed = self.scheduler.blamed(error.sequences)
        return self.scheduler.fail(blamed, message, now=self._clock())

    @property
    def broken(self) -> bool:
        return self._ranks_lost or self._failed_in_a_row >= FAILED_STEPS_LIMIT

    # -- the thread ------------------------------------------------------------------------------

    def start(self) -> None:
        """Run steps in a thread from now on; events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        if self.scheduler.tiers is not None:
            self.scheduler.tiers.notify(self._notify)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, *, timeout_s: float = 1.5) -> None:
        """End the thread; every open request hears an error. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return  # in a long step: what that uses stays
        if self.scheduler.tiers is not None:
            now = self._clock()
            # after a failure nobody knows what is in the pool: what is on disk already was sound
            until = now if self._failed else now + timeout_s
            self.scheduler.tiers.close(now=now, until=until)
        self.runner.close()

    def _run(self) -> None:
        try:
            self._on_thread()
            while self._await_work():
                events = self._drain_inbox()
                events += self.step()
                self._deliver_soon(events)
                if self.broken:
                    in_a_row = f"{self._failed_in_a_row} steps failed in a row"
                    self._end("a step of several ranks failed" if self._ranks_lost else in_a_row)
                    return
            self._close_all(_ENDING)
        except Exception as error:  # noqa: BLE001 - a thread's last words: nothing may die unheard
            _log.exception("the engine's thread ended")
            self._end(f"{type(error).__name__}: {error}")

    def _await_work(self) -> bool:
        """Sleep until there is something to do; False when the engine is closing.

        What the tiers do meanwhile is done without the lock: the event loop takes it for each wish.
        """
        tiers = self.scheduler.tiers
        while True:
            with self._wake:
                if self._is_called() or self._has_work():
                    return not self._closing
                self._news = False
            if tiers is None or not tiers.idle(now=self._clock()):
                with self._wake:
                    if not (self._is_called() or self._news):
                        self._wake.wait()

    def _is_called(self) -> bool:
        return self._closing or bool(self._inbox)

    def _has_work(self) -> bool:
        return self.scheduler.busy and not self.scheduler.stalled

    def _notify(self) -> None:
        """From any thread: there may be something to do."""
        with self._wake:
            self._news = True
            self._wake.notify()

    def _drain_inbox(self) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        while self._inbox:
            events += self._inbox.popleft()()
        return events

    def _end(self, why: str) -> None:
        with self._wake:
            self._closing = self._failed = True
        self._close_all("The engine failed and is being restarted.")
        self._on_fatal(why)

    def _close_all(self, message: str) -> None:
        """Nobody waits for ever: who is in the scheduler, the inbox or only has a sink, hears an end."""
        with suppress(Exception):  # the scheduler itself may be what failed
            self._drain_inbox()
            self.scheduler.fail_all(message, now=self._clock())
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail_sinks, message)

    def _post(self, wish: Callable[[], list[TokenEvent]]) -> None:
        """Have the thread do something before its next step. Raises `NotReadyError` when it is gone."""
        with self._wake:
            if self._closing:
                raise NotReadyError(_ENDING)
            self._inbox.append(wish)
            self._wake.notify()

    # -- the event loop's side -------------------------------------------------------------------

    def check(self, *requests: GenerationRequest) -> None:
        """Raise what would keep these requests from being accepted; changes nothing.

        `ContextLengthError`: one of them can never be served. `OverloadedError`: the queue is full.
        `NotReadyError`: the engine is ending.
        """
        capacity = self.scheduler.capacity_tokens
        for request in requests:
            prompt, answer = len(request.prompt), request.sampling.max_tokens
            if prompt + answer > capacity:
                raise ContextLengthError.of(capacity=capacity, prompt=prompt, answer=answer)
        if self._closing:
            raise NotReadyError(_ENDING)
        if len(self._sinks) - self.scheduler.running + len(requests) > self._max_waiting:
            message = f"{self._max_waiting} requests are waiting already; try again soon."
            raise OverloadedError(message)

    async def generate(self, *requests: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Events of all these requests as they come, until each has ended.

        Close the iterator (`contextlib.aclosing`) to leave early: what has not ended is aborted before
        the next step. Raises what `check` raises, before anything is accepted.
        """
        self.check(*requests)
        queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        open_ids = {request.id for request in requests}
        self._sinks.update(dict.fromkeys(open_ids, queue))
        try:
            self._post(lambda: self._add(requests))
            while open_ids:
                event = await queue.get()
                if event.finish is not None:
                    open_ids.discard(event.request_id)
                yield event
        finally:
            for request_id in open_ids:
                self.abort(request_id)
                self._sinks.pop(request_id, None)

    def abort(self, request_id: str) -> None:
        """End a request before the next step. Its terminal event says `abort`; unknown ids are ignored."""
        if request_id in self._sinks:
            with suppress(NotReadyError):  # then it is ended already
                self._post(lambda: self._abort(request_id))

    def now(self) -> float:
        """The time of ttls and pins, for what `ask` runs."""
        return self._clock()

    async def ask(self, question: Callable[[Scheduler], ResultT]) -> ResultT:
        """Run `question` in the engine's thread, between two steps. It must be short."""
        answer: Future[ResultT] = Future()

        def run() -> list[TokenEvent]:
            if not answer.set_running_or_notify_cancel():
                return []  # the asker has left
            try:
                answer.set_result(question(self.scheduler))
            except Exception as error:  # noqa: BLE001 - it is the asker's, not the thread's
                answer.set_exception(error)
            return []

        self._post(run)
        return await asyncio.wrap_future(answer)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.scheduler.running,
            waiting=self.scheduler.waiting,
            steps=self._steps,
            failed_steps=self._failed_steps,
            rows=self._rows,
            generated_tokens=self._generated,
            preemptions=self.scheduler.preemptions,
            finished=self._finished,
        )

    def tier_stats(self) -> dict[str, Any]:
        """The tiers of KV as plain JSON; none where the scheduler was made without."""
        tiers = self.scheduler.tiers
        return {} if tiers is None else tiers.stats(now=self._clock())

    def _add(self, requests: Seq[GenerationRequest]) -> list[TokenEvent]:
        for request in requests:
            self.scheduler.add(request, now=self._clock())
            self.latency.accepted(request.id, now=self._clock())
        return []

    def _abort(self, request_id: str) -> list[TokenEvent]:
        event = self.scheduler.abort(request_id, now=self._clock())
        events = [] if event is None else [event]
        self.latency.heard(events, now=self._clock())
        return events

    def _deliver_soon(self, events: Seq[TokenEvent]) -> None:
        if events and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Seq[TokenEvent]) -> None:
        for event in events:
            if event.finish is None:
                sink = self._sinks.get(event.request_id)
            else:
                self._finished += 1
                sink = self._sinks.pop(event.request_id, None)
            if sink is not None:
                sink.put_nowait(event)

    def _fail_sinks(self, message: str) -> None:
        self._deliver([TokenEvent(one, finish="error", error=message) for one in list(self._sinks)])

    def __repr__(self) -> str:
        return f"Engine(steps={self._steps} open={len(self._sinks)} {self.scheduler!r})"
