"""Streams: whole or openly broken, stored or not, and ended with the client that left."""

import asyncio
from typing import Any

import orjson
import pytest

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
    json_reply,
    stream_reply,
)
from tests.kit.service import Answer, serving

ASKED = {"model": "m"}
EVENTS = chat_events(ASKED)
MIDDLE = b"".join(EVENTS[:3])
TEXT = "".join(WORDS)

CUTS: dict[str, tuple[Step, ...]] = {
    "an orderly end without DONE": (MIDDLE,),
    "FIN": (MIDDLE, "fin"),
    "RST": (MIDDLE, "rst"),
    "half an event": (MIDDLE, b'data: {"choices": ['),
    "half a character": (MIDDLE, b'data: {"x": "\xc3', "fin"),
    "no JSON": (MIDDLE, b"data: oops\n\n", DONE),
    "a wrong shape": (MIDDLE, event({"choices": [7]}), DONE),
    "an error event": (MIDDLE, event({"error": {"message": "engine lost", "code": "lost"}}), DONE),
    "DONE without a finish": (MIDDLE, DONE),
    "a stall": (MIDDLE, b": waiting\n\n"),  # and a gate that nobody opens
}


def broken(cut: str) -> Reply:
    steps = CUTS[cut]
    return stream_reply(*steps, *([Gate()] if cut == "a stall" else []))


def last_error(answer: Answer) -> dict[str, Any]:
    """The error event in which the stream ended."""
    error: dict[str, Any] = orjson.loads(answer.events[-1])["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("cut", list(CUTS))
@pytest.mark.parametrize("kv_cache", [None, {"enabled": True}])
async def test_a_stream_cut_in_mid_air_ends_in_an_error_event_and_is_not_stored(
    cut: str, kv_cache: Any
) -> None:
    limit_s = 0.1 if cut == "a stall" else 30.0
    upstream = ScriptedUpstream(broken(cut))
    async with serving(upstream=upstream, read_timeout=limit_s) as service:
        answer = await service.chat(kv_cache, stream=True)
        assert answer.status == 200  # the head was out
        assert b"[DONE]" not in answer.raw
        error = last_error(answer)
        assert error["type"] == "server_error"
        *received, _ = answer.events
        texts = [orjson.loads(one)["choices"][0]["delta"].get("content") for one in received]
        assert "".join(text or "" for text in texts) == "".join(WORDS[:2])
        await service.settled()
        again = await service.chat(kv_cache, stream=True)
        assert again.text == TEXT
        assert again.headers["X-Cache-Hit"] == "false"
        assert service.upstream.calls == 2


@pytest.mark.parametrize("cut", list(CUTS))
async def test_a_plain_reader_of_a_cut_stream_gets_an_error_and_no_half_answer(cut: str) -> None:
    limit_s = 0.1 if cut == "a stall" else 30.0
    async with serving(upstream=ScriptedUpstream(broken(cut)), read_timeout=limit_s) as service:
        answer = await service.chat(True)
        assert answer.status == (504 if cut == "a stall" else 502)
        assert answer.error["type"] == "server_error"
        assert (await service.chat(True)).text == TEXT
        assert service.upstream.calls == 2


async def test_the_sdk_sees_a_cut_as_an_error_and_not_as_a_short_answer() -> None:
    from openai import APIError

    async with (
        serving(upstream=ScriptedUpstream(broken("FIN"))) as service,
        service.openai() as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "?"}], stream=True
        )
        with pytest.raises(APIError, match="broke off"):
            async for _ in stream:
                pass


async def test_an_error_before_the_first_event_is_a_status_and_not_a_stream() -> None:
    upstream = ScriptedUpstream(error_reply(429, "slow down", headers={"Retry-After": "2"}))
    async with serving(upstream=upstream) as service:
        answer = await service.chat(True, stream=True)
        assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (
            429, "application/json"
        )  # fmt: skip
        assert answer.headers["Retry-After"] == "2"
        assert answer.error["message"] == "slow down"


