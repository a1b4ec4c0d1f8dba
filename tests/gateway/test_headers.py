"""An outcome as headers and body fields: protocol section 4, and nothing that could forge a line."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import annotated, annotated_usage, cache_status, render, replayable, replayed
from policies.call import RequestError
from policies.explain import Difference, debug_line
from policies.outcome import Outcome
from tests.kit.entries import asked
from tests.kit.scripted_backend import body_of

CALL, PLAN = asked()
KEY = PLAN.public_key
MISS = Outcome(
    key=KEY, tier="warm", stored=True, ttl_left_s=1800.0, forwarded="uri-miss", miss_reason="cold"
)
HIT = Outcome(
    key=KEY,
    tier="hot",
    level="response",
    hit=True,
    age_s=12.9,
    ttl_left_s=287.4,
    tokens_saved=7,
)


def test_a_miss_says_what_will_be_kept() -> None:
    assert render(PLAN, MISS) == {
        "X-Cache-Hit": "false",
        "X-Cache-Level": "none",
        "X-Cache-Tier": "warm",
        "X-Cache-Key": KEY,
        "X-Cache-TTL": "1800",
        "Cache-Status": f'kvgate; fwd=uri-miss; stored; key="{KEY}"',
    }


def test_a_hit_says_how_old_it_is_and_what_it_saved() -> None:
    assert render(PLAN, HIT) == {
        "X-Cache-Hit": "true",
        "X-Cache-Level": "response",
        "X-Cache-Tier": "hot",
        "X-Cache-Key": KEY,
        "X-Cache-TTL": "287",
        "Age": "12",
        "X-Cache-Tokens-Saved": "7",
        "Cache-Status": f'kvgate; hit; ttl=287; detail=response; key="{KEY}"',
    }


def test_an_answer_of_which_a_part_was_stored_says_so() -> None:
    partial = replace(HIT, forwarded="partial")
    assert cache_status(PLAN, partial) == f'kvgate; fwd=partial; detail=response; key="{KEY}"'
    stored = replace(partial, stored=True)
    assert "; fwd=partial; stored; detail=" in cache_status(PLAN, stored)


def test_a_stale_hit_says_so() -> None:
    headers = render(PLAN, replace(HIT, stale=True, ttl_left_s=-10.5))
    assert headers["X-Cache-Stale"] == "true"
    assert headers["X-Cache-TTL"] == "0"
    assert "ttl=-10;" in headers["Cache-Status"]  # negative: so long since it was fresh


def test_without_caching_no_key_and_no_tier_is_shown() -> None:
    _, plan = asked(kv_cache=False)
    headers = render(plan, Outcome(key=KEY, tier="warm", forwarded="bypass"))
    assert headers == {
        "X-Cache-Hit": "false",
        "X-Cache-Level": "none",
        "Cache-Status": "kvgate; fwd=bypass",
    }


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (replace(MISS, stored=False), "kvgate; fwd=uri-miss"),
        (replace(MISS, collapsed=True), "kvgate; fwd=uri-miss; collapsed; stored"),
        (replace(MISS, forwarded="stale"), "kvgate; fwd=stale; stored"),
        (replace(MISS, forwarded="request"), "kvgate; fwd=request; stored"),
        (replace(MISS, forwarded=None), "kvgate; fwd=uri-miss; stored"),
        (replace(MISS, detail="store-error"), "kvgate; fwd=uri-miss; stored; detail=store-error"),
        (replace(MISS, level="prefix", hit=True), "kvgate; fwd=uri-miss; stored; detail=prefix"),
        (replace(HIT, level="negative"), "kvgate; hit; ttl=287; detail=negative"),
        (replace(HIT, ttl_left_s=None), "kvgate; hit; detail=response"),
    ],
)
def test_cache_status_is_a_member_of_rfc_9211(outcome: Outcome, status: str) -> None:
    assert cache_status(PLAN, outcome) == f'{status}; key="{KEY}"'


def test_reasons_are_told_only_on_request() -> None:
    _, plan = asked(kv_cache={"enabled": True, "debug": True})
    explained = replace(
        MISS,
        miss_reason="fingerprint",
        difference=Difference("messages[2].content", 2, 17),
        debug=debug_line(plan),
    )
    assert "X-Cache-Debug" not in render(PLAN, explained)
    headers = render(plan, explained)
    assert headers["X-Cache-Miss-Reason"] == (
        'fingerprint; field="messages[2].content"; message=2; character=17'
    )
    assert orjson.loads(headers["X-Cache-Debug"])["key"] == plan.public_key
    assert "X-Cache-Miss-Reason" not in render(plan, HIT)
    assert "X-Cache-Debug" not in render(plan, HIT)


@given(
    st.text(min_size=1, max_size=40),
    st.text(max_size=40),
    st.text(max_size=40),
    st.text(max_size=9),
)
def test_no_text_of_a_client_can_end_a_header(key: str, kind: str, user: str, model: str) -> None:
    wish = {"enabled": True, "cache_key": key, "context": kind, "user": user, "debug": True, key: 1}
    try:
        _, plan = asked(kv_cache=wish, model=model or "m")
    except RequestError:
        return
    outcome = replace(MISS, debug=debug_line(plan), difference=Difference("messages[0].?", 0, 1))
    for value in render(plan, outcome).values():
        assert value.isascii()
        assert value.isprintable()


def test_the_body_is_marked_and_the_original_left_alone() -> None:
    body = body_of()
    marked = annotated(body, HIT)
    assert marked["cache_hit"] is True
    assert "cache_hit" not in body
    assert body["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert annotated({"x": 1, "usage": None}, MISS) == {"x": 1, "usage": None, "cache_hit": False}


@pytest.mark.parametrize(
    ("usage", "hit", "miss"),
    [
        ({"prompt_tokens": 9}, 0, 9),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4, "x": 1}}, 4, 5),
        ({"prompt_tokens": 9, "prompt_tokens_details": None}, 0, 9),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, 4, 5),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": None}, 0, 9),
        ({"prompt_tokens": 9, "prompt_tokens_details": "odd"}, 0, 9),
    ],
)
def test_reuse_is_told_in_both_dialects(usage: dict[str, Any], hit: int, miss: int) -> None:
    told = annotated_usage(usage)
    assert told["prompt_cache_hit_tokens"] == told["prompt_tokens_details"]["cached_tokens"] == hit
    assert told["prompt_cache_miss_tokens"] == miss
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict):
        assert told["prompt_tokens_details"].items() >= {"x": 1}.items()


def test_a_usage_without_prompt_tokens_is_left_as_it_is() -> None:
    assert annotated_usage({"input_tokens": 3}) == {"input_tokens": 3}


def test_what_is_stored_is_the_answer_without_its_id_and_date() -> None:
    kept = replayable(body_of(extra=[1]))
    answer = orjson.loads(replayed(kept, "chatcmpl-new", 1_700_000_000))
    assert answer == {
        **annotated(body_of(extra=[1]), HIT),
        "id": "chatcmpl-new",
        "created": 1_700_000_000,
    }
    assert list(answer)[:2] == ["id", "created"]


def test_an_answer_that_has_no_id_gets_none() -> None:
    body = {"object": "list", "data": [], "usage": {"prompt_tokens": 3}}
    assert orjson.loads(replayed(replayable(body), None, 0)) == annotated(body, HIT)


def test_a_receipt_is_shown_to_who_wants_an_explanation_and_never_kept() -> None:
    body = {"id": "a", "kv_receipt": {"hot": 32}, "choices": []}
    plain = Outcome(key="k", tier="warm")
    assert "kv_receipt" not in annotated(body, plain)
    explained = annotated(body, replace(plain, debug="{}"))
    assert explained["kv_receipt"] == {"hot": 32}
    assert b"kv_receipt" not in replayable(body)
    assert b"kv_receipt" not in replayable({**body, "object": "response"})
    assert body["kv_receipt"] == {"hot": 32}
