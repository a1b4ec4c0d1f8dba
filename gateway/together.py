"""The inputs of one embeddings request: each has its own entry and its own flight.

::

    each input ─► look up ─┬─ there ──────────────► from the store
                           ├─ in the air ─────────► read along
                           └─ nobody has it ──────► a flight each ─┐
                                                    one backend call for them all

A flight of an input is like any other: who asks for the same input reads along, the answer is
stored alone, the last reader to leave ends it. Only its work is shared: it is a :class:`Share` of a
:class:`Company`, which asks the backend once. Across processes lists are not coalesced: a lease for
each input would cost more than it saves.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from gateway.backends.base import Backend
from gateway.chunks import Chunk, Json, Opening, Piece, Whole, fold
from gateway.errors import from_failed
from gateway.flights import Flight, FlightBroken, FlightCancelled, Flights, Reader
from gateway.pipeline import Answer, Boarded, Kept, Missed, Pipeline
from policies.call import Call
from policies.embeddings import Part, apportioned, divided, for_list, part_of, places_of
from policies.outcome import Completed, Failed, Usage
from policies.plan import Plan

TURN: Final = 32
"""Inputs that are worked on before others get their turn."""
LOOK_UPS: Final = 64
"""At a time: so that a slow store is waited for few times, and others get their turn meanwhile."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The answer to each different input, in order. A context manager: it holds the readers."""

    plan: Plan
    parts: Sequence[Part]
    answers: Sequence[Answer]
    held: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.held.close()


class Together:
    """Answers lists of inputs."""

    def __init__(self, pipeline: Pipeline, flights: Flights) -> None:
        self._pipeline = pipeline
        self._flights = flights

    async def answer(self, call: Call, plan: Plan, backend: Backend) -> Gathered | Kept:
        """Answer every input; ``Kept`` is a remembered refusal, of one of them or of the list.

        Raises: ClientFault, BackendFault, as the pipeline says; one failure is the failure of all.
        """
        whole = for_list(plan)
        parts, found = await self._look_up(call, whole)
        if any(isinstance(one, Missed) for one in found) and whole.may_read:
            listed = await self._pipeline.look_up(whole)
            if (refusal := _refusal([listed])) is not None:
                return refusal
        answers: dict[int, Answer] = {}
        with ExitStack() as held:
            while len(answers) < len(parts):
                await self._catch_up(parts, found, answers, range(len(parts)))
                if (refusal := _refusal(found)) is not None:
                    return refusal
                company = Company(call, whole, backend, self._pipeline, self._flights)
                await self._round(company, parts, found, answers, held)
                if (refusal := _refusal(found)) is not None:
                    return refusal
            own = parts[0].plan if len(call.body["input"]) == 1 else whole
            ready = [answers[place] for place in range(len(parts))]
            return Gathered(own, parts, ready, held.pop_all())

    async def _look_up(self, call: Call, plan: Plan) -> tuple[list[Part], list[Kept | Missed]]:
        """Look up each different input, some at a time. Raises: ClientFault 504."""
        parts: list[Part] = []
        found: list[Kept | Missed] = []
        inputs = places_of(call)
        for start in range(0, len(inputs), LOOK_UPS):
            some = [part_of(call, plan, *item) for item in inputs[start : start + LOOK_UPS]]
            looked = await asyncio.gather(
                *(self._pipeline.look_up(part.plan) for part in some), return_exceptions=True
            )
            for one in looked:
                if isinstance(one, BaseException):
                    raise one
                found.append(one)
            parts += some
        return parts, found

    async def _catch_up(
        self,
        parts: Sequence[Part],
        found: list[Kept | Missed],
        answers: dict[int, Answer],
        places: range,
    ) -> None:
        """Look again at what landed while others were looked up or boarded, until nothing has."""
        while landed := [
            place
            for place in places
            if place not in answers
            and isinstance(one := found[place], Missed)
            and self._pipeline.landed(parts[place].plan, one)
        ]:
            for place in landed:
                found[place] = await self._pipeline.look_up(parts[place].plan)

    async def _round(
        self,
        company: "Company",
        parts: Sequence[Part],
        found: list[Kept | Missed],
        answers: dict[int, Answer],
        held: ExitStack,
    ) -> None:
        """Answer what has no answer yet, but for what another process was just computing."""
        aboard: list[tuple[int, Missed, Boarded]] = []
        try:
            for start in range(0, len(parts), TURN):
                places = range(start, min(start + TURN, len(parts)))
                if start:
                    await asyncio.sleep(0)
                    await self._catch_up(parts, found, answers, places)
                # No await from here on: what was looked up is still so when it is boarded.
                for place in places:
                    part, one = parts[place], found[place]
                    if place in answers:
                        continue
                    if isinstance(one, Kept):
                        answers[place] = one
                        if one.renew:
                            self._pipeline.renew(part.call, part.plan, company.backend)
                        continue
                    share = Share(company, part)
                    boarded = self._pipeline.board(part.call, part.plan, share, led=False)
                    held.callback(boarded.reader.close)
                    if not boarded.collapsed:
                        share.join(boarded.flight)
                    aboard.append((place, one, boarded))
        finally:
            company.complete()
        for number, (place, missed, boarded) in enumerate(aboard):
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)
            answer = await self._pipeline.opened(boarded, missed, company.backend)
            if answer is not None:
                answers[place] = answer
            else:
                found[place] = await self._pipeline.look_up(parts[place].plan)


