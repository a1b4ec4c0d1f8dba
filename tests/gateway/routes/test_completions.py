"""The model calls through the OpenAI SDK, on a real socket: a hit must equal a miss.

Everything a user of the SDK does in the guides: ``extra_body``, ``extra_headers``,
``with_raw_response``, streams, tools, logprobs, several choices.
"""

import asyncio
import gc
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.routes.completions import Completions
from gateway.stations import Stations
from gateway.store.base import Entry, Selector
from tests.kit.scripted_upstream import (
    WORDS,
    Reply,
    ScriptedUpstream,
    error_reply,
    json_reply,
    vector_of,
)
from tests.kit.service import QUESTION, serving

TEXT = "".join(WORDS)
CACHED = {"kv_cache": {"enabled": True, "cache_key": "faq:1", "ttl": 600}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TOOL]},
    "logprobs": {"logprobs": True, "top_logprobs": 1},
    "two choices": {"n": 2},
    "all of it": {"n": 2, "logprobs": True, "temperature": 0.0, "seed": 7},
}


async def ask(client: AsyncOpenAI, **options: Any) -> ChatCompletion:
    answer = await client.chat.completions.create(
        model="m", messages=QUESTION, extra_body=CACHED, **options
    )
    assert isinstance(answer, ChatCompletion)
    return answer


async def chunks_of(client: AsyncOpenAI, **options: Any) -> list[ChatCompletionChunk]:
    stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        model="m", messages=QUESTION, extra_body=CACHED, stream=True, **options
    )
    return [chunk async for chunk in stream]


def told(answer: ChatCompletion) -> dict[str, Any]:
    """All of an answer but what is new each time."""
    return answer.model_dump(exclude={"id", "created", "cache_hit"})


@pytest.mark.parametrize("variant", list(VARIANTS))
async def test_a_hit_equals_a_miss(variant: str) -> None:
    async with serving() as service, service.openai() as client:
        miss = await ask(client, **VARIANTS[variant])
        service.clock.advance(5)
        hit = await ask(client, **VARIANTS[variant])
        assert told(hit) == told(miss)
        assert hit.id != miss.id
        assert hit.id.startswith("chatcmpl-")
        assert hit.created == int(service.clock.now())
        assert (miss.model_extra or {})["cache_hit"] is False
        assert (hit.model_extra or {})["cache_hit"] is True
        assert service.upstream.calls == 1


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("usage", [True, False])
async def test_a_stored_stream_tells_what_the_computed_one_told(variant: str, usage: bool) -> None:
    options = {**VARIANTS[variant], "stream_options": {"include_usage": usage}}
    async with serving() as service, service.openai() as client:
        computed = await chunks_of(client, **options)
        stored = await chunks_of(client, **options)
        assert heard(stored) == heard(computed)
        assert heard(stored)["usage"] is (13 if usage else None) or usage
        assert {chunk.id for chunk in stored}.isdisjoint(chunk.id for chunk in computed)
        assert service.upstream.calls == 1


