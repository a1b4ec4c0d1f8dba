"""What came back decides what stays."""

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import reuse as module
from policies.reuse import (
    BUCKETS,
    EDGES,
    ReuseModel,
    ReuseOrder,
    bucket_of,
    index_by_bucket,
)


def offered(*keys: str, turn: int = 1) -> ReuseOrder[str]:
    order: ReuseOrder[str] = ReuseOrder()
    for key in keys:
        order.add(key, turn=turn)
        order.offer(key, priority="medium", expires_at=inf)
    return order


def drained(order: ReuseOrder[str], now: float = 0.0) -> list[str]:
    found = []
    while (victim := order.pop(now=now)) is not None:
        found.append(victim)
    return found


def test_the_superseded_go_first_and_what_is_kept_goes_last() -> None:
    order: ReuseOrder[str] = ReuseOrder()
    for key in "pkshml":
        order.add(key, turn=1)
    order.offer("p", priority="low", expires_at=inf, standing="pinned")
    order.offer("k", priority="low", expires_at=inf, standing="kept")
    order.offer("l", priority="low", expires_at=inf)
    order.offer("h", priority="high", expires_at=inf)
    order.offer("m", priority="medium", expires_at=inf)
    order.offer("s", priority="high", expires_at=inf, standing="superseded")
    assert drained(order) == ["s", "l", "m", "h", "k", "p"]


def test_expired_is_expired_whatever_it_stands_for() -> None:
    order: ReuseOrder[str] = ReuseOrder()
    for key in "ks":
        order.add(key, turn=1)
    order.offer("k", priority="high", expires_at=1.0, standing="kept")
    order.offer("s", priority="low", expires_at=inf, standing="superseded")
    assert drained(order, now=2.0) == ["k", "s"]


def test_what_many_built_on_ages_slowly() -> None:
    order = offered("a", "b")
    order.touch("a")
    order.touch("b")  # ages 1 and 0
    for key in "abc":
        order.add(key, turn=1)
    order.offer("a", priority="medium", expires_at=inf, shared=True)
    for key in "bc":
        order.offer(key, priority="medium", expires_at=inf)
    assert drained(order) == ["b", "a", "c"]


def test_without_experience_the_longest_unused_goes_first() -> None:
    order = offered("a", "b", "c")
    order.touch("a")
    order.offer("a", priority="medium", expires_at=inf)
    assert drained(order) == ["b", "c", "a"]


def test_only_what_is_offered_can_go() -> None:
    order = offered("a", "b")
    order.add("held", turn=1)
    order.withdraw("a")
    order.withdraw("a")
    order.withdraw("unknown")
    assert ("a" in order, "b" in order, "unknown" in order) == (False, True, False)
    assert len(order) == 1
    assert drained(order) == ["b"]
    with pytest.raises(KeyError):
        order.offer("never added", priority="low", expires_at=inf)


def test_a_use_takes_an_offer_back() -> None:
    order = offered("a")
    order.touch("a")
    order.touch("unknown")
    assert len(order) == 0
    assert order.pop(now=0.0) is None


def test_what_expired_goes_first_then_low_before_medium_before_high() -> None:
    order: ReuseOrder[str] = ReuseOrder()
    for key, priority, expires_at in (
        ("high", "high", inf),
        ("medium", "medium", 50.0),
        ("low", "low", inf),
        ("late", "high", 20.0),
        ("early", "high", 10.0),
    ):
        order.add(key, turn=1)
        order.offer(key, priority=priority, expires_at=expires_at)  # type: ignore[arg-type]  # a literal
    assert drained(order, now=30.0) == ["early", "late", "low", "medium", "high"]


def test_an_offer_renewed_with_a_later_expiry_holds() -> None:
    order = offered("a", "b")
    order.offer("a", priority="medium", expires_at=5.0)
    order.offer("a", priority="medium", expires_at=inf)
    order.offer("b", priority="medium", expires_at=6.0)
    assert drained(order, now=10.0) == ["b", "a"]


def test_what_was_evicted_is_remembered_and_learned_from_when_it_comes_back() -> None:
    order = offered("a", "b", "c", "d", turn=2)
    assert order.pop(now=0.0) == "a"
    assert order.turn_of("a") == 2
    order.add("a", turn=9)
    assert order.turn_of("a") == 2
    assert repr(order) == "<ReuseOrder 3 offered, 4 cached, 0 remembered, 1 observations>"


def test_what_is_gone_for_a_reason_of_its_own_teaches_nothing() -> None:
    order = offered("a", "b")
    order.discard("a")
    order.discard("unknown")
    assert order.turn_of("a") is None
    assert repr(order) == "<ReuseOrder 1 offered, 1 cached, 0 remembered, 0 observations>"


