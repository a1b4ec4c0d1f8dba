"""policies.admission: what is kept."""

from dataclasses import replace
from typing import Any, Literal

import pytest

from policies.admission import Finish, Refuse, Store, admit, finish, is_end
from policies.call import Endpoint
from policies.outcome import Abandoned, Completed, Ending, Failed, Usage
from policies.plan import Plan
from tests.policies.making import RULES, call_of, plan_of

DONE = Completed(Usage(10, 20), 1.5)


def refusal(status: int, fault: Literal["client", "backend", "ours"] = "client") -> Failed:
    return Failed(status=status, code="c", message="m", fault=fault)


def admitted(plan: Plan, ending: Ending, **known: Any) -> Store | Refuse:
    facts: dict[str, Any] = {"size_bytes": 100, "rules": RULES, "draw": 0.0}
    return admit(plan, ending, **facts | known)


def test_a_whole_answer_is_kept_for_the_plans_ttl() -> None:
    assert admitted(plan_of({"enabled": True, "ttl": 60}), DONE) == Store(60, False)


def test_a_stored_ttl_is_jittered() -> None:
    plan = plan_of({"enabled": True, "ttl": 60})
    assert admitted(plan, DONE, draw=0.5) == Store(57, False)


def test_an_abandoned_answer_is_not_kept() -> None:
    assert admitted(plan_of(), Abandoned()) == Refuse("unfinished")


def test_an_answer_is_kept_up_to_the_limit_and_no_further() -> None:
    limit = RULES.limits.max_entry_bytes
    assert isinstance(admitted(plan_of(), DONE, size_bytes=limit), Store)
    assert admitted(plan_of(), DONE, size_bytes=limit + 1) == Refuse("too_large")


@pytest.mark.parametrize(
    ("endpoint", "reasons", "how"),
    [
        ("chat", ["stop"], "whole"),
        ("chat", ["length", "tool_calls", "function_call"], "whole"),
        ("chat", ["STOP"], "whole"),
        ("chat", ["stop", "content_filter"], "filtered"),
        ("chat", ["stop", "error"], "unfinished"),
        ("chat", ["content_filter", "abort"], "unfinished"),
        ("chat", ["insufficient_system_resource"], "unfinished"),
        ("chat", ["network_error"], "unfinished"),
        ("chat", ["timeout"], "unfinished"),
        ("chat", [None], "unfinished"),
        ("chat", [""], "unfinished"),
        ("chat", [1], "unfinished"),
        ("chat", [["stop"]], "unfinished"),
        ("chat", [], "unfinished"),
        ("completions", ["stop", "length"], "whole"),
        ("completions", ["content_filter"], "filtered"),
        ("completions", ["tool_calls"], "unfinished"),
        ("embeddings", ["stop"], "unfinished"),
    ],
)
def test_only_a_closed_set_of_words_is_an_end(
    endpoint: Endpoint, reasons: list[object], how: Finish
) -> None:
    assert finish(endpoint, reasons) == how


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "content_filter"])
def test_a_good_end_and_a_filtered_one_are_ends(reason: str) -> None:
    assert is_end(reason)
    assert not is_end(f"{reason}_not")
    assert not is_end([reason])


def test_what_is_unfinished_is_not_kept() -> None:
    assert admitted(plan_of({"enabled": True}), DONE, finish="unfinished") == Refuse("unfinished")


def test_a_filtered_answer_is_kept_as_long_as_a_refusal_at_most() -> None:
    for wish, ttl_s in (({"ttl": 600}, RULES.negative_ttl_s), ({"ttl": 5}, 5)):
        plan = plan_of({"enabled": True, **wish})
        assert admitted(plan, DONE, finish="filtered") == Store(ttl_s, True)
    forgetful = replace(RULES, negative_ttl_s=0.0)
    plan = plan_of({"enabled": True})
    assert admitted(plan, DONE, finish="filtered", rules=forgetful) == Refuse("filtered")


@pytest.mark.parametrize(
    ("kv_cache", "cache_control", "why"),
    [
        ({}, "", "disabled"),
        ({"enabled": True, "strategy": "adaptive"}, "", "too_short"),
        ({"enabled": True, "stream": False}, "", "stream"),
        ({"enabled": True, "ttl": 0}, "", "ttl_0"),
        ({"enabled": True, "ttl": 0, "reuse": False}, "", "ttl_0"),
        ({"enabled": True}, "no-store", "no_store"),
        ({"enabled": True}, "no-cache, no-store", "no_store"),
    ],
)
def test_what_may_not_be_stored_is_refused_with_its_reason(
    kv_cache: dict[str, Any], cache_control: str, why: str
) -> None:
    plan = plan_of(kv_cache, headers={"Cache-Control": cache_control}, call=call_of(stream=True))
    for ending in (DONE, refusal(400), Abandoned()):
        assert admitted(plan, ending) == Refuse(why)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_deterministic_refusal_is_remembered_for_a_while(status: int) -> None:
    for fault in ("client", "backend"):
        found = admitted(plan_of(), refusal(status, fault), draw=1.0)
        assert found == Store(54, negative=True)


@pytest.mark.parametrize("status", [401, 403, 408, 409, 429, 500, 502, 503, 504])
def test_another_failure_is_not(status: int) -> None:
    assert admitted(plan_of(), refusal(status, "backend")) == Refuse("error")


def test_a_failure_of_ours_is_not_remembered_as_the_clients() -> None:
    assert admitted(plan_of(), refusal(404, "ours")) == Refuse("error")


def test_a_refusal_is_remembered_per_fingerprint_only() -> None:
    plan = plan_of({"enabled": True, "match": "key", "cache_key": "k"})
    assert admitted(plan, refusal(400)) == Refuse("error")


def test_a_refusal_does_not_replace_an_answer_that_was_to_be_renewed() -> None:
    plan = plan_of({"enabled": True, "reuse": False})
    assert admitted(plan, refusal(400)) == Refuse("error")


def test_the_operator_may_switch_negative_entries_off() -> None:
    rules = replace(RULES, negative_ttl_s=0.0)
    assert admitted(plan_of(), refusal(400), rules=rules) == Refuse("error")


def test_a_huge_refusal_is_not_remembered() -> None:
    assert admitted(plan_of(), refusal(400), size_bytes=10**9) == Refuse("too_large")