def _refusal(found: Sequence[Kept | Missed]) -> Kept | None:
    """What is remembered of an input, or a list, that the backend will not take."""
    refusals = (one for one in found if isinstance(one, Kept) and one.outcome.level == "negative")
    return next(refusals, None)


class Company:
    """Inputs that are not stored, and the one call that computes them.

    What the backend says is for all members at once, but they are told of it some at a time: two
    thousand tasks that wake together would hold the loop for a third of a second.
    """

    def __init__(
        self, call: Call, plan: Plan, backend: Backend, pipeline: Pipeline, flights: Flights
    ) -> None:
        self.backend = backend
        self.members: list[Part] = []
        self.answers: list[Json] = []
        self.endings: list[Completed] = []
        self.opening: Opening | None = None
        self.failed: Failed | None = None
        self.ended = False
        self._broken: Exception | None = None
        self._complete = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._call = call
        self._plan = plan
        self._pipeline = pipeline
        self._flights = flights
        self._flight: Flight | None = None

    def read(self) -> Reader:
        """The pieces of the one call, which its first reader starts."""
        if self._flight is None or self._flight.abandoned:
            self.answers, self.endings = [], []
            self.opening, self.failed, self.ended, self._broken = None, None, False, None
            self._flight = self._flights.start(None, self._compute)
        return self._flight.read()

    def complete(self) -> None:
        """All members are there: they may be asked for."""
        self._complete.set()

    async def turn(self) -> None:
        """Wait until the backend has said more. Raises: what ended the call."""
        if self._broken is not None:
            raise self._broken
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    async def _tell(self) -> None:
        """Wake the members, some at a time."""
        waiting, self._waiting = self._waiting, []
        for number, one in enumerate(waiting):
            if not one.done():
                one.set_result(None)
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)

    async def _compute(self) -> AsyncGenerator[Piece, None]:
        """The one call's pieces. When it ends without an ending no member waits any longer."""
        try:
            await self._complete.wait()
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    await self._tell()
                    yield piece
            self.ended = True
            await self._tell()
        except BaseException as error:
            self._broken = _broken(error)
            for one in self._waiting:
                if not one.done():
                    one.set_exception(self._broken)
            raise

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """Ask the backend for all members; that it refuses this very list is remembered."""
        since = self._pipeline.since()
        received: list[Chunk | Whole] = []
        async with aclosing(self.backend.run(self._asked(), self._plan)) as pieces:
            async for piece in pieces:
                match piece:
                    case Chunk() | Whole():
                        received.append(piece)
                    case Completed():
                        self.failed = await self._take_apart(fold(received), piece)
                        self.ended = True
                        yield self.failed or piece
                        if self.failed is not None:
                            return
                    case Failed():
                        self.failed, self.ended = piece, True
                        yield piece
                        await self._pipeline.remember(self._call, self._plan, piece, since)
                    case Opening():
                        self.opening = piece
                        yield piece
                    case _:
                        yield piece

    def _asked(self) -> Call:
        """The client's own call when nothing of it is spared, else one for what is missing."""
        wanted = [part.call.body["input"] for part in self.members]
        if wanted == self._call.body["input"]:
            return self._call
        return replace(self._call, body={**self._call.body, "input": wanted})

    async def _take_apart(self, answer: Json, ending: Completed) -> Failed | None:
        """Give each member its own, as if it had asked alone. Failed: that cannot be done."""
        data, weights = answer.get("data"), [part.weight for part in self.members]
        there = len(data) if isinstance(data, list) else 0
        if data is None or there != len(weights) or not all(isinstance(one, dict) for one in data):
            return Failed(
                status=502,
                code="backend_bad_answer",
                message=f"{self.backend.name} answered {there} embeddings to {len(weights)} inputs",
                fault="backend",
            )
        usage = answer.get("usage")
        shares = divided(usage if isinstance(usage, dict) else {}, weights)
        for number, (datum, share) in enumerate(zip(_in_order(data), shares, strict=True)):
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)
            single = {**answer, "data": [{**datum, "index": 0}]}
            self.answers.append({**single, "usage": share} if share else single)
        prompt, hit = (
            apportioned(count, weights)
            for count in (ending.usage.prompt_tokens, ending.usage.hit_tokens)
        )
        of_all = sum(weights)
        for weight, tokens, reused in zip(weights, prompt, hit, strict=True):
            duration_s = ending.duration_s * weight / of_all
            self.endings.append(Completed(Usage(tokens, 0, reused), duration_s))
        return None