async def test_a_stream_reads_like_a_stream_whether_computed_or_stored() -> None:
    async with serving() as service:
        for level in ("none", "response"):
            answer = await service.chat(True, stream=True, stream_options={"include_usage": True})
            assert answer.headers["X-Cache-Level"] == level
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            chunks = answer.chunks
            assert len({chunk["id"] for chunk in chunks}) == 1
            assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
            finishes = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
            assert finishes == [None] * (len(finishes) - 1) + ["stop"]
            assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["total_tokens"] == 13
            assert {chunk["cache_hit"] for chunk in chunks} == {level == "response"}
            assert answer.text == TEXT
            assert answer.raw.count(b"[DONE]") == 1


@pytest.mark.parametrize("filled_by", ["stream", "plain"])
async def test_usage_is_sent_only_to_those_who_asked_for_it(filled_by: str) -> None:
    async with serving() as service:
        await service.chat(True, stream=filled_by == "stream")
        without = await service.chat(True, stream=True)
        assert all("usage" not in chunk for chunk in without.chunks)
        assert all(chunk["choices"] for chunk in without.chunks)
        with_it = await service.chat(True, stream=True, stream_options={"include_usage": True})
        assert with_it.chunks[-1]["usage"]["total_tokens"] == 13
        plain = await service.chat(True)
        assert plain.body["usage"]["total_tokens"] == 13
        assert service.upstream.calls == 1


async def test_a_stream_that_is_not_stored_reaches_the_upstream_as_the_client_sent_it() -> None:
    async with serving() as service:
        answer = await service.chat(stream=True)
        assert "stream_options" not in service.upstream.seen[0].body
        assert all("usage" not in chunk for chunk in answer.chunks)


async def test_reuse_known_only_at_the_end_is_in_the_last_usage_chunk() -> None:
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 4,
        "total_tokens": 44,
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    upstream = ScriptedUpstream(
        stream_reply(*EVENTS, event({**ASKED, "choices": [], "usage": usage}), DONE)
    )
    async with serving(upstream=upstream) as service:
        answer = await service.chat(True, stream=True, stream_options={"include_usage": True})
        assert answer.headers["X-Cache-Hit"] == "false"  # the head had left
        last = answer.chunks[-1]
        assert last["usage"]["prompt_cache_hit_tokens"] == 32
        assert last["usage"]["prompt_cache_miss_tokens"] == 8
        assert last["cache_hit"] is True
        await service.settled()
        assert service.gateway.journal.statistics.by("level")["prefix"].requests == 1


async def test_reuse_known_at_the_first_token_is_in_the_head() -> None:
    headers = {"X-KV-Hit-Tokens": "32", "X-KV-Miss-Tokens": "8"}
    async with serving(
        upstream=ScriptedUpstream(stream_reply(*EVENTS, DONE, headers=headers))
    ) as service:
        answer = await service.chat(stream=True)
        assert answer.headers["X-Cache-Hit"] == "true"
        assert answer.headers["X-Cache-Level"] == "prefix"
        assert answer.headers["X-Cache-Tokens-Saved"] == "32"
        assert {chunk["cache_hit"] for chunk in answer.chunks} == {True}


async def test_pieces_leave_as_they_come() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*EVENTS[:2], gate, *EVENTS[2:], DONE))
    async with serving(upstream=upstream) as service:
        body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
        async with service.session.post(
            f"{service.url}/v1/chat/completions", json=body
        ) as response:
            first = await response.content.readuntil(b"\n\n")
            assert b'"role":"assistant"' in first
            await gate.reached()
            gate.open()
            assert (await response.read()).endswith(DONE)


