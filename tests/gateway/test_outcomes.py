"""What became of a call, as it is told."""

from gateway.chunks import Opening
from gateway.outcomes import forwarded, from_store, meta_of, with_opening, with_usage
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
