"""Numbers that no double holds, through the front door: to the upstream, into keys, and back."""

from typing import Any

import orjson
import pytest

from tests.gateway.test_pass_through import PATHS, upstream_for
from tests.kit.scripted_upstream import DONE, Reply, ScriptedUpstream, stream_reply
from tests.kit.service import QUESTION, serving

BIG, BIGGER = str(2**64), str(2**64 + 1)
FINE, FINER = "0.70000000000000000001", "0.70000000000000000002"
ASKED: dict[str, dict[str, Any]] = {
    "chat": {"messages": QUESTION},
    "completions": {"prompt": "once"},
    "embeddings": {"input": "a"},
    "responses": {"input": "a"},
}


def request_of(endpoint: str, number: str, *, field: bytes = b"seed") -> bytes:
    body = orjson.dumps({"model": "m", "kv_cache": {"enabled": True}, **ASKED[endpoint]})
    return body[:-1] + b',"%b":%b}' % (field, number.encode())


@pytest.mark.parametrize("endpoint", ASKED)
@pytest.mark.parametrize(("one", "other"), [(BIG, BIGGER), (FINE, FINER)])
async def test_numbers_that_differ_share_no_answer_and_reach_the_upstream_as_sent(
    endpoint: str, one: str, other: str
) -> None:
    async with serving(upstream=upstream_for(endpoint)) as service:
        for number, stored in ((one, False), (other, False), (one, True)):
            raw = request_of(endpoint, number)
            answer = await service.send("POST", PATHS[endpoint], raw)
            assert answer.status == 200, answer.raw
            assert (answer.headers["X-Cache-Level"] == "response") is stored
        sent = [seen.raw for seen in service.upstream.seen]
        assert len(sent) == 2
        for raw, number in zip(sent, (one, other), strict=True):
            assert b'"seed":%b' % number.encode() in raw


@pytest.mark.parametrize("place", ["tools", "metadata"])
async def test_a_number_deep_in_a_body_reaches_the_upstream_as_sent(place: str) -> None:
    async with serving() as service:
        nested = {
            "tools": '[{"type":"function","function":{"name":"f","parameters":{"maximum":%s}}}]',
            "metadata": '{"a":%s}',
        }[place]
        for number in (BIG, BIGGER):
            raw = request_of("chat", nested % number, field=place.encode())
            raw = raw.replace(b'"enabled":true', b'"enabled":false')
            assert (await service.send("POST", PATHS["chat"], raw)).status == 200
            assert number.encode() in service.upstream.seen[-1].raw


CHAT_ANSWER = (
    '{"id":"c","object":"chat.completion","created":1,"model":"m","x_seed":%s,"choices":[{"index":0,'
    '"message":{"role":"assistant","content":"a"},"logprobs":{"content":[{"token":"a",'
    '"logprob":-%s}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
)
ANSWERS = {
    "chat": CHAT_ANSWER,
    "embeddings": (
        '{"object":"list","data":[{"object":"embedding","index":0,"embedding":[%s,%s]}],'
        '"model":"m","usage":{"prompt_tokens":1,"total_tokens":1}}'
    ),
    "responses": (
        '{"id":"r","object":"response","status":"completed","model":"m","x_seed":%s,"output":'
        '[{"type":"message","id":"i","role":"assistant","content":[{"type":"output_text",'
        '"text":"a","x":%s}]}]}'
    ),
}


@pytest.mark.parametrize("endpoint", ANSWERS)
async def test_numbers_of_an_answer_come_as_they_were_live_stored_and_replayed(
    endpoint: str,
) -> None:
    upstream = ScriptedUpstream(Reply(((ANSWERS[endpoint] % (BIGGER, FINE)).encode(),)))
    asked = {"model": "m", "kv_cache": {"enabled": True}, **ASKED[endpoint]}
    streamed = endpoint != "embeddings"
    async with serving(upstream=upstream) as service:
        for stream in (False, False, streamed):
            body = {**asked, "stream": True} if stream else asked
            answer = await service.send("POST", PATHS[endpoint], body)
            assert answer.status == 200, answer.raw
            assert BIGGER.encode() in answer.raw
            assert FINE.encode() in answer.raw
        assert upstream.calls == 1


async def test_numbers_in_a_list_of_embeddings_come_as_they_were() -> None:
    vectors = f"[{FINE},{BIG}]", f"[{FINER},{BIGGER}]"
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{vector}}}'
        for index, vector in enumerate(vectors)
    )
    upstream = ScriptedUpstream(
        Reply((f'{{"object":"list","data":[{data}],"model":"m"}}'.encode(),))
    )
    asked = {"model": "m", "input": ["a", "b"], "kv_cache": {"enabled": True}}
    async with serving(upstream=upstream) as service:
        for _ in range(2):
            answer = await service.send("POST", PATHS["embeddings"], asked)
            assert all(vector.encode() in answer.raw for vector in vectors)
        assert upstream.calls == 1


async def test_numbers_of_a_stream_come_as_they_were_live_and_replayed() -> None:
    chunk = (
        '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","x_seed":%s,"choices":'
        '[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":"stop"}]}'
    )
    event = b"data: %b\n\n" % (chunk % BIGGER).encode()
    async with serving(upstream=ScriptedUpstream(stream_reply(event, DONE))) as service:
        for stream in (True, True, False):
            answer = await service.chat({"enabled": True}, stream=stream)
            assert b'"x_seed":%b' % BIGGER.encode() in answer.raw
        assert service.upstream.calls == 1


async def test_a_lifetime_beyond_64_bits_is_refused_by_name() -> None:
    async with serving() as service:
        raw = request_of("chat", f'{{"enabled":true,"ttl":{BIG}}}', field=b"kv_cache")
        answer = await service.send("POST", PATHS["chat"], raw)
        assert (answer.status, answer.error["param"]) == (400, "kv_cache.ttl")


async def test_explain_and_the_journal_take_such_numbers() -> None:
    async with serving() as service:
        raw = request_of("chat", BIG)
        assert (await service.send("POST", PATHS["chat"], raw)).status == 200
        told = await service.send("POST", "/v1/cache/explain", raw)
        assert told.status == 200, told.raw
        await service.settled()
