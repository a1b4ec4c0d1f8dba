"""What is proposed is what a replay of it brings."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.trace import Event, Prompt, PromptTrace
from gateway.whatif_advice import Advice, advised
from gateway.whatif_run import Runner, Setting
from tests.kit.journals import asked_and_stored, begun, configured, hit, missed, trace_of

NAMES = [f"n{number}" for number in range(40)]
LARGE = 100_000


def runner_of(events: list[Event], **tiers: Any) -> tuple[Runner, Setting]:
    config = configured(freshness={"jitter": 0}, tiers=tiers)
    runner = Runner(trace_of(events, begun(config)), token_bytes=100)
    return runner, runner.as_recorded()


def rounds(gap_s: float, *, turns: int = 4) -> list[Event]:
    """Every question, and after ``gap_s`` every one again."""
    events: list[Event] = []
    for turn in range(turns):
        for place, name in enumerate(NAMES):
            at = turn * gap_s + place * 3.0
            events += asked_and_stored(at, name, size=LARGE)
    return events


def by_option(advice: list[Advice]) -> dict[str, Advice]:
    return {one.option: one for one in advice}


def test_a_full_tier_should_grow_as_far_as_it_helps() -> None:
    runner, base = runner_of(
        rounds(300.0), warm={"max_bytes": 2**20}, cold={"max_bytes": 0, "store": "memory"}
    )
    one = by_option(advised(runner, base))["tiers.warm.max_bytes"]
    assert (one.now, one.proposed) == (2**20, 2**22)
    grown = replace(base.rules.tiers["warm"], max_bytes=int(one.proposed))
    before, after = runner.run(base), runner.run(base.with_tiers("grown", {"warm": grown}))
    assert one.hits == after.totals["hits"] - before.totals["hits"] > 0
    assert one.tokens == after.totals["tokens_saved"] - before.totals["tokens_saved"]
    assert one.as_dict()["gain"]["hits"] == one.hits
    assert "want of room" in one.because


def test_a_tier_that_is_never_filled_may_shrink_once_a_day_was_seen() -> None:
    runner, base = runner_of(rounds(30_000.0), warm={"max_bytes": 2**30})
    one = by_option(advised(runner, base))["tiers.warm.max_bytes"]
    assert one.now == 2**30
    assert one.proposed == 2**23, "twice what it held, in whole powers of two"
    assert one.hits == 0
    assert "never held more" in one.because
    assert one.as_dict()["span_s"] == one.span_s > 86_400


@pytest.mark.parametrize("gap_s", [120.0, 3000.0, 28_000.0])
def test_no_size_shrinks_on_less_than_a_day(gap_s: float) -> None:
    runner, base = runner_of(rounds(gap_s), warm={"max_bytes": 2**28})
    assert not [one for one in advised(runner, base) if one.proposed < one.now]


def test_a_size_that_is_near_what_was_held_does_not_shrink() -> None:
    runner, base = runner_of(rounds(30_000.0), warm={"max_bytes": 2**24})
    assert "tiers.warm.max_bytes" not in by_option(advised(runner, base))


def test_answers_that_expire_too_soon_should_live_longer() -> None:
    runner, base = runner_of(rounds(3000.0, turns=2))
    one = by_option(advised(runner, base))["tiers.warm.ttl"]
    assert (one.now, one.proposed) == (1800.0, 3600.0)
    assert one.hits == len(NAMES)
    often, base = runner_of(rounds(3000.0, turns=4))
    assert by_option(advised(often, base))["tiers.warm.ttl"].proposed == 14_400.0
    assert "expired" in one.because
    patient, base = runner_of(rounds(300.0))
    assert "tiers.warm.ttl" not in by_option(advised(patient, base))


def test_a_ttl_is_not_proposed_beyond_the_limit() -> None:
    runner, base = runner_of(rounds(3000.0))
    limited = replace(base.rules, limits=replace(base.rules.limits, max_ttl_s=2000.0))
    assert "tiers.warm.ttl" not in by_option(advised(runner, replace(base, rules=limited)))


def test_where_nothing_would_change_nothing_is_proposed() -> None:
    events: list[Event] = [missed(0.0, "a", key=None, tier=None)]
    assert advised(*runner_of(events)) == []
    fits = [*asked_and_stored(0.0, "a", size=2**20), hit(9.0, "a")]
    assert advised(*runner_of(list(fits), warm={"max_bytes": 2**21})) == []


def test_memory_for_kv_should_be_doubled_until_it_finds_what_there_is() -> None:
    runner = Runner(
        PromptTrace([Prompt(float(n), 512, [n % 12]) for n in range(240)]), token_bytes=2
    )
    base = runner.setting("s", configured(), kv_bytes=2048)
    small = replace(base, room=runner.room(2048))
    (one,) = advised(runner, small)
    assert (one.option, one.now, one.proposed) == ("engine.kv_memory", 2048, 16_384)
    assert (one.hits, one.tokens) == (228, 228 * 512)
    assert one.money > 0
    assert "of 95.0% without bound" in one.because
    assert advised(runner, replace(base, room=runner.room(2**20))) == []
    assert advised(runner, base) == [], "a backend says its room in tokens: nothing to set"
