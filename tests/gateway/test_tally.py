"""One sum per kind of call; whatever is asked of it adds up."""

import json
from typing import Any

import pytest

from gateway import tally as module
from gateway.tally import MAX_NAME, Group, Purpose, Statistics
from policies.outcome import Completed, Outcome, Usage

HIT = Outcome(key="k", tier="hot", level="response", hit=True, tokens_saved=7, stale=True)
MISS = Outcome(key="k", tier="hot", miss_tokens=5, completion_tokens=3, collapsed=True)


def group(**change: Any) -> Group:
    return Group("chat", "response", 200, "hot", "m", "t", None)._replace(**change)


def counted(*, hits: int, misses: int) -> Statistics:
    statistics = Statistics()
    for _ in range(hits):
        statistics.group(group()).add(HIT, seconds=0.002, seconds_saved=1.5, money=0.25)
    for _ in range(misses):
        tally = statistics.group(group(level="none", reason="cold", model="n"))
        tally.add(MISS, seconds=3.0, seconds_saved=0.0, money=0.0)
    statistics.refused("chat", 404)
    statistics.store_failures += 1
    ending = Completed(Usage(10, 4, 3), 1.5)
    statistics.spent(Purpose("warming", "hot", "m", "t")).add(ending, money=0.25)
    return statistics


def test_sums_by_any_name_add_up_to_the_total() -> None:
    statistics = counted(hits=3, misses=2)
    assert statistics.total.as_dict() == {
        "requests": 5, "hits": 3, "hit_rate": 0.6, "stored_answers": 3, "stored_rate": 0.6,
        "prompt_tokens": 0, "prompt_tokens_reused": 0, "reuse_rate": 0.0, "tokens_saved": 21,
        "seconds_saved": 4.5, "money_saved": 0.75,
    }  # fmt: skip
    assert statistics.by("model")["m"].hits == statistics.by("level")["response"].requests == 3
    assert statistics.by("reason")["cold"].requests == statistics.total.collapsed == 2
    assert (statistics.total.stale, statistics.errors, statistics.store_errors) == (3, 1, 1)
    assert repr(statistics) == "<Statistics 5 requests, 3 hits, 1 errors>"


def test_stored_answers_and_reused_prompts_are_never_one_number() -> None:
    statistics = Statistics()
    reused = Outcome(key="k", tier="hot", level="prefix", hit=True, hit_tokens=30, miss_tokens=10)
    computed = Outcome(key="k", tier="hot", miss_tokens=60)
    refused = Outcome(key="k", tier="hot", level="negative", hit=True)
    along = Outcome(
        key="k", tier="hot", level="prefix", hit=True, hit_tokens=30, miss_tokens=10, collapsed=True
    )
    for outcome in (HIT, HIT, reused, computed, refused, along):
        tally = statistics.group(group(level=outcome.level))
        tally.add(outcome, seconds=0.1, seconds_saved=0.0, money=0.0)
    told = statistics.total.as_dict()
    assert (told["requests"], told["hits"]) == (6, 5), "either level helped, or a refusal was known"
    assert (told["stored_answers"], told["stored_rate"]) == (2, round(2 / 6, 4))
    assert (told["prompt_tokens_reused"], told["prompt_tokens"]) == (30, 100), (
        "who reads along sends none"
    )
    assert told["reuse_rate"] == 0.3
    views = statistics.views()
    assert views.models["m"].as_dict() == told
    assert Statistics.of(json.loads(json.dumps(statistics.as_dict()))).total.as_dict() == told


def test_what_several_processes_counted_is_added_up() -> None:
    whole = Statistics()
    for part in (counted(hits=1, misses=2), counted(hits=4, misses=0)):
        whole.merge(Statistics.of(json.loads(json.dumps(part.as_dict()))))
    apart, together = counted(hits=5, misses=2).as_dict(), whole.as_dict()
    assert together["groups"] == apart["groups"]
    assert together["spent"] == [["warming", "hot", "m", "t", [2, 6, 14, 8, 3.0, 0.5]]]
    assert (whole.errors, whole.store_errors) == (2, 2)


@pytest.mark.parametrize(
    "data", [{}, {"store_failures": 0, "refused": [], "groups": [["chat"]]}, {"store_failures": 0}]
)
def test_what_is_no_statistics_is_refused(data: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Statistics.of(data)


def test_a_tenant_is_told_of_itself_alone() -> None:
    statistics = counted(hits=3, misses=2)
    statistics.group(group(tenant="u")).add(HIT, seconds=0.1, seconds_saved=9.0, money=9.0)
    statistics.spent(Purpose("revalidation", "hot", "m", "u")).add(
        Completed(Usage(), 9.0), money=9.0
    )
    own = statistics.of_tenant("t")
    assert own.as_dict() == counted(hits=3, misses=2).as_dict() | {
        "store_failures": 0,
        "refused": [],
    }
    assert own.total.requests == 5
    assert statistics.of_tenant("nobody").total.requests == 0


def test_who_reads_along_is_summed_apart_too() -> None:
    tally = counted(hits=1, misses=0).group(group(level="none"))
    waited = Outcome(key="k", tier="hot", tokens_saved=9, collapsed=True)
    for _ in range(2):
        tally.add(waited, seconds=0.1, seconds_saved=0.0, money=0.5)
    tally.add(
        Outcome(key="k", tier="hot", tokens_saved=1), seconds=0.1, seconds_saved=0.0, money=1.0
    )
    assert (tally.collapsed, tally.collapsed_tokens, tally.collapsed_money) == (2, 18, 1.0)
    assert (tally.tokens_saved, tally.money_saved) == (19, 2.0)


def test_names_are_bounded_in_number_and_in_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LABELS", 2)
    statistics = Statistics()
    for name in ("a", "b", "c", "d", "x" * 1000):
        statistics.group(group(model=name)).requests += 1
    assert {name: one.requests for name, one in statistics.by("model").items()} == {
        "a": 1, "b": 1, "other": 3,
    }  # fmt: skip
    statistics.spent(Purpose("warming", "hot", "e", "t")).calls += 1
    assert [purpose.model for purpose, _ in statistics.purposes()] == ["other"]
    monkeypatch.setattr(module, "MAX_LABELS", 3)
    statistics.group(group(model="y" * 1000)).requests += 1
    assert max(map(len, statistics.by("model"))) == MAX_NAME


def test_sums_taken_together_leave_nothing_out() -> None:
    one, other = (
        module.Tally(
            **{name: start + at for at, name in enumerate(module._SUMS)},
            within=[start] * (len(module.BUCKETS_S) + 1),
        )
        for start in (1, 100)
    )
    expected = {name: getattr(one, name) + getattr(other, name) for name in module._SUMS}
    one.merge(other)
    assert {name: getattr(one, name) for name in module._SUMS} == expected
    assert one.within == [101] * (len(module.BUCKETS_S) + 1)
