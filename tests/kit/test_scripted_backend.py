"""The scripted backend does what it says."""

import asyncio
from contextlib import aclosing

import pytest

from gateway.chunks import Chunk, Opening, Piece, Whole
from policies.call import Call, parse_call
from policies.directive import Directive
from policies.keys import Principal
from policies.outcome import Completed
from policies.plan import Plan, decide
from policies.rules import default_rules
from tests.kit.scripted_backend import Gate, ScriptedBackend, streamed_answer, whole_answer


def asked() -> tuple[Call, Plan]:
    call = parse_call("chat", {"model": "m", "messages": [{"role": "user", "content": "?"}]})
    return call, decide(call, Directive(), Principal("t"), default_rules())


async def pieces_of(backend: ScriptedBackend) -> list[Piece]:
    return [piece async for piece in backend.run(*asked())]


async def test_each_run_takes_the_next_script_and_the_last_one_stays() -> None:
    backend = ScriptedBackend(whole_answer("one"), streamed_answer("t", "wo"))
    first, second, third = [await pieces_of(backend) for _ in range(3)]
    assert [type(piece) for piece in first] == [Opening, Whole, Completed]
    assert [type(piece) for piece in second] == [Opening, *[Chunk] * 4, Completed]
    assert second == third
    assert len(backend.runs) == 3
    assert all(run.finished and not run.cancelled for run in backend.runs)


async def test_a_gate_holds_a_run_until_it_is_opened() -> None:
    gate = Gate()
    backend = ScriptedBackend([gate, *whole_answer()])
    running = asyncio.create_task(pieces_of(backend))
    await gate.reached()
    await backend.started(1)
    assert not running.done()
    gate.open()
    assert len(await running) == 3
    await backend.ended(1)


async def test_it_sees_that_it_was_cancelled() -> None:
    gate = Gate()
    backend = ScriptedBackend([gate])
    running = asyncio.create_task(pieces_of(backend))
    await gate.reached()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert backend.runs[0].cancelled


async def test_it_sees_that_it_was_closed() -> None:
    backend = ScriptedBackend(streamed_answer("a"))
    async with aclosing(backend.run(*asked())) as pieces:
        await anext(pieces)
    assert backend.runs[0].cancelled


async def test_an_exception_in_the_script_is_raised() -> None:
    backend = ScriptedBackend([ValueError("scripted")])
    with pytest.raises(ValueError, match="scripted"):
        await pieces_of(backend)
