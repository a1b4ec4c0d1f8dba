"""The thread and its async face: one end for everybody, whatever happens."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing

import pytest

from engine.engine import Engine
from engine.errors import ContextLengthError, NotReadyError, OverloadedError
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.scheduler import Schedule
from tests.kit.scripted_service import Scripted, scripted


def request(name: str, prompt: str = "abcdefgh", count: int = 5) -> GenerationRequest:
    tokens = tuple(byte + 1 for byte in prompt.encode())
    return GenerationRequest(id=name, prompt=tokens, sampling=SamplingParams(max_tokens=count))


async def events_of(engine: Engine[list[int]], *requests: GenerationRequest) -> list[TokenEvent]:
    return [event async for event in engine.generate(*requests)]


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it is true; the test's timeout is the limit."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
        await asyncio.sleep(0.001)


async def test_a_request_gets_its_tokens_and_one_end() -> None:
    async with scripted() as one:
        events = await events_of(one.engine, request("a"))
        assert bytes((event.token or 0) - 1 for event in events) == b"Hello"
        assert [event.finish for event in events] == [None] * 4 + ["length"]
        assert repr(one.engine).startswith("Engine(steps=5 open=0 Scheduler(running=0")


async def test_several_requests_of_one_call_come_through_one_iterator() -> None:
    async with scripted() as one:
        events = await events_of(one.engine, request("a"), request("b", "other", 2))
        ends = {event.request_id for event in events if event.finish}
        assert ends == {"a", "b"}
        assert sum(event.finish is not None for event in events) == 2


async def test_leaving_ends_the_generation_before_the_next_step_and_frees_its_blocks() -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(1)
        async with aclosing(one.engine.generate(request("a", count=100))) as events:
            await anext(events)
        steps = len(one.runner.schedules)
        one.runner.gate.release()  # the step that may have been under way
        held = await one.engine.ask(lambda scheduler: scheduler.index.pool.held_blocks)
        assert held == 0
        assert len(one.runner.schedules) <= steps + 1


async def test_leaving_while_waiting_takes_the_request_out_of_the_queue() -> None:
    async with scripted(max_sequences=1) as one:
        one.runner.gate = threading.Semaphore(0)
        first = asyncio.ensure_future(events_of(one.engine, request("a")))
        second = asyncio.ensure_future(events_of(one.engine, request("b")))
        await until(lambda: one.scheduler.running == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        one.runner.gate.release(100)
        assert (await first)[-1].finish == "length"
        assert all(
            span.sequence.id == "a" for schedule in one.runner.schedules for span in schedule.spans
        )


async def test_an_abort_from_outside_is_an_end_too() -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(1)
        events = []
        async with aclosing(one.engine.generate(request("a", count=100))) as stream:
            async for event in stream:
                events.append(event)
                if len(events) == 1:
                    one.engine.abort("a")
                    one.engine.abort("nobody")
                    one.runner.gate.release(100)
        assert events[-1].finish == "abort"
        assert sum(event.finish is not None for event in events) == 1


async def test_a_failing_step_fails_those_in_it_and_the_engine_goes_on() -> None:
    async with scripted() as one:
        one.runner.fail_steps = 1
        events = await events_of(one.engine, request("a"))
        assert [event.finish for event in events] == ["error"]
        assert (await events_of(one.engine, request("b")))[-1].finish == "length"
        assert one.engine.stats().failed_steps == 1
        assert one.fatal == []


async def test_three_failing_steps_in_a_row_end_the_engine_and_everybody_hears_it() -> None:
    one = Scripted(max_sequences=1)
    one.engine.start()
    one.runner.fail_steps = 3
    calls = [events_of(one.engine, request(name)) for name in "abcd"]
    ends = [events[-1] for events in await asyncio.gather(*calls)]
    assert [end.finish for end in ends] == ["error"] * 4
    assert "being restarted" in str(ends[3].error)
    await until(lambda: one.fatal)
    assert one.fatal == ["3 steps failed in a row"]
    assert one.engine.broken
    with pytest.raises(NotReadyError):
        await events_of(one.engine, request("e"))
    with pytest.raises(NotReadyError):
        await one.engine.ask(lambda scheduler: None)
    one.engine.close()
    assert one.runner.closed == 1, "its threads end too"


async def test_the_first_forward_that_fails_ends_an_engine_of_several_ranks() -> None:
    one = Scripted(sharded=True)
    one.engine.start()
    one.runner.fail_steps = 1
    assert [event.finish for event in await events_of(one.engine, request("a"))] == ["error"]
    await until(lambda: one.fatal)
    assert one.fatal == ["a step of several ranks failed"]
    with pytest.raises(NotReadyError):
        await events_of(one.engine, request("b"))
    one.engine.close()


async def test_two_failures_with_a_success_between_are_forgotten() -> None:
    async with scripted() as one:
        for _ in range(4):
            one.runner.fail_steps = 2
            for name in "ab":
                assert (await events_of(one.engine, request(name)))[-1].finish == "error"
            assert (await events_of(one.engine, request("c")))[-1].finish == "length"
        assert not one.engine.broken


async def test_a_fault_of_the_engine_itself_ends_it_loudly() -> None:
    one = Scripted()

    def burst(*, now: float) -> Schedule:
        raise AssertionError

    one.scheduler.schedule = burst  # type: ignore[method-assign]
    one.engine.start()
    assert (await events_of(one.engine, request("a")))[-1].finish == "error"
    await until(lambda: one.fatal)
    assert one.fatal == ["AssertionError: "]
    one.engine.close()


async def test_closing_tells_everybody_and_may_be_done_twice() -> None:
    one = Scripted()
    one.runner.gate = threading.Semaphore(1)
    one.engine.start()
    call = asyncio.ensure_future(events_of(one.engine, request("a", count=100)))
    await until(lambda: one.scheduler.running == 1)
    closing = asyncio.ensure_future(asyncio.to_thread(one.engine.close, timeout_s=60))
    await until(lambda: one.engine._closing)
    one.runner.gate.release(100)
    await closing
    last = (await call)[-1]
    assert (last.finish, last.error) == ("error", "The engine is shutting down.")
    one.engine.close()
    assert one.scheduler.index.pool.held_blocks == 0


async def test_what_can_never_be_served_is_refused_with_both_numbers() -> None:
    async with scripted(max_model_len=20) as one:
        with pytest.raises(ContextLengthError, match=r"20 tokens.* 28 tokens"):
            await events_of(one.engine, request("a", count=20))


async def test_a_full_queue_is_refused_and_empties_again() -> None:
    async with scripted(max_sequences=1, max_waiting=2) as one:
        one.runner.gate = threading.Semaphore(0)
        calls = [asyncio.ensure_future(events_of(one.engine, request("a")))]
        await until(lambda: one.scheduler.running == 1)
        calls += [asyncio.ensure_future(events_of(one.engine, request(name))) for name in "bc"]
        await until(lambda: len(one.engine._sinks) == 3)
        with pytest.raises(OverloadedError):
            await events_of(one.engine, request("d"))
        one.runner.gate.release(1000)
        await asyncio.gather(*calls)
        assert (await events_of(one.engine, request("e")))[-1].finish == "length"


async def test_a_question_is_answered_between_steps_and_its_fault_is_the_askers() -> None:
    async with scripted() as one:
        assert await one.engine.ask(lambda scheduler: scheduler.capacity_tokens) == 200
        with pytest.raises(ZeroDivisionError):
            await one.engine.ask(lambda scheduler: 1 // 0)
        assert (await events_of(one.engine, request("a")))[-1].finish == "length"
