"""What every backend owes its caller, whichever it is: one test over all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from gateway.backends.base import Backend
from gateway.backends.group import Group
from gateway.backends.health import Health
from gateway.backends.lanes import Lanes
from gateway.backends.openai import OpenAIBackend
from gateway.backends.retrying import Manner, Retrying
from gateway.backends.waits import Timeouts
from gateway.chunks import Chunk, Opening, Piece, Whole
from policies.outcome import Abandoned, Completed, Elsewhere, Failed
from tests.kit.clock import Clock
from tests.kit.entries import asked
from tests.kit.scripted_backend import (
    Gate,
    ScriptedBackend,
    delta,
    failed,
    opening,
    streamed_answer,
    whole_answer,
)
from tests.kit.scripted_upstream import (
    WORDS,
    Reply,
    ScriptedUpstream,
    chat_events,
    error_reply,
    stream_reply,
)

STORIES = ("whole", "stream", "refused", "lost", "cut")
ENDINGS = (Completed, Failed, Abandoned, Elsewhere)


@dataclass(frozen=True)
class Subject:
    """A backend that tells ``story``; ``gate`` is where a story called "held" stands."""

    backend: Backend
    gate: Gate
    freed: Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def openai(story: str, *, lanes: Lanes | None = None) -> AsyncIterator[Subject]:
    gate = Gate()
    begun = b"".join(chat_events({"model": "m"})[:3])
    replies: dict[str, Reply | None] = {
        "whole": None,
        "stream": None,
        "refused": error_reply(503),
        "lost": Reply(("rst",)),
        "cut": stream_reply(begun, "rst"),
        "held": stream_reply(begun, gate),
    }
    first = replies[story]
    async with (
        ScriptedUpstream(*([first] if first else [])) as upstream,
        aiohttp.ClientSession() as session,
    ):

        @asynccontextmanager
        async def freed() -> AsyncIterator[None]:
            yield
            await upstream.seen[0].gone.wait()

        backend = OpenAIBackend(
            "up",
            session=session,
            locate=lambda: upstream.url,
            clock=Clock().monotonic,
            timeouts=Timeouts(read_s=30.0),
            lanes=lanes,
        )
        yield Subject(backend, gate, freed)


@asynccontextmanager
async def in_turn(story: str) -> AsyncIterator[Subject]:
    lanes = Lanes(1, clock=Clock().monotonic)
    async with openai(story, lanes=lanes) as subject:
        yield subject
    async with asyncio.timeout(5), lanes.place("warm", "t"):
        pass  # its place is free


@asynccontextmanager
async def scripted(story: str) -> AsyncIterator[Subject]:
    gate = Gate()
    scripts: dict[str, Any] = {
        "whole": whole_answer(),
        "stream": streamed_answer(*WORDS),
        "refused": (failed(503),),
        "lost": (failed(502, code="backend_unreachable"),),
        "cut": (opening(), delta("x"), failed(502, code="backend_cut")),
        "held": (opening(), delta("x"), gate),
    }
    backend = ScriptedBackend(scripts[story])

    @asynccontextmanager
    async def freed() -> AsyncIterator[None]:
        yield
        assert backend.runs[0].cancelled

    yield Subject(backend, gate, freed)


@asynccontextmanager
async def group(story: str) -> AsyncIterator[Subject]:
    async with scripted(story) as inner:
        members = [inner.backend, ScriptedBackend(name="other")]
        kv_tokens = {member.name: 1_000_000 for member in members}
        grouped = Group(members, kv_tokens, strategy="round_robin")
        yield Subject(grouped, inner.gate, inner.freed)
        assert set(grouped._in_the_air.values()) == {0}


@asynccontextmanager
async def retrying(story: str) -> AsyncIterator[Subject]:
    clock = Clock()
    async with openai(story) as inner:
        health = Health(clock=clock.monotonic, draw=lambda: 0.0)
        manner = Manner(health, clock.monotonic, draw=lambda: 0.0, retries=0)
        yield Subject(Retrying(inner.backend, manner), inner.gate, inner.freed)
        assert health.state("up") == "up"


SUBJECTS = [openai, in_turn, scripted, group, retrying]


async def pieces_of(backend: Backend, **body: Any) -> Sequence[Piece]:
    return [piece async for piece in backend.run(*asked(**body))]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("story", STORIES)
async def test_every_accepted_call_ends_in_exactly_one_ending(story: str, subject: Any) -> None:
    async with subject(story) as it:
        pieces = await pieces_of(it.backend, stream=story == "stream")
    *before, last = pieces
    assert isinstance(last, Failed if story in {"refused", "lost", "cut"} else Completed)
    assert not any(isinstance(piece, ENDINGS) for piece in before)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("story", ["whole", "stream", "cut"])
async def test_an_opening_then_chunks_or_one_whole(story: str, subject: Any) -> None:
    async with subject(story) as it:
        first, *parts, _ = await pieces_of(it.backend, stream=story == "stream")
    assert isinstance(first, Opening)
    assert parts
    kinds = {type(part) for part in parts}
    assert kinds == ({Whole} if story == "whole" else {Chunk})
    assert story != "whole" or len(parts) == 1


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("story", ["refused", "lost"])
async def test_a_refusal_before_the_first_piece_is_alone(story: str, subject: Any) -> None:
    async with subject(story) as it:
        (only,) = await pieces_of(it.backend)
    assert isinstance(only, Failed)
    assert only.fault == "backend"
    assert only.status in {502, 503}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_who_leaves_frees_what_the_call_held(how: str, subject: Any) -> None:
    async with asyncio.timeout(10), subject("held") as it, it.freed():
        if how == "cancelled":
            asking = asyncio.ensure_future(pieces_of(it.backend, stream=True))
            await it.gate.reached()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        else:
            pieces = it.backend.run(*asked(stream=True))
            assert isinstance(await anext(pieces), Opening)
            await pieces.aclose()