def test_the_evicted_are_remembered_in_proportion() -> None:
    order = offered(*(str(number) for number in range(100)))
    for _ in range(90):
        order.pop(now=0.0)
    assert repr(order) == "<ReuseOrder 10 offered, 10 cached, 40 remembered, 50 observations>"


def test_kinds_that_come_back_outlive_kinds_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELEARN_AFTER", 50)
    order: ReuseOrder[str] = ReuseOrder()
    dice = random.Random(1)
    for step in range(600):
        once, talk = f"once-{step}", f"talk-{dice.randrange(20)}"
        order.add(once, turn=1)
        order.offer(once, priority="medium", expires_at=inf)
        order.add(talk, turn=2)
        order.offer(talk, priority="medium", expires_at=inf)
        while len(order) > 30:
            order.pop(now=0.0)
    kept = [order.turn_of(f"talk-{number}") for number in range(20)]
    there = [f"talk-{number}" in order for number in range(20)]
    assert kept == [2] * 20
    assert all(there)


def test_of_very_many_that_wait_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SAMPLED", 8)
    seen: list[float] = []

    def learn(_: ReuseModel, waiting: dict[tuple[int, int], list[float]]) -> None:
        seen.extend(sum(buckets) for buckets in waiting.values())

    monkeypatch.setattr(ReuseModel, "learn", learn)
    order = offered(*(str(number) for number in range(100)))
    order._learn()
    assert seen == [104.0]  # 8 blocks, each standing for 13


def test_old_habits_fade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGET_AT", 10.0)
    model = ReuseModel()
    for _ in range(12):
        model.observe((1, 1), 5.0, came_back=True)
        model.observe((2, 1), 5.0, came_back=False)
    model.learn({})
    assert model.observations == 12.0
    assert model.worth((1, 1), 5.0) > model.worth((2, 1), 5.0) > 0.0
    assert model.worth((3, 3), 5.0) == inf


def test_with_nothing_seen_there_is_nothing_to_learn() -> None:
    model = ReuseModel()
    model.learn({})
    assert model.worth((1, 1), 0.0) == inf


def test_the_index_is_the_best_rate_over_all_horizons() -> None:
    came_back, ended = [0.0] * BUCKETS, [0.0] * BUCKETS
    came_back[2], ended[2], ended[5] = 4.0, 4.0, 4.0
    worth = index_by_bucket(came_back, ended)
    widths = [EDGES[number + 1] - EDGES[number] for number in range(BUCKETS)]
    to_the_hits = 8 * widths[1] + 6 * widths[2]
    assert worth[1] == pytest.approx(4 / to_the_hits)
    assert worth[2] == pytest.approx(4 / (6 * widths[2]))
    assert worth[3] == 0.0


@given(st.floats(0, 1e12))
def test_every_age_has_its_bucket(age: float) -> None:
    bucket = bucket_of(age)
    assert EDGES[bucket] <= age
    assert bucket == BUCKETS - 1 or age < EDGES[bucket + 1]


@given(st.lists(st.tuples(st.sampled_from("aotwdp"), st.integers(0, 6)), max_size=200))
def test_it_agrees_with_a_plain_set_about_what_is_offered(steps: list[tuple[str, int]]) -> None:
    order: ReuseOrder[int] = ReuseOrder()
    cached: set[int] = set()
    may_go: set[int] = set()
    for what, key in steps:
        if what == "a":
            order.add(key, turn=1)
            cached.add(key)
            may_go.discard(key)
        elif what == "o" and key in cached:
            order.offer(key, priority="medium", expires_at=inf)
            may_go.add(key)
        elif what == "t" and key in cached:
            order.touch(key)
            may_go.discard(key)
        elif what == "w":
            order.withdraw(key)
            may_go.discard(key)
        elif what == "d":
            order.discard(key)
            cached.discard(key)
            may_go.discard(key)
        elif what == "p":
            victim = order.pop(now=0.0)
            assert (victim is None) == (not may_go)
            if victim is not None:
                assert victim in may_go
                may_go.discard(victim)
                cached.discard(victim)
        assert len(order) == len(may_go)
        assert all((key in order) == (key in may_go) for key in range(7))


def test_what_is_out_of_date_does_not_pile_up() -> None:
    order = offered("a", "b")
    for step in range(1000):
        order.touch("a")
        order.offer("a", priority="medium", expires_at=1000.0 + step)
    entries = sum(len(front) for fronts in order._fronts for front in fronts.values())
    assert entries + len(order._by_expiry) < 100
