"""What became of a call, as it is told."""

from dataclasses import replace
from typing import Any

from gateway.chunks import Opening
from gateway.outcomes import (
    forwarded,
    from_store,
    meta_of,
    of_several,
    with_opening,
    with_usage,
)
from policies.admission import Store
from policies.freshness import Fresh, Stale
from policies.outcome import Outcome, Usage
from policies.rules import default_rules
from tests.kit.entries import asked, entry_of
from tests.kit.scripted_backend import ScriptedBackend, completed, failed

MISSED = Outcome(key="k", tier="warm", forwarded="uri-miss")
FRESH = Fresh(age_s=3.0, ttl_left_s=97.0, refresh_ahead=False)


def test_an_opening_that_speaks_of_reuse_makes_a_prefix_hit() -> None:
    outcome = with_opening(MISSED, Opening({}, 8, 2), ScriptedBackend(), collapsed=False)
    assert (outcome.level, outcome.hit, outcome.backend) == ("prefix", True, "scripted")
    assert (outcome.prompt_tokens, outcome.tokens_saved, outcome.miss_tokens) == (10, 8, 2)


def test_an_opening_that_says_nothing_leaves_it_open() -> None:
    outcome = with_opening(MISSED, Opening({}), ScriptedBackend(), collapsed=True)
    assert (outcome.level, outcome.hit, outcome.collapsed) == ("none", False, True)


def test_who_read_along_saved_all_of_it() -> None:
    alone = with_usage(MISSED, Usage(10, 5, 4))
    along = with_usage(with_opening(MISSED, Opening({}), ScriptedBackend(), collapsed=True),
                       Usage(10, 5, 4))  # fmt: skip
    assert (alone.tokens_saved, along.tokens_saved) == (4, 15)


def test_a_stored_answer_saves_what_it_had_cost() -> None:
    _, plan = asked(kv_cache={"enabled": True, "debug": True})
    outcome = from_store(entry_of(), plan, FRESH)
    assert (outcome.level, outcome.hit, outcome.stale, outcome.tokens_saved) == (
        "response", True, False, 7,
    )  # fmt: skip
    assert (outcome.age_s, outcome.ttl_left_s) == (3.0, 97.0)
    assert outcome.debug is not None


def test_a_stored_refusal_and_a_stale_answer_say_what_they_are() -> None:
    _, plan = asked()
    refusal = from_store(entry_of(status=404), plan, FRESH)
    assert (refusal.level, refusal.status) == ("negative", 404)
    assert from_store(
        entry_of(), plan, Stale(age_s=120.0, usable="on_error", ttl_left_s=-20.0)
    ).stale


def test_why_a_backend_is_asked() -> None:
    said = [
        forwarded(asked(kv_cache=wish)[1], expired=expired)
        for wish, expired in [
            (False, False), ({"enabled": True, "reuse": False}, False), (True, True), (True, False),
        ]
    ]  # fmt: skip
    assert said == ["bypass", "request", "stale", "uri-miss"]


def test_a_new_entry_knows_its_plan_and_its_cost() -> None:
    call, plan = asked(kv_cache={"enabled": True, "cache_key": "a", "tags": ["x"], "tier": "hot"})
    rules = default_rules()
    meta = meta_of(
        call, plan, completed(duration_s=2.5), Store(90.0, False), rules, now=5.0, size_bytes=9
    )
    assert (meta.key, meta.cache_key, meta.tags, meta.tier) == (plan.key, "a", ("x",), "hot")
    assert (meta.stored_at, meta.ttl_s, meta.size_bytes, meta.cost_s) == (5.0, 90.0, 9, 2.5)
    assert (meta.prompt_tokens, meta.completion_tokens, meta.status) == (5, 2, 200)
    refusal = meta_of(call, plan, failed(404), Store(60.0, True), rules, now=5.0, size_bytes=9)
    assert (refusal.status, refusal.cost_s) == (404, 0.0)


def computed(tokens: int, **more: Any) -> Outcome:
    """An input that the backend computed."""
    return with_usage(replace(MISSED, stored=True, ttl_left_s=100.0, **more), Usage(tokens, 0, 0))


def kept(tokens: int, **more: Any) -> Outcome:
    """An input that came from the store."""
    _, plan = asked()
    meta = entry_of(prompt_tokens=tokens, completion_tokens=0)
    return replace(from_store(meta, plan, FRESH), **more)


def test_several_inputs_are_a_hit_when_one_is() -> None:
    _, plan = asked()
    outcome = of_several(plan, [(computed(3), 1), (kept(4, age_s=9.0, ttl_left_s=5.0), 2)])
    assert (outcome.level, outcome.hit, outcome.forwarded) == ("response", True, "partial")
    assert (outcome.tokens_saved, outcome.prompt_tokens, outcome.miss_tokens) == (8, 11, 3)
    assert (outcome.age_s, outcome.ttl_left_s, outcome.key) == (9.0, 5.0, plan.public_key)


def test_several_inputs_from_the_store_need_no_backend() -> None:
    _, plan = asked(kv_cache={"enabled": True, "debug": True})
    outcome = of_several(plan, [(kept(3), 1), (kept(4, stale=True, age_s=200.0), 1)])
    assert (outcome.level, outcome.forwarded, outcome.stale) == ("response", None, True)
    assert (outcome.tokens_saved, outcome.age_s) == (7, 200.0)
    assert outcome.debug is not None


def test_several_inputs_that_were_all_computed_are_a_miss() -> None:
    _, plan = asked()
    outcome = of_several(plan, [(computed(3), 1), (computed(4), 3)])
    assert (outcome.level, outcome.hit, outcome.forwarded) == ("none", False, "uri-miss")
    assert (outcome.tokens_saved, outcome.prompt_tokens, outcome.age_s) == (0, 15, None)


def test_several_inputs_of_which_some_read_along_are_partly_forwarded() -> None:
    _, plan = asked()
    along, failing = (
        computed(3, collapsed=True),
        computed(4, store_error=True, detail="store-error"),
    )
    both = of_several(plan, [(along, 1), (failing, 1)])
    assert (both.collapsed, both.forwarded) == (True, "partial")
    assert (both.tokens_saved, both.miss_tokens) == (3, 4)
    assert (both.store_error, both.detail) == (True, "store-error")
    all_of_them = of_several(plan, [(along, 2)])
    assert (all_of_them.collapsed, all_of_them.forwarded) == (True, "uri-miss")
    assert all_of_them.tokens_saved == 6


def test_a_backend_that_reuses_a_prefix_makes_several_inputs_a_prefix_hit() -> None:
    _, plan = asked()
    reused = with_usage(MISSED, Usage(5, 0, 2))
    outcome = of_several(plan, [(reused, 1), (computed(4), 1)])
    assert (outcome.level, outcome.hit, outcome.hit_tokens) == ("prefix", True, 2)