class Share:
    """One input's part of a company's work: to its flight it is the backend."""

    def __init__(self, company: Company, part: Part) -> None:
        self._company = company
        self._part = part
        self._place = 0
        self._flight: Flight | None = None

    @property
    def name(self) -> str:
        """The real backend's."""
        return self._company.backend.name

    def join(self, flight: Flight) -> None:
        """The input is to be computed: by ``flight``, which has one reader of our own."""
        self._flight = flight
        self._place = len(self._company.members)
        self._company.members.append(self._part)

    async def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Computes.run`."""
        assert self._flight is not None  # it runs this
        company = self._company
        async with company.read():  # as one of its readers: the last to leave ends the call
            while company.opening is None and not company.ended:
                await company.turn()
            if company.opening is not None:
                yield company.opening
            while not company.ended:
                await company.turn()
            if company.failed is None:
                if company.answers:
                    yield Whole(company.answers[self._place])
                    yield company.endings[self._place]
                return
            if company.failed.fault != "client" or len(company.members) == 1:
                # The list was refused, and the input's key is its own.
                yield replace(company.failed, beyond_key=True)
                return
            # It was said of all of them, and may be true of another one only.
            if self._flight.readers <= 1:
                self._flight.abandoned = True  # so that no call joins it any more
                raise from_failed(company.failed)
        # Somebody else asks for this input too, and not for the company it is in.
        async with aclosing(self._company.backend.run(call, plan)) as pieces:
            async for piece in pieces:
                yield piece


def _broken(error: BaseException) -> Exception:
    if isinstance(error, asyncio.CancelledError):
        return FlightCancelled()
    return error if isinstance(error, Exception) else FlightBroken()


def _in_order(data: Sequence[Json]) -> Sequence[Json]:
    """By ``index`` where all have one, as they came where not."""
    places = [datum.get("index") for datum in data]
    if sorted(place for place in places if isinstance(place, int)) != list(range(len(data))):
        return data
    return sorted(data, key=lambda datum: int(datum["index"]))
