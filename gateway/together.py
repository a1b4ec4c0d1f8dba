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
from gateway.chunks import Chunk, Json, Piece, Whole, fold
from gateway.errors import from_failed
from gateway.flights import Flight, Flights, Reader
from gateway.pipeline import Answer, Boarded, Kept, Missed, Pipeline
from policies.call import Call
from policies.embeddings import Part, apportioned, divided, for_list, part_of, places_of
from policies.outcome import Completed, Failed, Usage
from policies.plan import Plan

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
                await self._catch_up(parts, found, answers)
                if (refusal := _refusal(found)) is not None:
                    return refusal
                company = Company(call, whole, backend, self._pipeline, self._flights)
                await self._round(company, parts, found, answers, held)
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
        self, parts: Sequence[Part], found: list[Kept | Missed], answers: dict[int, Answer]
    ) -> None:
        """Look again at what landed while the others were looked up, until nothing has."""
        while landed := [
            place
            for place, (part, one) in enumerate(zip(parts, found, strict=True))
            if place not in answers
            and isinstance(one, Missed)
            and self._pipeline.landed(part.plan, one)
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
        # No await in here: every flight that starts is of one company.
        for place, (part, one) in enumerate(zip(parts, found, strict=True)):
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
        for place, missed, boarded in aboard:
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
    """Inputs that nobody has, and the one call that computes them."""

    def __init__(
        self, call: Call, plan: Plan, backend: Backend, pipeline: Pipeline, flights: Flights
    ) -> None:
        self.backend = backend
        self.members: list[Part] = []
        self.answers: list[Json] = []
        self.endings: list[Completed] = []
        self._call = call
        self._plan = plan
        self._pipeline = pipeline
        self._flights = flights
        self._flight: Flight | None = None

    def read(self) -> Reader:
        """The pieces of the one call, which its first reader starts."""
        if self._flight is None or self._flight.abandoned:
            self._flight = self._flights.start(None, self._compute)
        return self._flight.read()

    async def _compute(self) -> AsyncGenerator[Piece, None]:
        """Ask the backend for all members; that it refuses this very list is remembered."""
        since = self._pipeline.since()
        received: list[Chunk | Whole] = []
        async with aclosing(self.backend.run(self._asked(), self._plan)) as pieces:
            async for piece in pieces:
                match piece:
                    case Chunk() | Whole():
                        received.append(piece)
                    case Completed():
                        answer = fold(received)
                        if (failed := self._take_apart(answer, piece)) is not None:
                            yield failed
                            return
                        yield Whole(answer)
                        yield piece
                    case Failed():
                        yield piece
                        await self._pipeline.remember(self._call, self._plan, piece, since)
                    case _:
                        yield piece

    def _asked(self) -> Call:
        """The client's own call when nothing of it is spared, else one for what is missing."""
        wanted = [part.call.body["input"] for part in self.members]
        if wanted == self._call.body["input"]:
            return self._call
        return replace(self._call, body={**self._call.body, "input": wanted})

    def _take_apart(self, answer: Json, ending: Completed) -> Failed | None:
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
        for datum, share in zip(_in_order(data), shares, strict=True):
            single = {**answer, "data": [{**datum, "index": 0}]}
            self.answers.append({**single, "usage": share} if share else single)
        prompt, hit = (
            apportioned(count, weights)
            for count in (ending.usage.prompt_tokens, ending.usage.hit_tokens)
        )
        for weight, tokens, reused in zip(weights, prompt, hit, strict=True):
            duration_s = ending.duration_s * weight / sum(weights)
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
        async with self._company.read() as reader:
            async for piece in reader:
                match piece:
                    case Whole():
                        yield Whole(self._company.answers[self._place])
                    case Completed():
                        yield self._company.endings[self._place]
                        return
                    case Failed(fault="client") if len(self._company.members) > 1:
                        # It was said of all of them, and may be true of another one only.
                        if self._flight.readers <= 1:
                            self._flight.abandoned = True  # so that nobody joins it any more
                            raise from_failed(piece)
                        break
                    case Failed():  # the list was refused, and the input's key is its own
                        yield replace(piece, beyond_key=True)
                    case _:
                        yield piece
            else:
                return
        # Somebody else asks for this input too, and not for the company it is in.
        async with aclosing(self._company.backend.run(call, plan)) as pieces:
            async for piece in pieces:
                yield piece


def _in_order(data: Sequence[Json]) -> Sequence[Json]:
    """By ``index`` where all have one, as they came where not."""
    places = [datum.get("index") for datum in data]
    if sorted(place for place in places if isinstance(place, int)) != list(range(len(data))):
        return data
    return sorted(data, key=lambda datum: int(datum["index"]))
