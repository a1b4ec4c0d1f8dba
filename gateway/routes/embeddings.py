"""A list of inputs as one answer: the vectors in the client's order, the usage of all of them.

``usage`` counts every input as if all had been computed, as a stored chat answer repeats its usage:
clients bill and budget by it. What was spared is in ``X-Cache-Tokens-Saved``. ``X-Cache-Hit`` is
true as soon as one input came from the store; ``Cache-Status`` says ``hit`` when all did and
``fwd=partial`` when the backend was asked for the rest.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import orjson

from gateway import exact_json
from gateway.chunks import Chunk, Comment, Json, Opening, Whole, finish_of, fold
from gateway.errors import BackendFault, from_failed
from gateway.headers import annotated_usage
from gateway.outcomes import of_several, with_usage
from gateway.pipeline import Answer, Flown, Kept
from gateway.together import Gathered
from policies.embeddings import Part, added
from policies.outcome import Abandoned, Completed, Elsewhere, Failed, Outcome

TURN: Final = 64
"""Vectors put together before others get their turn."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole answer. ``cost_s`` is what computing the stored part of it once took."""

    body: bytes
    outcome: Outcome
    headers: Mapping[str, str]
    cost_s: float


async def put_together(gathered: Gathered) -> Listed:
    """The answer to a list. Raises: GatewayError when an input could not be computed."""
    vectors = [orjson.Fragment(b"null")] * sum(len(part.places) for part in gathered.parts)
    singles: list[tuple[Json, int]] = []
    outcomes: list[tuple[Outcome, int]] = []
    for number, (part, answer) in enumerate(zip(gathered.parts, gathered.answers, strict=True)):
        single, outcome = await _single(answer)
        if (
            finish_of(single, "embeddings") == "unfinished"
        ):  # of a call for this input alone: the gateway took no list apart
            raise BackendFault("the backend sent no vector", code="backend_bad_answer")
        datum = single["data"][0]
        for place in part.places:
            vectors[place] = orjson.Fragment(exact_json.dumps({**datum, "index": place}))
        singles.append((single, len(part.places)))
        outcomes.append((outcome, len(part.places)))
        if number % TURN == TURN - 1:
            await asyncio.sleep(0)
    each = zip(gathered.parts, gathered.answers, strict=True)
    outcome = of_several(gathered.plan, outcomes)
    whole = _frame(gathered.answers, singles)
    whole |= {"data": vectors, "cache_hit": outcome.hit}
    return Listed(
        body=exact_json.dumps(whole),
        outcome=outcome,
        headers=_headers(gathered.answers),
        cost_s=sum(_cost_s(part, one) for part, one in each),
    )


async def _single(answer: Answer) -> tuple[Json, Outcome]:
    """The answer to one input, and what became of it. Raises: GatewayError."""
    match answer:
        case Kept(entry, outcome):
            single: Json = exact_json.loads(entry.body)
            return single, outcome
        case Flown(reader=reader, outcome=outcome):
            parts: list[Chunk | Whole] = []
            async for piece in reader:
                match piece:
                    case Chunk() | Whole():
                        parts.append(piece)
                    case Completed(usage=usage):
                        return fold(parts), with_usage(outcome, usage)
                    case Failed():
                        raise from_failed(piece)
                    case Abandoned() | Elsewhere() | Opening() | Comment():
                        break
                    case _:
                        assert_never(piece)
            raise AssertionError("a flight without an ending")
        case _:
            assert_never(answer)


def _frame(answers: Sequence[Answer], singles: Sequence[tuple[Json, int]]) -> Json:
    """All but the vectors: as the backend says it now, or said it when nothing was computed."""
    new = (single for single, one in zip(singles, answers, strict=True) if isinstance(one, Flown))
    frame = dict(next(new, singles[0])[0])
    usage = added(
        (annotated_usage(single["usage"]), times)
        for single, times in singles
        if isinstance(single.get("usage"), dict)
    )
    return {**frame, "usage": usage} if usage else frame


def _headers(answers: Sequence[Answer]) -> dict[str, str]:
    """What the backend's answers said in their heads."""
    said: dict[str, str] = {}
    for answer in answers:
        if isinstance(answer, Flown):
            said |= answer.opening.headers
    return said


def _cost_s(part: Part, answer: Answer) -> float:
    return answer.entry.meta.cost_s * len(part.places) if isinstance(answer, Kept) else 0.0
