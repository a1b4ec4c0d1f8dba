"""Many ask the same at once: the backend is asked once, and everybody gets the whole answer.

The story of ``gateway.flights`` from outside. Nothing here waits for time to pass: the upstream
stands at a gate until everybody has asked.
"""

import asyncio

import pytest
from openai import AsyncStream
from openai.types.chat import ChatCompletionChunk

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    DONE,
    WORDS,
    ScriptedUpstream,
    chat_body,
    chat_events,
    error_reply,
    json_reply,
    stream_reply,
)
from tests.kit.service import Answer, Service, serving

ASKED = {"model": "m"}
TEXT = "".join(WORDS)


async def ask_together(service: Service, count: int, gate: Gate) -> list[Answer]:
    """``count`` identical requests, half of them streams; the gate opens when all are waiting."""
    asking = [
        asyncio.create_task(service.chat({"enabled": True}, stream=number % 2 == 0))
        for number in range(count)
    ]
    await gate.reached()
    await service.readers(count)
    gate.open()
    return await asyncio.gather(*asking)


@pytest.mark.parametrize("led_by", ["stream", "plain"])
async def test_five_hundred_identical_cold_requests_are_one_generation(led_by: str) -> None:
    gate = Gate()
    events = chat_events({**ASKED, "stream_options": {"include_usage": True}})
    script = {
        "stream": stream_reply(*events[:2], gate, *events[2:], DONE),
        "plain": json_reply(chat_body(ASKED)),
    }[led_by]
    if led_by == "plain":
        script = type(script)((gate, *script.steps))
    async with serving(upstream=ScriptedUpstream(script)) as service:
        answers = await ask_together(service, 500, gate)
        assert {answer.status for answer in answers} == {200}
        assert {answer.text for answer in answers} == {TEXT}
        assert service.upstream.calls == 1
        collapsed = ["collapsed" in answer.headers["Cache-Status"] for answer in answers]
        assert sum(collapsed) == 499
        assert {answer.headers["X-Cache-Hit"] for answer in answers} == {"false"}
        await service.settled()
        assert service.gateway.journal.statistics.total.collapsed == 499
        again = await service.chat({"enabled": True})
        assert (again.headers["X-Cache-Level"], service.upstream.calls) == ("response", 1)
        assert len(service.gateway.flights) == 0


async def test_of_plain_answers_of_one_flight_each_has_what_the_backend_said() -> None:
    gate = Gate()
    reply = json_reply(chat_body(ASKED))
    async with serving(upstream=ScriptedUpstream(type(reply)((gate, *reply.steps)))) as service:
        answers = await ask_together(service, 10, gate)
        plain = [answer.body for answer in answers[1::2]]
        assert all(body == plain[0] for body in plain)
        assert plain[0]["usage"]["total_tokens"] == 13


async def test_different_questions_are_different_generations() -> None:
    async with serving() as service:
        await asyncio.gather(
            *(
                service.chat(True, messages=[{"role": "user", "content": f"question {n % 5}"}])
                for n in range(25)
            )
        )
        assert service.upstream.calls == 5


async def test_an_error_reaches_everybody_and_the_next_request_tries_again() -> None:
    gate = Gate()
    reply = error_reply(503, "overloaded", headers={"Retry-After": "3"})
    upstream = ScriptedUpstream(type(reply)((gate, *reply.steps), 503, reply.headers))
    async with serving(upstream=upstream) as service:
        answers = await ask_together(service, 20, gate)
        assert {answer.status for answer in answers} == {503}
        assert {answer.headers["Retry-After"] for answer in answers} == {"3"}
        assert {answer.error["message"] for answer in answers} == {"overloaded"}
        assert service.upstream.calls == 1
        assert (await service.chat(True)).status == 200
        assert service.upstream.calls == 2


async def test_a_cut_in_mid_air_reaches_everybody() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*chat_events(ASKED)[:2], gate, "rst"))
    async with serving(upstream=upstream) as service:
        answers = await ask_together(service, 20, gate)
        streams, plain = answers[::2], answers[1::2]
        assert {answer.status for answer in streams} == {200}
        assert all(b'"error"' in answer.events[-1] for answer in streams)
        assert not any(b"[DONE]" in answer.raw for answer in streams)
        assert {answer.status for answer in plain} == {502}
        assert service.upstream.calls == 1


async def test_the_leader_going_away_harms_nobody() -> None:
    gate = Gate()
    events = chat_events({**ASKED, "stream_options": {"include_usage": True}})
    upstream = ScriptedUpstream(stream_reply(*events[:2], gate, *events[2:], DONE))
    async with serving(upstream=upstream) as service:
        leader = asyncio.create_task(service.chat(True, stream=True))
        await gate.reached()
        followers = [asyncio.create_task(service.chat(True, stream=True)) for _ in range(9)]
        await service.readers(10)
        leader.cancel()
        await service.readers(9)
        gate.open()
        answers = await asyncio.gather(*followers)
        assert {answer.text for answer in answers} == {TEXT}
        ids = {chunk["id"] for answer in answers for chunk in answer.chunks}
        assert len(ids) == 1
        assert service.upstream.calls == 1
        assert not upstream.seen[0].gone.is_set()


async def test_a_late_reader_gets_the_stream_from_its_beginning() -> None:
    gate = Gate()
    events = chat_events({**ASKED, "stream_options": {"include_usage": True}})
    upstream = ScriptedUpstream(stream_reply(*events[:3], gate, *events[3:], DONE))
    async with serving(upstream=upstream) as service, service.openai() as client:

        async def stream() -> AsyncStream[ChatCompletionChunk]:
            return await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "?"}],
                stream=True,
                extra_body={"kv_cache": {"enabled": True}},
            )

        early = await stream()
        first = await anext(early)
        await gate.reached()
        late = await stream()
        assert await anext(late) == first  # while the backend still computes
        gate.open()
        rest = [chunk async for chunk in late]
        assert "".join(c.choices[0].delta.content or "" for c in rest) == TEXT
        assert [chunk async for chunk in early] == rest


async def test_when_everybody_leaves_the_generation_ends() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*chat_events(ASKED)[:2], gate))
    async with serving(upstream=upstream) as service:
        asking = [asyncio.create_task(service.chat(True, stream=True)) for _ in range(5)]
        await gate.reached()
        for request in asking:
            request.cancel()
        await upstream.seen[0].gone.wait()
        await service.settled()
        assert len(service.gateway.flights) == 0
        assert (await service.chat(True)).status == 200
        assert upstream.calls == 2


async def test_a_stampede_on_an_expired_answer_is_one_generation() -> None:
    gate = Gate()
    async with serving() as service:
        await service.chat(True)
        service.clock.advance(1801)
        reply = json_reply(chat_body(ASKED))
        service.upstream.replies.append(type(reply)((gate, *reply.steps)))
        answers = await ask_together(service, 50, gate)
        assert {answer.text for answer in answers} == {TEXT}
        assert service.upstream.calls == 2
