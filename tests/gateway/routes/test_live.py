"""Streams that wait: comments of the upstream pass at once, and the gateway sends its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.routes import live
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    DONE,
    WORDS,
    Reply,
    ScriptedUpstream,
    Step,
    chat_events,
    error_reply,
    event,
    stream_reply,
)
from tests.kit.service import QUESTION, Service, serving

EVENTS = chat_events({"model": "m"})
TEXT = "".join(WORDS)
BODY = {"model": "m", "messages": QUESTION, "stream": True}
KEPT: dict[str, Any] = {"enabled": True}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are kept alive after the twentieth part of a second."""
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.05)


@asynccontextmanager
async def streaming(service: Service, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    url = f"{service.url}/v1/chat/completions"
    async with service.session.post(url, json={**BODY, **more}) as response:
        yield response


async def next_event(response: aiohttp.ClientResponse) -> bytes:
    return await response.content.readuntil(b"\n\n")


def content_of(raw: bytes) -> str:
    events = [one.removeprefix(b"data: ") for one in raw.split(b"\n\n") if one.startswith(b"data:")]
    assert events.pop() == b"[DONE]"
    deltas = [choice["delta"] for one in events for choice in orjson.loads(one)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


async def test_a_comment_of_the_upstream_passes_at_once_before_the_first_piece() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(b": OPENROUTER PROCESSING\n\n", gate, *EVENTS, DONE))
    async with serving(upstream=upstream) as service, streaming(service) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["X-Cache-Hit"] == "false"
        assert await next_event(response) == b": OPENROUTER PROCESSING\n\n"
        gate.open()
        assert content_of(await response.content.read()) == TEXT


async def test_a_comment_between_two_pieces_passes_at_once() -> None:
    gate, other, never = Gate(), Gate(), Gate()
    upstream = ScriptedUpstream(
        stream_reply(EVENTS[0], gate, b": a\n:b\n\n", other, b":\n\n", never, *EVENTS[1:], DONE)
    )
    async with serving(upstream=upstream) as service, streaming(service) as response:
        assert b'"role"' in await next_event(response)
        gate.open()
        assert await next_event(response) == b": a\n:b\n\n"
        other.open()
        assert await next_event(response) == b":\n\n"


async def test_comments_are_no_part_of_a_stored_or_a_plain_answer() -> None:
    commented = stream_reply(b": one\n\n".join([b"", *EVENTS]), DONE)
    async with serving(upstream=ScriptedUpstream(commented)) as service:
        assert (await service.chat(KEPT)).text == TEXT
        await service.settled()
        replayed = await service.chat(KEPT, stream=True)
        assert replayed.headers["X-Cache-Level"] == "response"
        assert b": one" not in replayed.raw


async def test_what_comes_with_the_first_piece_does_not_open_the_stream_before_it() -> None:
    headers = {"X-RateLimit-Remaining": "7"}
    reply = stream_reply(b": hello\n\n" + b"".join(EVENTS), DONE, headers=headers)
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        answer = await service.chat(stream=True)
        assert answer.headers["X-RateLimit-Remaining"] == "7"
        assert b": hello\n\n" in answer.raw
        assert answer.text == TEXT


async def test_all_readers_of_a_flight_get_the_comments() -> None:
    gates = Gate(), Gate()
    reply = stream_reply(gates[0], b": ping\n\n", gates[1], *EVENTS, DONE)
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        asks = {"kv_cache": True}
        async with asyncio.TaskGroup() as group:
            for _ in range(5):

                async def follow() -> None:
                    async with streaming(service, **asks) as response:
                        assert await next_event(response) == b": ping\n\n"
                        gates[1].open()
                        assert content_of(await response.content.read()) == TEXT

                group.create_task(follow())
            await service.readers(5)
            gates[0].open()
        assert service.upstream.calls == 1


async def test_an_error_after_a_comment_is_an_event_and_before_it_a_status() -> None:
    gate = Gate()
    late = stream_reply(b": wait\n\n", gate, event({"error": {"message": "no room"}}))
    async with serving(upstream=ScriptedUpstream(late, error_reply(503, "busy"))) as service:
        async with streaming(service) as response:
            assert await next_event(response) == b": wait\n\n"
            gate.open()
            rest = await response.content.read()
            assert orjson.loads(rest.removeprefix(b"data: "))["error"]["message"] == "no room"
        assert (await service.chat(stream=True)).status == 503


async def test_another_backend_is_asked_though_a_comment_was_passed_on() -> None:
    broken = stream_reply(b": wait\n\n", "fin")
    async with serving(upstream=ScriptedUpstream(broken), failover={"retries": 1}) as service:
        answer = await service.chat(stream=True)
        assert b": wait\n\n" in answer.raw
        assert answer.text == TEXT
        assert service.upstream.calls == 2


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_stream_that_waits_is_kept_alive(kv_cache: bool, place: int) -> None:
    gate = Gate()
    steps: list[Step] = [*EVENTS[:place], gate, *EVENTS[place:], DONE]
    async with (
        serving(upstream=ScriptedUpstream(stream_reply(*steps))) as service,
        streaming(service, kv_cache=kv_cache) as response,
    ):
        for _ in range(place):
            await next_event(response)
        for _ in range(3):
            assert await next_event(response) == b": \n\n"
        gate.open()
        assert content_of(await response.content.read()) == TEXT


@pytest.mark.usefixtures("impatient")
async def test_a_stream_is_kept_alive_while_the_upstream_has_not_even_a_head() -> None:
    gate = Gate()
    reply = Reply((gate, *EVENTS, DONE), content_type="text/event-stream")
    async with (
        serving(upstream=ScriptedUpstream(reply)) as service,
        streaming(service, kv_cache=True) as response,
    ):
        assert response.headers["X-Cache-Level"] == "none"
        assert await next_event(response) == b": \n\n"
        gate.open()
        assert content_of(await response.content.read()) == TEXT
        await service.settled()
        assert (await service.chat(True)).headers["X-Cache-Level"] == "response"


@pytest.mark.usefixtures("impatient")
async def test_a_refusal_after_a_keep_alive_is_an_event_with_its_words() -> None:
    gate = Gate()
    refusal = Reply((gate, b'{"detail": "too long"}'), 400)
    async with (
        serving(upstream=ScriptedUpstream(refusal)) as service,
        streaming(service) as response,
    ):
        assert await next_event(response) == b": \n\n"
        gate.open()
        rest = (await response.content.read()).rpartition(b"data: ")[2]
        assert orjson.loads(rest)["error"]["message"] == "too long"
        assert b"[DONE]" not in rest


@pytest.mark.usefixtures("impatient")
async def test_a_stale_answer_helps_a_stream_that_was_opened_by_a_keep_alive() -> None:
    gate = Gate()
    hot = {"enabled": True, "tier": "hot"}
    async with serving() as service:
        await service.chat(hot)
        await service.settled()
        service.clock.advance(400)  # too old to be served, unless the upstream fails
        service.upstream.replies = [Reply((gate, b"{}"), 500)]
        async with streaming(service, kv_cache=hot) as response:
            assert await next_event(response) == b": \n\n"
            gate.open()
            assert content_of(await response.content.read()) == TEXT


@pytest.mark.usefixtures("impatient")
async def test_plain_callers_and_finished_streams_get_no_keep_alive() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(Reply((gate, b'{"choices": []}')))) as service:
        plain = asyncio.ensure_future(service.chat())
        await gate.reached()
        async with streaming(service) as response:
            assert content_of(await response.content.read()) == TEXT
        await asyncio.sleep(0.12)  # more than two silences
        gate.open()
        assert (await plain).body["choices"] == []
        assert b": " not in (await plain).raw[:3]
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "keep-alive"]
