"""Which block goes first."""

import math
from dataclasses import replace
from typing import Any

from engine.kv.prefix import Entry, PrefixIndex
from engine.kv.retention import Retention
from tests.kit.holder import P, kept, make


def entry(index: PrefixIndex, first: int) -> Entry:
    tokens = [first] * P
    (found,) = index.path(index.chain(tokens, ""), tokens, "", most=1)
    return found


def retain(index: PrefixIndex, first: int, **how: Any) -> None:
    one = entry(index, first)
    index.retain(one, replace(one.retention, **how))


def left(index: PrefixIndex, *firsts: int) -> list[int]:
    return [first for first in firsts if index.lookup([first] * P + [0], "")]


def test_a_pin_outlives_its_ttl_and_goes_last() -> None:
    index = make(3)
    kept(index, [1] * P, priority="low", expires_at=1.0)
    kept(index, [2] * P, priority="high")
    kept(index, [3] * P, priority="high")
    retain(index, 1, pinned_until=math.inf)
    index.take(2, now=50.0)
    assert left(index, 1, 2, 3) == [1]
    assert index.stats().pinned_blocks == 1
    index.check_integrity()


def test_unpinned_it_is_what_it_was() -> None:
    index = make(3)
    kept(index, [1] * P, priority="low", expires_at=1.0)
    kept(index, [2] * P)
    retain(index, 1, pinned_until=math.inf)
    retain(index, 1, pinned_until=-math.inf)
    index.take(2, now=50.0)
    assert left(index, 1, 2) == [2]
    assert index.stats().evicted_by == {"ttl": 1}


def test_a_pin_with_a_time_of_its_own_ends_then() -> None:
    for now, survivor in ((9.0, [1]), (10.0, [2])):
        index = make(2)
        kept(index, [1] * P, priority="low")
        kept(index, [2] * P, priority="high")
        retain(index, 1, pinned_until=10.0)
        index.take(1, now=now)
        assert left(index, 1, 2) == survivor
        index.check_integrity()


def test_a_pin_is_broken_only_for_a_request_that_nothing_else_can_serve() -> None:
    index = make(2)
    kept(index, [1] * P)
    kept(index, [2] * P)
    retain(index, 1, pinned_until=math.inf)
    index.take(1, now=0.0)
    assert index.stats().broken_pins == 0
    index.take(1, now=0.0)
    assert index.stats().broken_pins == 1
    assert index.stats().pinned_blocks == 0


def test_no_more_than_half_of_the_pool_can_be_pinned() -> None:
    index = make(4)
    for first in (1, 2, 3):
        kept(index, [first] * P)
    for first in (1, 2):
        assert index.keeper.pins.may(entry(index, first).key)
        retain(index, first, pinned_until=math.inf)
    assert not index.keeper.pins.may(entry(index, 3).key)
    assert index.keeper.pins.may(entry(index, 1).key)


def test_a_floor_holds_until_it_expires() -> None:
    index = make(3)
    kept(index, [1] * P, priority="low", expires_at=5.0, floor="warm")
    kept(index, [2] * P, priority="high")
    kept(index, [3] * P, priority="high")
    index.take(1, now=4.0)
    assert left(index, 1, 2, 3) == [1, 3]
    index.take(1, now=6.0)
    assert left(index, 1, 2, 3) == [3]


def test_with_a_tier_below_a_floor_of_that_tier_is_no_reason_to_stay() -> None:
    index = make(2)
    index.keeper.tiers_below = ("warm",)
    kept(index, [1] * P, priority="low", floor="warm")
    kept(index, [2] * P, priority="high")
    index.take(1, now=0.0)
    assert left(index, 1, 2) == [2]


def test_a_prompt_that_many_build_on_outlives_what_is_asked_once() -> None:
    """A shared system prompt whose questions have gone ages slowly, but it does age."""
    index = make(8)
    for question in (11, 12, 13):
        kept(index, [1] * P + [question] * P)
    for once in range(20, 40):
        kept(index, [once] * P)
    assert left(index, 1) == [1], "its last use is the oldest of all"
    for once in range(40, 200):
        kept(index, [once] * P)
    assert left(index, 1) == []


def test_a_pinned_block_survives_a_merge_with_a_plain_request() -> None:
    index = make(2)
    kept(index, [1] * P, expires_at=1.0)
    retain(index, 1, pinned_until=math.inf)
    kept(index, [1] * P + [2], expires_at=9.0)
    assert entry(index, 1).retention == Retention("medium", 9.0, math.inf)
