"""What a request to warm asks for, and which field is wrong when it is."""

from typing import Any

import pytest

from policies.call import RequestError, parse_call
from policies.directive import parse_directive
from policies.plan import decide
from policies.rules import Limits, default_rules
from policies.warming import MAX_ITEMS, MAX_MESSAGES, Item, parse_wish, pattern_items
from tests.policies.making import OPEN

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
FAQ: dict[str, Any] = {"id": "faq", "base_messages": [SYSTEM], "variations": ["One?", "Two?"]}


def parsed(wish: dict[str, Any], **configured: tuple[Item, ...]) -> tuple[Item, ...]:
    return parse_wish(wish, configured, limits=Limits())


def refused(wish: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parsed(wish)
    return caught.value


def test_each_variation_is_the_call_that_a_client_makes() -> None:
    first, second = parsed({"patterns": [FAQ]})
    assert first.pattern == "faq"
    assert first.where == "patterns[0].variations[0]"
    assert first.body == {
        "model": "default",
        "messages": [SYSTEM, {"role": "user", "content": "One?"}],
        "kv_cache": {"enabled": True, "preload": True},
    }
    assert second.where == "patterns[0].variations[1]"
    assert second.body["messages"][-1]["content"] == "Two?"


def test_a_later_call_of_a_client_has_the_same_key() -> None:
    (item,) = parsed(
        {
            "questions": [{"question": "One?", "cache_key": "faq:1"}],
            "params": {"max_tokens": 400},
            "ttl": 86400,
        }
    )
    asked = {
        "model": "default",
        "messages": [{"role": "user", "content": "One?"}],
        "max_tokens": 400,
        "stream": True,
    }
    plans = [
        decide(
            parse_call("chat", body),
            parse_directive(kv_cache, (), limits=Limits()),
            OPEN,
            default_rules(),
        )
        for body, kv_cache in (
            (item.body, item.body["kv_cache"]),
            (asked, {"enabled": True, "cache_key": "faq:1"}),
        )
    ]
    assert plans[0].key == plans[1].key
    assert (plans[0].lane, plans[0].preload, plans[0].ttl_s) == ("warm", True, 86400.0)


def test_what_a_pattern_wishes_holds_for_its_variations_unless_one_says_otherwise() -> None:
    pattern = {
        **FAQ,
        "variations": [
            "One?",
            {"role": "user", "content": "Two?"},
            {
                "question": "Three?",
                "model": "other",
                "params": {"temperature": 1},
                "ttl": 60,
                "kv_cache": {"tags": ["b"]},
            },
        ],
        "model": "m",
        "params": {"temperature": 0, "max_tokens": 9},
        "ttl": 600,
        "tier": "hot",
        "priority": "low",
        "kv_cache": {"tags": ["a"], "scope": "tenant"},
        "warmed_at": None,
    }
    one, two, three = (dict(item.body) for item in parsed({"patterns": [pattern]}))
    common = {"scope": "tenant", "tier": "hot", "priority": "low", "enabled": True, "preload": True}
    assert one["kv_cache"] == {**common, "tags": ["a"], "ttl": 600}
    assert {**one, "messages": None} == {**two, "messages": None}
    assert two["messages"] == [SYSTEM, {"role": "user", "content": "Two?"}]
    assert three["kv_cache"] == {**common, "tags": ["b"], "ttl": 60}
    assert (three["model"], three["temperature"], three["max_tokens"]) == ("other", 1, 9)


def test_patterns_may_stand_under_their_ids() -> None:
    (item,) = parsed({"patterns": {"faq": {"variations": ["One?"]}}})
    assert (item.pattern, item.where) == ("faq", "patterns.faq.variations[0]")


def test_a_pattern_needs_no_base() -> None:
    (item,) = parsed({"patterns": [{"id": "faq", "base_messages": None, "variations": ["?"]}]})
    assert item.body["messages"] == [{"role": "user", "content": "?"}]


def test_a_list_of_questions_may_share_a_base() -> None:
    (item,) = parsed({"questions": ["One?"], "base_messages": [SYSTEM]})
    assert (item.pattern, item.where) == ("questions", "questions[0]")
    assert item.body["messages"][0] == SYSTEM


def test_a_pattern_of_the_configuration_is_named() -> None:
    items = pattern_items(FAQ, "faq", limits=Limits())
    assert parsed({"pattern": "faq"}, faq=items) == items


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({}, None),
        ({"patterns": [FAQ], "questions": ["?"]}, "questions"),
        ({"patterns": 5}, "patterns"),
        ({"patterns": []}, "patterns"),
        ({"patterns": {}}, "patterns"),
        ({"patterns": [FAQ], "model": "m"}, "model"),
        ({"patterns": [5]}, "patterns[0]"),
        ({"patterns": {"faq": 5}}, "patterns.faq"),
        ({"patterns": [{**FAQ, "id": None}]}, "patterns[0].id"),
        ({"patterns": [{**FAQ, "id": ""}]}, "patterns[0].id"),
        ({"patterns": [{**FAQ, "id": "x" * 129}]}, "patterns[0].id"),
        ({"patterns": [{**FAQ, "id": "a\nb"}]}, "patterns[0].id"),
        ({"patterns": [{**FAQ, "variation": []}]}, "patterns[0].variation"),
        ({"patterns": [FAQ, {**FAQ, "variations": None}]}, "patterns[1].variations"),
        ({"patterns": [{**FAQ, "variations": "One?"}]}, "patterns[0].variations"),
        ({"patterns": [{**FAQ, "variations": []}]}, "patterns[0].variations"),
        ({"patterns": [{**FAQ, "variations": ["a", "b", 3]}]}, "patterns[0].variations[2]"),
        ({"patterns": [{**FAQ, "variations": [{}]}]}, "patterns[0].variations[0].role"),
        (
            {"patterns": [{**FAQ, "variations": [{"role": "user", "content": 5}]}]},
            "patterns[0].variations[0].content",
        ),
        ({"patterns": [{**FAQ, "base_messages": {}}]}, "patterns[0].base_messages"),
        ({"patterns": [{**FAQ, "base_messages": "x"}]}, "patterns[0].base_messages"),
        (
            {"patterns": [{**FAQ, "base_messages": [SYSTEM, 5]}]},
            "patterns[0].base_messages[1]",
        ),
        ({"patterns": [{**FAQ, "model": 5}]}, "patterns[0].model"),
        ({"patterns": [{**FAQ, "model": ""}]}, "patterns[0].model"),
        ({"patterns": [{**FAQ, "params": []}]}, "patterns[0].params"),
        ({"patterns": [{**FAQ, "params": {"messages": []}}]}, "patterns[0].params.messages"),
        (
            {"patterns": [{**FAQ, "params": {"stream": "yes"}}]},
            "patterns[0].variations[0].params.stream",
        ),
        ({"patterns": [{**FAQ, "ttl": -1}]}, "patterns[0].ttl"),
        ({"patterns": [{**FAQ, "tier": "tepid"}]}, "patterns[0].tier"),
        ({"patterns": [{**FAQ, "kv_cache": 5}]}, "patterns[0].kv_cache"),
        ({"patterns": [{**FAQ, "kv_cache": {"scope": 5}}]}, "patterns[0].kv_cache.scope"),
        ({"pattern": 5}, "pattern"),
        ({"pattern": "unknown"}, "pattern"),
        ({"pattern": "faq", "ttl": 5}, "ttl"),
        ({"questions": ["?"], "variations": []}, "variations"),
        ({"questions": [{"question": 5}]}, "questions[0].question"),
        ({"questions": [{"question": "?", "answer": "!"}]}, "questions[0].answer"),
        ({"questions": [{"question": "?", "cache_key": ""}]}, "questions[0].cache_key"),
        ({"questions": [{"question": "?", "priority": 1}]}, "questions[0].priority"),
        ({"questions": ["?"] * (MAX_ITEMS + 1)}, "questions"),
    ],
)
def test_what_is_wrong_is_named(wish: dict[str, Any], param: str | None) -> None:
    error = refused(wish)
    assert error.param == param
    if param is not None and error.code != "pattern_not_found":
        assert param in error.message or param in {"questions", "pattern"}
    assert error.status == (404 if error.code == "pattern_not_found" else 400)


