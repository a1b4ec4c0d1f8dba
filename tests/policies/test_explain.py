"""policies.explain: honest words that tell nobody else's secrets."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from policies.call import canonical, parse_call
from policies.explain import MAX_DEBUG_BYTES, Difference, debug_line, difference, miss_reason
from policies.retention import Reason
from tests.policies.making import call_of, few, json_values, plan_of


def between(before: Any, now: Any) -> Difference | None:
    return difference(canonical(before), canonical(now))


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2]}}}


@pytest.mark.parametrize(
    ("before", "now", "field", "message", "character"),
    [
        (call_of("hello"), call_of("help"), "messages[0].content", 0, 3),
        (call_of("hello"), call_of("hello!"), "messages[0].content", 0, 5),
        (call_of("a", "b", "c"), call_of("a", "b", "d"), "messages[2].content", 2, 0),
        (call_of("a"), call_of("a", "b"), "messages[1]", 1, None),
        (call_of("a", "b"), call_of("a"), "messages[1]", 1, None),
        (
            call_of({"role": "user", "content": [{"type": "text", "text": "ab"}]}),
            call_of({"role": "user", "content": [{"type": "text", "text": "ac"}]}),
            "messages[0].content[0].text",
            0,
            1,
        ),
        (
            call_of({"role": "user", "content": None}),
            call_of({"role": "user"}),
            "messages[0].content",
            0,
            None,
        ),
        (call_of(seed=1), call_of(seed=2), "seed", None, None),
        (call_of(seed=1), call_of(seed=True), "seed", None, None),
        (call_of(seed=1), call_of(seed="1"), "seed", None, None),
        (call_of(seed=1), call_of(), "seed", None, None),
        (call_of(stop="a"), call_of(stop=["a"]), "stop", None, None),
        (call_of(stop=["ab"]), call_of(stop=["ac"]), "stop[0]", None, 1),
        (
            call_of(tools=[TOOL]),
            call_of(tools=[json.loads(json.dumps(TOOL).replace("2", "3"))]),
            "tools[0].function.parameters.a[1]",
            None,
            None,
        ),
        (
            call_of(endpoint="completions", prompt="ab"),
            call_of(endpoint="completions", prompt="ax"),
            "prompt",
            None,
            1,
        ),
        (
            call_of(endpoint="completions", prompt="a"),
            call_of(endpoint="embeddings", input="a"),
            "endpoint",
            None,
            None,
        ),
    ],
)
def test_the_first_difference_is_named_by_its_place(
    before: Any, now: Any, field: str, message: int | None, character: int | None
) -> None:
    assert between(before, now) == Difference(field, message, character)


def test_equal_requests_do_not_differ() -> None:
    assert between(call_of("a", seed=1), call_of("a", seed=1.0)) is None


def test_asking_without_context_is_a_difference_of_its_own() -> None:
    call = call_of("a")
    found = difference(canonical(call), canonical(call, context_aware=False))
    assert found == Difference("kv_cache.context_aware")


def test_a_difference_is_compact_json() -> None:
    assert Difference("messages[2].content", 2, 17).as_dict() == {
        "field": "messages[2].content",
        "message": 2,
        "character": 17,
    }
    assert Difference("seed").as_dict() == {"field": "seed"}
    assert Difference("messages[0].content", 0, 0).as_dict()["character"] == 0


def test_a_field_name_that_could_be_text_is_not_repeated() -> None:
    for name in ("my secret plan", "x" * 41, "naïve", "a.b", "a\nb"):
        assert between(call_of(x={name: 1}), call_of(x={name: 2})) == Difference("x.?")


def test_a_field_path_is_short_however_deep_it_leads() -> None:
    def nested(value: Any) -> Any:
        for _ in range(60):
            value = {"parameters": value}
        return value

    found = between(call_of(x=nested(1)), call_of(x=nested(2)))
    assert found is not None
    assert len(found.field) == 160


@given(one=json_values, other=json_values)
@few
def test_there_is_a_difference_exactly_where_canonical_forms_differ(one: Any, other: Any) -> None:
    before, now = (
        canonical(parse_call("chat", {"model": "m", "messages": [{"role": "user"}], "x": value}))
        for value in (one, other)
    )
    assert (difference(before, now) is None) == (before == now)
    assert difference(before, before) is None


PLAN = plan_of()
OTHER = canonical(call_of("another question"))


def reason(**known: Any) -> str:
    facts: dict[str, Any] = {"departed": None, "nearest": None, "other_scope": False}
    return miss_reason(facts.pop("plan", known.pop("plan", PLAN)), **facts | known)


def test_what_was_never_seen_is_cold() -> None:
    assert reason() == "cold"


@pytest.mark.parametrize("word", ["evicted", "expired", "invalidated"])
def test_what_is_gone_says_how_it_went(word: str) -> None:
    assert reason(departed=word, nearest=OTHER, other_scope=True) == word


def test_a_neighbour_with_another_question_is_a_matter_of_the_fingerprint() -> None:
    assert reason(nearest=OTHER, other_scope=True) == "fingerprint"
    assert reason(nearest=PLAN.canonical) == "cold"


def test_the_principals_own_entry_in_another_scope_is_a_matter_of_scope() -> None:
    assert reason(other_scope=True) == "scope"


@pytest.mark.parametrize(
    ("kv_cache", "cache_control", "word"),
    [
        ({}, "", "disabled"),
        ({"enabled": True, "strategy": "adaptive"}, "", "too_short"),
        ({"enabled": True, "reuse": False}, "", "no_cache"),
        ({"enabled": True, "stream": False}, "", "stream"),
    ],
)
def test_what_was_not_looked_for_says_why_whatever_is_stored(
    kv_cache: dict[str, Any], cache_control: str, word: str
) -> None:
    plan = plan_of(kv_cache, headers={"Cache-Control": cache_control}, call=call_of(stream=True))
    assert reason(plan=plan, departed="evicted", nearest=OTHER, other_scope=True) == word


@pytest.mark.parametrize(
    ("cache_control", "ttl", "word"), [("no-store", 9, "no_store"), ("", 0, "ttl_0")]
)
def test_what_is_never_stored_is_not_called_cold(cache_control: str, ttl: int, word: str) -> None:
    plan = plan_of({"enabled": True, "ttl": ttl}, headers={"Cache-Control": cache_control})
    assert reason(plan=plan) == word
    assert reason(plan=plan, departed="expired") == "expired"


def test_the_debug_line_tells_every_decision_in_order() -> None:
    plan = plan_of({"enabled": True, "cache_key": "faq:1", "colour": 1})
    facts = json.loads(debug_line(plan))
    assert facts["decisions"] == [[r.field, r.value, r.because] for r in plan.reasons]
    assert [name for name, _, _ in facts["decisions"]][:3] == ["enabled", "scope", "match"]
    assert facts["key"] == plan.public_key
    assert facts["unknown"] == ["kv_cache.colour"]
    assert "cut" not in facts


def test_the_debug_line_is_a_header_value_without_prompt_key_user_or_label() -> None:
    said = {
        "cache_key": "SECRET-key",
        "user": "SECRET-user",
        "tags": ["SECRET-tag"],
        "batch_id": "SECRET-batch",
        "context": "聊天",
        "a\x7f\n": 1,
    }
    line = debug_line(plan_of(said, call=call_of("SECRET-prompt")))
    assert line.isascii()
    assert line.isprintable()
    assert "SECRET" not in line
    assert json.loads(line)["unknown"] == ["kv_cache.a\x7f\n"]


def test_the_debug_line_never_grows_over_its_limit() -> None:
    said = {f"🔥{place:02}" + "🔥" * 40: 1 for place in range(16)}
    plan = plan_of({**said, "context": "🔥" * 128, "prompt_type": "🔥" * 128})
    facts = json.loads(debug_line(plan))
    assert len(debug_line(plan)) <= MAX_DEBUG_BYTES
    assert facts["cut"] is True
    endless = replace(plan, reasons=(Reason("x", "🔥" * 999, "y"),) * 9, model="🔥" * 9999)
    assert len(debug_line(endless)) <= MAX_DEBUG_BYTES
    assert json.loads(debug_line(endless))["decisions"] == []
