"""What a reader of a stream is owed: marks always, usage when it was asked for."""

from dataclasses import replace

import orjson
import pytest

from gateway.chunks import Chunk, Json, Whole
from gateway.flights import TURN
from gateway.routes.owed import events_owed, replay_owed
from gateway.sse import Parser
from policies.call import Call, parse_call
from policies.outcome import Outcome
from tests.kit.scripted_backend import body_of, delta

HIT, MISS = (
    Outcome(level="response" if hit else "none", hit=hit, key="k", tier="warm")
    for hit in (True, False)
)

ENDED = {"type": "response.completed", "sequence_number": 7}


def call_of(*, usage: bool) -> Call:
    options = {"include_usage": usage}
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": messages, "stream": True, "stream_options": options}
    return parse_call("chat", body)


def owed(part: Chunk | Whole, outcome: Outcome = MISS, *, usage: bool = False) -> list[Json]:
    events = events_owed(part, outcome, call_of(usage=usage))
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


@pytest.mark.parametrize(("outcome", "hit"), [(HIT, True), (MISS, False)])
def test_every_event_says_whether_it_was_a_hit(outcome: Outcome, hit: bool) -> None:
    assert [event["cache_hit"] for event in owed(delta("x"), outcome)] == [hit]


def test_usage_is_owed_to_those_who_asked_for_it() -> None:
    last = Chunk({**delta().data, "choices": [], "usage": body_of()["usage"]})
    assert owed(last) == []
    (event,) = owed(last, usage=True)
    assert event["usage"]["total_tokens"] == 7
    assert "usage" not in owed(delta("x", usage=None))[0]
    assert owed(delta("x"), usage=True)[0]["usage"] is None


def test_a_receipt_comes_with_the_usage_to_who_wants_an_explanation() -> None:
    usage = body_of()["usage"]
    last = Chunk({**delta().data, "choices": [], "usage": usage, "kv_receipt": {"hot": 32}})
    assert "kv_receipt" not in owed(last, usage=True)[0]
    explained = replace(MISS, debug="{}")
    assert owed(last, explained, usage=True)[0]["kv_receipt"] == {"hot": 32}
    assert owed(last, explained) == []


def test_what_the_backend_reused_is_a_hit_though_the_head_is_gone() -> None:
    usage = {**body_of()["usage"], "prompt_tokens_details": {"cached_tokens": 3}}
    last = Chunk({**delta().data, "choices": [], "usage": usage})
    assert owed(last, usage=True)[0]["cache_hit"] is True


def test_a_whole_answer_is_told_as_a_stream() -> None:
    text = "".join(
        choice["delta"].get("content") or ""
        for event in owed(Whole(body_of("Hello.")), HIT)
        for choice in event["choices"]
    )
    assert text == "Hello."


@pytest.mark.parametrize("count", [1, 5 * TURN])
async def test_a_long_replay_comes_in_portions(count: int) -> None:
    body = {"object": "response", "status": "completed", "output": [{}], "id": "r"}
    log = [[{"type": "response.refusal.delta"}, ["a"] * count], {**ENDED, "response": None}]
    call = parse_call("responses", {"model": "m", "input": "x", "stream": True})
    replay = replay_owed(Whole(body, log), HIT, call)
    portions = [replay] if isinstance(replay, bytes) else [some async for some in replay]
    assert len(portions) == (1 if count == 1 else 6)
    events = [event.data for portion in portions for event in Parser().feed(portion)]
    assert len(events) == count + 1
    assert orjson.loads(events[-1]) == {**ENDED, "response": {**body, "cache_hit": True}}