@pytest.mark.parametrize("point", ["before the head", "before the first event", "in mid-stream"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kv_cache", [None, {"enabled": True}])
async def test_a_client_that_leaves_ends_the_call_at_the_upstream(
    point: str, stream: bool, kv_cache: Any
) -> None:
    gate = Gate()
    steps: dict[str, tuple[Step, ...]] = {
        "before the head": (gate,),
        "before the first event": (b": hello\n\n", gate),
        "in mid-stream": (MIDDLE, gate),
    }
    upstream = ScriptedUpstream(stream_reply(*steps[point]))
    async with serving(upstream=upstream) as service:
        asking = asyncio.create_task(service.chat(kv_cache, stream=stream))
        await gate.reached()
        asking.cancel()
        await upstream.seen[0].gone.wait()
        await service.settled()
        assert len(service.gateway.flights) == 0
        assert [line["event"] for line in service.lines] == ["left"]
        assert (await service.chat(kv_cache)).text == TEXT  # and nothing of it remained


async def test_a_client_that_leaves_a_preload_does_not_stop_it() -> None:
    gate = Gate()
    reply = json_reply(orjson.loads(orjson.dumps({"choices": []})))
    upstream = ScriptedUpstream(Reply((gate, *reply.steps)))
    async with serving(upstream=upstream) as service:
        asking = asyncio.create_task(service.chat({"preload": True}))
        await gate.reached()
        asking.cancel()
        await asyncio.wait([asking])
        await service.readers(0)
        assert len(service.gateway.flights) == 1
        gate.open()
        await service.settled()
        assert not upstream.seen[0].gone.is_set()


async def test_a_finished_stream_is_stored_though_its_client_left_at_the_last_moment() -> None:
    gate = Gate()
    events = chat_events({**ASKED, "stream_options": {"include_usage": True}})
    upstream = ScriptedUpstream(stream_reply(*events, DONE, gate))
    async with serving(upstream=upstream) as service:
        assert (await service.chat(True, stream=True)).text == TEXT
        await gate.reached()
        gate.open()
        await service.settled()
        assert (await service.chat(True)).headers["X-Cache-Level"] == "response"


async def test_streams_may_be_kept_out_of_the_store() -> None:
    async with serving() as service:
        wish = {"enabled": True, "stream": False, "debug": True}
        for _ in range(2):
            answer = await service.chat(wish, stream=True)
            assert answer.headers["X-Cache-Miss-Reason"] == "stream"
        assert service.upstream.calls == 2
        assert (await service.chat(wish)).headers["X-Cache-Level"] == "none"
        assert (await service.chat(wish)).headers["X-Cache-Level"] == "response"


async def test_a_replayed_stream_repeats_no_padding() -> None:
    events = [event({**orjson.loads(one[6:]), "obfuscation": "abc"}) for one in EVENTS]
    async with serving(upstream=ScriptedUpstream(stream_reply(*events, DONE))) as service:
        computed = await service.chat(True, stream=True)
        assert b"obfuscation" in computed.raw  # the upstream's own padding is passed on
        stored = await service.chat(True, stream=True)
        assert stored.headers["X-Cache-Level"] == "response"
        assert b"obfuscation" not in stored.raw


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_still_waits_when_the_gateway_stops_is_told(stream: bool) -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(MIDDLE, gate))
    async with serving(upstream=upstream) as service:
        asking = asyncio.create_task(service.chat(True, stream=stream))
        await gate.reached()
        await service.gateway.tasks.close()
        answer = await asking
        error = last_error(answer) if stream else answer.error
        assert error["code"] == "shutting_down"
        if not stream:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_an_answer_too_large_to_be_kept_does_not_say_that_it_is() -> None:
    async with serving(limits={"max_entry_bytes": 100}) as service:
        for _ in range(2):
            answer = await service.chat(True)
            assert "stored" not in answer.headers["Cache-Status"]
            assert "X-Cache-TTL" not in answer.headers
        assert service.upstream.calls == 2


async def test_a_plain_answer_to_a_stream_request_is_streamed() -> None:
    body = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}
    async with serving(upstream=ScriptedUpstream(json_reply(body))) as service:
        answer = await service.chat(stream=True)
        assert answer.text == "Hi"
