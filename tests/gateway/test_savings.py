"""Savings by kind, and what is left of them."""

from gateway.savings import NO_COLLAPSED_SECONDS, NO_PREFIX_SECONDS, savings
from gateway.tally import Group, Purpose, Statistics
from policies.outcome import Completed, Outcome, Usage


def counted() -> Statistics:
    """Two response hits, a semantic and a negative one, a prefix hit, a collapsed call on each level."""
    statistics = Statistics()

    def add(level: str, saved: int, seconds_saved: float, money: float, **more: object) -> None:
        group = Group("chat", level, 200, "hot", "m", "t", None)
        facts = {"key": "k", "tier": "hot", "level": level, "tokens_saved": saved, **more}
        outcome = Outcome(**facts)  # type: ignore[arg-type]  # the facts of a test
        statistics.group(group).add(outcome, seconds=0.1, seconds_saved=seconds_saved, money=money)

    add("response", 100, 2.0, 0.5, hit=True)
    add("response", 100, 2.0, 0.5, hit=True, stale=True)
    add("semantic", 10, 1.0, 0.25, hit=True)
    add("negative", 0, 0.0, 0.0, hit=True)
    add("prefix", 30, 0.0, 0.125, hit=True, hit_tokens=30)
    add("prefix", 100, 0.0, 0.5, hit=True, collapsed=True)
    add("none", 100, 0.0, 0.5, collapsed=True)
    add("none", 0, 0.0, 0.0)
    return statistics


def spent(statistics: Statistics) -> Statistics:
    warming = Purpose("warming", "hot", "m", "t")
    statistics.spent(warming).add(Completed(Usage(40, 5, 10), 1.5), money=0.0625)
    statistics.spent(warming).add(Completed(Usage(40, 5, 10), 1.5), money=0.0625)
    renewal = Purpose("revalidation", "hot", "m", "t")
    statistics.spent(renewal).add(Completed(Usage(10, 5, 0), 0.5), money=0.25)
    return statistics


def test_each_kind_of_saving_is_told_apart() -> None:
    told = savings(counted())
    assert told["response"] == {"calls": 3, "tokens": 210, "seconds": 5.0, "money": 1.25}
    assert told["collapsed"] == {
        "calls": 2,
        "tokens": 200,
        "seconds": None,
        "seconds_note": NO_COLLAPSED_SECONDS,
        "money": 1.0,
    }
    assert told["prefix"] == {
        "calls": 1,
        "tokens": 30,
        "seconds": None,
        "seconds_note": NO_PREFIX_SECONDS,
        "money": 0.125,
    }
    nothing = {"calls": 0, "tokens": 0, "seconds": 0, "money": 0}
    assert told["spent"] == {"warming": nothing, "revalidation": nothing}
    assert told["net"] == {"tokens": 440, "seconds": 5.0, "money": 2.375}


def test_what_warming_and_renewals_took_is_subtracted() -> None:
    told = savings(spent(counted()))
    assert told["spent"] == {
        "warming": {"calls": 2, "tokens": 70, "seconds": 3.0, "money": 0.125},
        "revalidation": {"calls": 1, "tokens": 15, "seconds": 0.5, "money": 0.25},
    }
    assert told["net"] == {"tokens": 440 - 85, "seconds": 1.5, "money": 2.0}


def test_caching_that_cost_more_than_it_saved_is_told_as_it_is() -> None:
    net = savings(spent(Statistics()))["net"]
    assert net == {"tokens": -85, "seconds": -3.5, "money": -0.375}