def heard(chunks: list[ChatCompletionChunk]) -> dict[str, Any]:
    """What a client makes of a stream."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            known = choices.setdefault(
                choice.index, {"text": "", "calls": {}, "finish": None, "tokens": []}
            )
            known["text"] += choice.delta.content or ""
            known["finish"] = choice.finish_reason or known["finish"]
            if choice.logprobs is not None:
                known["tokens"] += [token.model_dump() for token in choice.logprobs.content or ()]
            for call in choice.delta.tool_calls or ():
                kept = known["calls"].setdefault(call.index, {"id": None, "name": None, "text": ""})
                assert call.function is not None
                kept["id"] = call.id or kept["id"]
                kept["name"] = call.function.name or kept["name"]
                kept["text"] += call.function.arguments or ""
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    return {
        "choices": choices,
        "usage": usages[0].model_dump() if usages else None,
        "model": {chunk.model for chunk in chunks},
        "fingerprint": {chunk.system_fingerprint for chunk in chunks},
    }


@pytest.mark.parametrize("variant", list(VARIANTS))
async def test_a_stream_fills_for_plain_readers_and_they_for_streams(variant: str) -> None:
    options = VARIANTS[variant]
    async with serving() as service, service.openai() as client:
        reference = await ask(client, **options, user="another entry does not hurt")
        await service.send("POST", "/v1/cache/invalidate", {"all": True})
        computed = await chunks_of(client, **options)
        plain = await ask(client, **options)
        assert told(plain) == told(reference)
        await service.send("POST", "/v1/cache/invalidate", {"all": True})
        await ask(client, **options)
        replayed = await chunks_of(client, **options)
        assert heard(replayed)["choices"] == heard(computed)["choices"]
        assert service.upstream.calls == 3


async def test_raw_responses_show_the_headers() -> None:
    async with serving() as service, service.openai() as client:
        asking = client.chat.completions.with_raw_response
        headers = {"X-Cache-Enable": "true", "X-Cache-ID": "v1:ns:1", "X-Cache-Tier": "hot"}
        miss = await asking.create(model="m", messages=QUESTION, extra_headers=headers)
        assert miss.headers["x-cache-hit"] == "false"
        assert miss.headers["x-cache-level"] == "none"
        assert miss.headers["x-cache-tier"] == "hot"
        assert miss.headers["x-cache-ttl"] == "300"
        assert miss.headers["cache-status"].startswith("kvgate; fwd=uri-miss; stored; key=")
        assert "age" not in miss.headers
        service.clock.advance(13)
        hit = await asking.create(model="m", messages=QUESTION, extra_headers=headers)
        assert hit.headers["x-cache-hit"] == "true"
        assert hit.headers["x-cache-level"] == "response"
        assert hit.headers["x-cache-key"] == miss.headers["x-cache-key"]
        assert hit.headers["age"] == "13"
        assert hit.headers["x-cache-ttl"] == "287"
        assert hit.headers["x-cache-tokens-saved"] == "13"
        assert hit.headers["cache-status"].startswith("kvgate; hit; ttl=287; detail=response; key=")
        assert hit.headers["x-response-time"].endswith("ms")
        assert hit.headers["x-request-id"] != miss.headers["x-request-id"]
        parsed = hit.parse()
        assert parsed.choices[0].message.content == TEXT


async def test_raw_streams_show_the_headers_too() -> None:
    async with serving() as service, service.openai() as client:
        for level, hit in (("none", "false"), ("response", "true")):
            asking = client.chat.completions.with_raw_response
            raw = await asking.create(
                model="m", messages=QUESTION, extra_body=CACHED, stream=True
            )  # fmt: skip
            assert raw.headers["x-cache-level"] == level
            assert raw.headers["x-cache-hit"] == hit
            assert raw.headers["x-cache-tier"] == "hot"  # by the key's prefix
            assert raw.headers["x-cache-ttl"] == "600"
            texts = [c.choices[0].delta.content or "" async for c in raw.parse()]
            assert "".join(texts) == TEXT


async def test_why_it_was_a_miss_is_explained_on_request() -> None:
    async with serving() as service:
        wish = {"enabled": True, "cache_key": "k", "debug": True}
        first = await service.chat(wish)
        assert first.headers["X-Cache-Miss-Reason"] == "cold"
        assert '"ttl_s","1800","default tier"' in first.headers["X-Cache-Debug"]
        other = [{"role": "user", "content": "What is answered?"}]
        second = await service.chat(wish, messages=other)
        assert second.headers["X-Cache-Miss-Reason"] == (
            'fingerprint; field="messages[0].content"; message=0; character=9'
        )
        third = await service.chat(wish, temperature=0.5)
        assert third.headers["X-Cache-Miss-Reason"] == 'fingerprint; field="temperature"'
        hit = await service.chat(wish)
        assert hit.headers["X-Cache-Level"] == "response"
        assert "X-Cache-Miss-Reason" not in hit.headers
        assert "X-Cache-Debug" in hit.headers
        service.clock.advance(2000)
        assert (await service.chat(wish)).headers["X-Cache-Miss-Reason"] == "expired"
        await service.send("POST", "/v1/cache/invalidate", {"cache_key": "k"})
        assert (await service.chat(wish)).headers["X-Cache-Miss-Reason"] == "invalidated"


async def test_without_a_word_about_caching_nothing_is_cached() -> None:
    async with serving() as service:
        for _ in range(2):
            answer = await service.chat()
            assert answer.headers["Cache-Status"] == "kvgate; fwd=bypass"
            assert "X-Cache-Key" not in answer.headers
            assert answer.body["cache_hit"] is False
        assert service.upstream.calls == 2


async def test_the_operator_may_cache_by_default() -> None:
    async with serving(defaults={"enabled": True}) as service:
        await service.chat()
        assert (await service.chat()).headers["X-Cache-Hit"] == "true"
        off = await service.chat({"enabled": False})
        assert off.headers["X-Cache-Hit"] == "false"


async def test_both_paths_and_every_alias_lead_to_the_same_entry() -> None:
    async with serving(aliases={"deepseek-chat": "default"}) as service:
        for path, model in (("/v1", "m"), ("", "m"), ("/v1", "deepseek-chat"), ("/v1", "default")):
            body = {"model": model, "messages": QUESTION, "kv_cache": True}
            answer = await service.send("POST", f"{path}/chat/completions", body)
            assert answer.status == 200
        assert service.upstream.calls == 1
        assert service.upstream.seen[0].body["model"] == "m"


async def test_completions_are_cached_by_the_same_rules() -> None:
    async with serving() as service, service.openai() as client:
        for cached in (False, True):
            answer = await client.completions.create(model="m", prompt="Once", extra_body=CACHED)
            assert answer.choices[0].text == TEXT
            assert answer.id.startswith("cmpl-")
            assert (answer.model_extra or {})["cache_hit"] is cached
        stream = await client.completions.create(
            model="m", prompt="Once", stream=True, extra_body=CACHED
        )
        texts = [chunk.choices[0].text async for chunk in stream]
        assert "".join(texts) == TEXT
        stream = await client.completions.create(
            model="m", prompt="Twice", stream=True, extra_body=CACHED
        )
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT
        assert service.upstream.calls == 2


async def test_embeddings_are_cached_by_the_same_rules() -> None:
    async with serving() as service, service.openai() as client:
        for cached in (False, True):
            raw = await client.embeddings.with_raw_response.create(
                model="m", input=["a", "b"], encoding_format="float", extra_body=CACHED
            )
            assert raw.parse().data[0].embedding == vector_of("a")
            assert raw.headers["x-cache-hit"] == str(cached).lower()
        assert service.upstream.calls == 1


async def test_what_the_sdk_sends_for_embeddings_by_default_is_cached_too() -> None:
    async with serving() as service, service.openai() as client:
        for _ in range(2):
            await client.embeddings.create(model="m", input="a", extra_body=CACHED)
        assert service.upstream.calls == 1
        assert service.upstream.seen[0].body["encoding_format"] == "base64"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_busy_upstream_and_when_to_come_back_are_passed_on(
    status: int, stream: bool
) -> None:
    busy = error_reply(status, "busy", headers={"Retry-After": "7"}, code="overloaded")
    async with (
        serving(upstream=ScriptedUpstream(busy)) as service,
        service.openai() as client,
    ):
        with pytest.raises(APIStatusError) as caught:
            await client.chat.completions.create(model="m", messages=QUESTION, stream=stream)
        assert caught.value.status_code == status
        assert caught.value.response.headers["retry-after"] == "7"
        assert "x-should-retry" not in caught.value.response.headers
        assert caught.value.code == "overloaded"
        assert caught.value.request_id is not None


async def test_a_refusal_that_will_not_change_is_remembered_and_not_retried() -> None:
    refusal = error_reply(400, "no such tool", code="bad_tool", param="tools")
    async with serving(upstream=ScriptedUpstream(refusal)) as service:
        first, second = await service.chat(True), await service.chat(True, stream=True)
        assert first.status == second.status == 400
        assert first.body == second.body
        assert second.headers["X-Cache-Level"] == "negative"
        assert second.headers["X-Should-Retry"] == "false"
        assert first.headers["X-Should-Retry"] == "false"
        assert service.upstream.calls == 1


async def test_only_if_cached_is_answered_without_the_upstream() -> None:
    async with serving() as service:
        headers = {"Cache-Control": "only-if-cached"}
        answer = await service.chat(headers=headers)
        assert (answer.status, answer.error["code"]) == (504, "only_if_cached")
        assert answer.headers["X-Should-Retry"] == "false"
        assert service.upstream.calls == 0


async def test_rate_limit_headers_of_the_upstream_are_passed_on() -> None:
    headers = {"x-ratelimit-remaining-tokens": "99", "x-secret": "1"}
    reply = json_reply({"choices": []})
    upstream = ScriptedUpstream(Reply(reply.steps, headers=headers))
    async with serving(upstream=upstream) as service:
        answer = await service.chat()
        assert answer.status == 200
        assert answer.headers["x-ratelimit-remaining-tokens"] == "99"
        assert "x-secret" not in answer.headers


async def test_odd_bytes_in_a_header_of_the_upstream_break_no_answer() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}]}")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n"
            b"openai-version: \xff\xfe\r\nx-ratelimit-limit: 5\r\nConnection: close\r\n\r\n"
            b'{"choices":[]}'
        )
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        backend = {"name": "raw", "base_url": f"http://127.0.0.1:{port}/v1", "models": ["m"]}
        async with serving(backends=[backend]) as service:
            answered = await service.chat()
            assert answered.status == 200
            assert answered.headers["x-ratelimit-limit"] == "5"


async def test_unknown_fields_reach_the_upstream_and_belong_to_the_question() -> None:
    async with serving() as service, service.openai() as client:
        for value in (1, 2, 1):
            await client.chat.completions.create(
                model="m",
                messages=QUESTION,
                extra_body={**CACHED, "chat_template_kwargs": {"thinking": value}},
            )
        assert [seen.body["chat_template_kwargs"] for seen in service.upstream.seen] == [
            {"thinking": 1}, {"thinking": 2}
        ]  # fmt: skip


async def test_the_same_request_in_other_words_is_the_same_request() -> None:
    async with serving() as service:
        for body in (
            b'{"model":"m","messages":[{"role":"user","content":"?"}],"kv_cache":true}',
            b'{"kv_cache": {"enabled": true}, "messages": [{"content": "?", "role": "user"}], "model": "m"}',
            b'{"model":"m","messages":[{"role":"user","content":"?"}],"kv_cache":true,"user":"x","stop":null}',
        ):
            assert (await service.send("POST", "/v1/chat/completions", body)).status == 200
        assert service.upstream.calls == 1


async def test_what_is_remembered_of_requests_is_bounded_by_what_they_weigh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Completions] = []

    class Noted(Completions):
        def __init__(self, **parts: Any) -> None:
            super().__init__(**parts)
            built.append(self)

    ways = Stations(completions=Noted)
    monkeypatch.setattr("gateway.app.stations", lambda *_, **__: ways)
    async with serving() as service:
        for number in range(150):
            padding = b" " * 60_000 + str(number).encode()
            body = b'{"model":"m","messages":[{"role":"user","content":"?"}],"kv_cache":true'
            body += b',"user":"' + padding + b'"}'
            answer = await service.send("POST", "/v1/chat/completions", body)
            assert answer.headers["X-Cache-Hit"] == str(number > 0).lower()
        held = [len(raw) for raw in built[0]._memo]
        assert 0 < sum(held) <= 4 * 2**20


async def test_equal_bytes_with_other_headers_are_understood_anew() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"?"}]}'
    enabled = {"X-Cache-Enable": "true"}
    async with serving() as service:
        for headers, level in (
            (enabled, "none"),
            (enabled, "response"),
            ({}, "none"),
            ({**enabled, "X-Cache-User": "ann", "X-Cache-Scope": "user"}, "none"),
            (enabled, "response"),
        ):
            answer = await service.send("POST", "/v1/chat/completions", body, headers=headers)
            assert answer.headers["X-Cache-Level"] == level


async def test_what_is_remembered_of_a_request_keeps_no_answer_alive() -> None:
    async with serving() as service:
        levels = [
            (await service.chat({"enabled": True, "tier": "hot"})).headers["X-Cache-Level"]
            for _ in range(3)
        ]
        assert levels[1:] == ["response", "response"]
        await service.settled()
        (meta,) = await service.gateway.store.remove(Selector(None))
        gc.collect()
        alive = [one for one in gc.get_objects() if type(one) is Entry]
        assert [one for one in alive if one.meta.key == meta.key] == []
