"""The directory of a tier: what goes first, what builds on what, who is being read."""

from __future__ import annotations

import random

from engine.kv.retention import Retention
from engine.kv.shelf import Item, Shelf


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def item(number: int, *, above: int = 0, salt: str = "s", **wanted: object) -> Item:
    retention = Retention(**wanted)  # type: ignore[arg-type]  # named at the call
    return Item(key(number), key(above), salt.encode(), retention)


def test_the_longest_unused_goes_first_and_only_when_there_is_no_room() -> None:
    shelf = Shelf(2)
    one, two, three = item(1), item(2), item(3)
    assert shelf.put(one, now=0.0) is None
    assert shelf.put(two, now=0.0) is None
    shelf.use(one)
    assert shelf.put(three, now=0.0) is two
    assert two.gone
    assert key(2) not in shelf
    assert shelf.get(key(1)) is one
    shelf.check_integrity()


def test_tails_go_before_heads_whichever_came_first() -> None:
    for numbers in ([1, 2, 3], [3, 2, 1]):
        shelf = Shelf(3)
        for number in numbers:
            shelf.put(item(number, above=number - 1), now=0.0)
        gone = shelf.put(item(10, above=9), now=0.0)
        assert gone is not None
        assert gone.key == key(3)
        shelf.check_integrity()


def test_expired_then_low_then_medium_and_what_its_floor_keeps_goes_last() -> None:
    shelf = Shelf(5)
    shelf.put(item(1, priority="high"), now=0.0)
    shelf.put(item(2, priority="low"), now=0.0)
    shelf.put(item(3, priority="high", expires_at=1.0), now=0.0)
    shelf.put(item(4, priority="low", floor="cold"), now=0.0)
    shelf.put(item(5), now=0.0)
    new = [shelf.put(item(number, priority="high"), now=2.0) for number in range(10, 13)]
    assert [one.key for one in new if one] == [key(3), key(2), key(5)]


def test_a_floor_below_this_tier_keeps_nothing_here() -> None:
    shelf = Shelf(1, tiers_below=("cold",))
    kept = item(1, priority="low", floor="cold")
    shelf.put(kept, now=0.0)
    assert shelf.put(item(2), now=0.0) is kept


def test_a_newcomer_that_is_worth_least_is_the_one_to_go() -> None:
    shelf = Shelf(1)
    shelf.put(item(1, priority="high"), now=0.0)
    low = item(2, priority="low")
    assert shelf.put(low, now=0.0) is low
    assert low.gone
    shelf.check_integrity()


def test_what_is_read_stays_and_a_full_shelf_of_it_takes_nothing_in() -> None:
    shelf = Shelf(1)
    read, late = item(1, priority="low"), item(2, priority="high")
    shelf.put(read, now=0.0)
    shelf.open(read)
    assert shelf.put(late, now=0.0) is late
    shelf.check_integrity()
    shelf.close(read)
    assert shelf.put(item(3), now=0.0) is read


def test_the_stronger_wish_counts_and_superseded_goes_first() -> None:
    shelf = Shelf(2)
    one, two = item(1, priority="high", expires_at=5.0), item(2)
    shelf.put(one, now=0.0)
    shelf.put(two, now=0.0)
    shelf.retain(one, Retention("low", 9.0), superseded=False, now=0.0)
    assert (one.wanted.priority, one.wanted.expires_at) == ("high", 9.0)
    shelf.retain(one, Retention("low", 9.0), superseded=True, now=0.0)
    assert shelf.put(item(3), now=0.0) is one


def test_a_salt_and_a_subtree_are_found_without_looking_at_the_rest() -> None:
    shelf = Shelf(9)
    for number, above, salt in ((1, 0, "a"), (2, 1, "b"), (3, 2, "b"), (4, 0, "b"), (6, 5, "a")):
        shelf.put(item(number, above=above, salt=salt), now=0.0)
    assert {one.key for one in shelf.of_salt(b"a")} == {key(1), key(6)}
    assert shelf.of_salt(b"c") == []
    assert {one.key for one in shelf.below([key(1)])} == {key(1), key(2), key(3)}
    assert {one.key for one in shelf.below([key(5)])} == {key(6)}, "its parent is not here"


def test_random_traffic_keeps_directory_and_order_in_step() -> None:
    dice = random.Random(3)
    shelf, reading = Shelf(20), []
    for step in range(3000):
        number = dice.randrange(1, 60)
        known = shelf.get(key(number))
        what = dice.random()
        if known is None:
            priority = dice.choice(["low", "medium", "high"])
            shelf.put(item(number, above=number // 2, priority=priority), now=0.0)
        elif what < 0.3:
            shelf.use(known)
        elif what < 0.5:
            shelf.open(known)
            reading.append(known)
        elif what < 0.7:
            shelf.remove(known)
        if reading and dice.random() < 0.4:
            shelf.close(reading.pop(dice.randrange(len(reading))))
        shelf.check_integrity()
        assert len(shelf) <= 20, step
    assert len(list(shelf)) == len(shelf)
    assert repr(shelf) == f"Shelf({len(shelf)} of 20 blocks)"