def test_a_member_that_is_unknown_is_shortened_in_the_answer() -> None:
    assert refused({"questions": ["?"], "x" * 1000: 1}).param == "x" * 64


def test_the_base_is_held_once_for_all_questions_of_a_pattern() -> None:
    base = [SYSTEM] * 50
    items = parsed({"patterns": [{"id": "p", "base_messages": base, "variations": ["a", "b"]}]})
    assert items[0].base is items[1].base
    assert [item.own["messages"] for item in items] == [
        [{"role": "user", "content": text}] for text in "ab"
    ]
    assert items[1].body["messages"] == [*base, {"role": "user", "content": "b"}]


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"patterns": [{"id": "p", "base_messages": [SYSTEM] * 400, "variations": ["a"] * 300}]},
         "patterns[0].variations"),
        ({"base_messages": [SYSTEM] * 400, "questions": ["a"] * 300}, "questions"),
        ({"patterns": [{"id": f"p{number}", "base_messages": [SYSTEM] * 400, "variations": ["a"] * 60}
                       for number in range(5)]}, "patterns"),
    ],
)  # fmt: skip
def test_questions_times_messages_are_bounded_by_name(wish: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(wish)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert str(MAX_MESSAGES) in caught.value.message


def test_a_bad_base_is_named_in_the_first_question_and_a_bad_question_by_its_own_place() -> None:
    bad_base = {"id": "p", "base_messages": [SYSTEM, {}], "variations": ["a", "b"]}
    with pytest.raises(RequestError) as caught:
        parsed({"patterns": [bad_base]})
    assert caught.value.param == "patterns[0].base_messages[1].role"
    bad_last = {"id": "p", "base_messages": [SYSTEM], "variations": ["a", {"content": "b"}]}
    with pytest.raises(RequestError) as caught:
        parsed({"patterns": [bad_last]})
    assert caught.value.param == "patterns[0].variations[1].role"
