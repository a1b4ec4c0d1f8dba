"""What is wanted of a block, and what becomes of two wishes."""

import math
from typing import Any

import pytest

from engine.kv.retention import Pins, Retention, Wish


def test_the_stronger_wish_of_both_holds() -> None:
    one = Retention("low", 9.0, pinned_until=3.0, floor="cold", ceiling="cold")
    two = Retention("high", 5.0, floor="warm", ceiling="warm")
    both = Retention("high", 9.0, pinned_until=3.0, floor="warm", ceiling="warm")
    assert one.merged(two, now=1.0) == two.merged(one, now=1.0) == both


def test_an_expired_wish_counts_for_nothing_but_its_pin_stands() -> None:
    old = Retention("high", 5.0, pinned_until=math.inf, floor="hot", ceiling="hot")
    new = Retention("low", 9.0)
    assert old.merged(new, now=6.0) == Retention("low", 9.0, pinned_until=math.inf)
    assert old.merged(new, now=4.0).priority == "high"


@pytest.mark.parametrize(
    ("floor", "below", "stays"),
    [
        (None, (), False),
        ("hot", (), True),
        ("hot", ("warm", "cold"), True),
        ("warm", (), True),
        ("warm", ("cold",), True),
        ("warm", ("warm",), False),
        ("cold", ("warm",), False),
        ("cold", ("cold",), False),
        ("cold", (), True),
    ],
)
def test_a_floor_keeps_a_block_in_the_pool_when_no_tier_below_is_near_enough(
    floor: Any, below: Any, stays: bool
) -> None:
    wanted = Retention(floor=floor)
    assert wanted.stays(below) == stays
    assert wanted.standing(superseded=False, below=below) == ("kept" if stays else "usual")


@pytest.mark.parametrize(
    ("ceiling", "warm", "cold"), [("hot", 0, 0), ("warm", 1, 0), ("cold", 1, 1)]
)
def test_a_ceiling_says_how_far_a_block_may_be_written(ceiling: Any, warm: int, cold: int) -> None:
    wanted = Retention(ceiling=ceiling)
    assert (wanted.may_move_to("warm"), wanted.may_move_to("cold")) == (bool(warm), bool(cold))


def test_a_pin_outranks_what_has_been_superseded() -> None:
    assert Retention().standing(superseded=True, below=()) == "superseded"
    assert Retention(pinned_until=1.0).standing(superseded=True, below=()) == "pinned"
    assert Retention(floor="hot").standing(superseded=True, below=()) == "kept"


def test_a_wish_changes_what_it_names_and_nothing_else() -> None:
    before = Retention("low", 7.0, pinned_until=9.0, floor="warm", ceiling="warm")
    assert Wish().applied(before, now=1.0, may_pin=True) == before
    assert not Wish().changes
    said: list[tuple[Wish, Retention]] = [
        (Wish(priority="high"), Retention("high", 7.0, 9.0, "warm", "warm")),
        (Wish(ttl_s=4.0), Retention("low", 5.0, 9.0, "warm", "warm")),
        (Wish(pin=False), Retention("low", 7.0, -math.inf, "warm", "warm")),
        (Wish(pin=True), Retention("low", 7.0, math.inf, "warm", "warm")),
        (Wish(pin=True, pin_s=2.0), Retention("low", 7.0, 3.0, "warm", "warm")),
        (Wish(floor="none"), Retention("low", 7.0, 9.0, None, "warm")),
        (Wish(floor="hot"), Retention("low", 7.0, 9.0, "hot", "warm")),
        (Wish(ceiling="hot"), Retention("low", 7.0, 9.0, "warm", "hot")),
    ]
    for wish, after in said:
        assert wish.changes
        assert wish.applied(before, now=1.0, may_pin=True) == after


def test_a_pin_that_may_not_be_had_leaves_things_as_they_were() -> None:
    before = Retention("low")
    assert Wish(pin=True).applied(before, now=1.0, may_pin=False) == before


def test_pins_are_few_and_end_when_their_time_is_over() -> None:
    pins = Pins(2)
    pins.set(b"a", 5.0)
    pins.set(b"b", math.inf)
    assert not pins.may(b"c")
    assert pins.may(b"a")
    assert pins.due(4.0) == []
    pins.set(b"a", 8.0)  # its first entry in the heap lingers
    assert pins.due(5.0) == []
    assert pins.due(8.0) == [b"a"]
    assert len(pins) == 1
    pins.set(b"b", -math.inf)
    assert len(pins) == 0
    assert pins.due(math.inf) == []


def test_pins_that_are_renewed_for_ever_take_no_more_memory() -> None:
    pins = Pins(8)
    pins.set(b"always", math.inf)
    for until in range(1000):
        pins.set(b"a", float(until))
    assert len(pins._heap) < 100
    assert pins.due(998.0) == []
    assert pins.due(999.0) == [b"a"]
