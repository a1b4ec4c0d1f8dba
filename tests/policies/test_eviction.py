"""policies.eviction: the order of victims, compared with a plain reference."""

from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.eviction import EvictionOrder, Priority
from tests.policies.making import few

RANK = {"low": 0, "medium": 1, "high": 2}


@dataclass
class Known:
    key: str
    priority: Priority
    expires_at: float
    worth: float
    value: float
    uses: int
    used_at: float
    place: int


class PlainOrder:
    """The same order in O(n), as one would say it."""

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.floors: dict[Priority, float] = {"low": 0.0, "medium": 0.0, "high": 0.0}
        self.added = 0

    def find(self, key: str) -> Known | None:
        return next((known for known in self.known if known.key == key), None)

    def remove(self, known: Known) -> None:
        self.known.remove(known)
        if not any(other.priority == known.priority for other in self.known):
            self.floors[known.priority] = 0.0

    def add(
        self,
        key: str,
        *,
        priority: Priority,
        expires_at: float,
        cost: float,
        size: float,
        now: float,
    ) -> None:
        before = self.find(key)
        uses = 1 if before is None else before.uses + 1
        if before is not None:
            self.remove(before)
        worth = max(cost, 0.0) / (size if size > 0 else 1.0)
        self.added += 1
        value = self.floors[priority] + uses * worth
        self.known.append(Known(key, priority, expires_at, worth, value, uses, now, self.added))

    def touch(self, key: str, *, now: float) -> None:
        known = self.find(key)
        if known is not None:
            known.uses += 1
            known.used_at = max(known.used_at, now)
            known.value = self.floors[known.priority] + known.uses * known.worth

    def supersede(self, key: str) -> None:
        known = self.find(key)
        if known is not None:
            self.added += 1
            known.worth, known.place = 0.0, self.added
            known.value = self.floors[known.priority]

    def discard(self, key: str) -> None:
        known = self.find(key)
        if known is not None:
            self.remove(known)

    def pop(self, *, now: float) -> str | None:
        expired = [known for known in self.known if known.expires_at <= now]
        if expired:
            victim = min(expired, key=lambda known: (known.expires_at, known.place))
        elif self.known:
            victim = min(
                self.known,
                key=lambda known: (RANK[known.priority], known.value, known.used_at, known.place),
            )
            self.floors[victim.priority] = victim.value
        else:
            return None
        self.remove(victim)
        return victim.key


keys = st.sampled_from("abcdef")
steps = st.tuples(
    st.sampled_from(["add", "add", "touch", "touch", "supersede", "discard", "pop", "pop"]),
    keys,
    st.sampled_from(["low", "medium", "high"]),
    st.sampled_from([inf, 3.0, 8.0, 20.0]),
    st.sampled_from([0.0, 1.0, 2.0, 5.0, -1.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 1.0, -2.0]),
)


@given(history=st.lists(steps, max_size=80))
@few
def test_the_order_is_that_of_the_plain_reference(history: list[Any]) -> None:
    order: EvictionOrder[str] = EvictionOrder()
    plain = PlainOrder()
    now = 0.0
    for step, key, priority, lives, cost, size, passed in history:
        now += passed  # sometimes the clock is set back
        for one in (order, plain):
            if step == "add":
                one.add(
                    key, priority=priority, expires_at=now + lives, cost=cost, size=size, now=now
                )
            elif step == "touch":
                one.touch(key, now=now)
            elif step == "supersede":
                one.supersede(key)
            elif step == "discard":
                one.discard(key)
        if step == "pop":
            assert order.pop(now=now) == plain.pop(now=now)
        assert len(order) == len(plain.known)
        assert (key in order) == (plain.find(key) is not None)
    while plain.known:
        assert order.pop(now=now) == plain.pop(now=now)
    assert order.pop(now=now) is None


def order_of(*names: str, **known: Any) -> EvictionOrder[str]:
    order: EvictionOrder[str] = EvictionOrder()
    for name in names:
        add(order, name, **known)
    return order


def add(order: EvictionOrder[str], name: str, **known: Any) -> None:
    facts: dict[str, Any] = {
        "priority": "medium",
        "expires_at": inf,
        "cost": 1.0,
        "size": 1.0,
        "now": 0.0,
    }
    order.add(name, **facts | known)


def drained(order: EvictionOrder[str], now: float = 0.0) -> str:
    return "".join(iter(lambda: order.pop(now=now) or "", ""))


def test_the_expired_go_first_whatever_they_are_worth() -> None:
    order = order_of("x")
    add(order, "late", priority="high", cost=99.0, expires_at=9.0)
    add(order, "early", priority="high", cost=99.0, expires_at=5.0)
    assert [order.pop(now=9.0) for _ in range(4)] == ["early", "late", "x", None]


def test_low_goes_before_medium_before_high() -> None:
    order = order_of()
    for name, priority, cost in [("h", "high", 0.1), ("m", "medium", 1.0), ("l", "low", 99.0)]:
        add(order, name, priority=priority, cost=cost)
    assert drained(order) == "lmh"


def test_what_is_cheap_for_its_size_goes_before_what_is_dear() -> None:
    order = order_of()
    add(order, "d", cost=8.0, size=2.0)
    add(order, "c", cost=8.0, size=4.0)
    assert drained(order) == "cd"


def test_what_is_used_more_stays_longer() -> None:
    order = order_of("a", "b", "c")
    order.touch("a", now=1.0)
    order.touch("a", now=2.0)
    order.touch("c", now=3.0)
    assert drained(order) == "bca"


def test_of_equals_the_longest_unused_goes_first_then_the_first_inserted() -> None:
    order = order_of("a", "b", "c", cost=0.0)
    order.touch("a", now=1.0)
    assert drained(order) == "bca"


def test_old_fame_is_overtaken_in_the_end() -> None:
    order = order_of("old")
    for _ in range(5):
        order.touch("old", now=1.0)
    victims = []
    for place in range(6):
        add(order, f"new{place}", now=2.0)
        victims.append(order.pop(now=2.0))
    assert victims == ["new0", "new1", "new2", "new3", "new4", "old"]


def test_a_key_added_again_has_its_new_standing_and_keeps_its_uses() -> None:
    order = order_of("a", "b", priority="low", expires_at=5.0)
    add(order, "a", priority="low")
    assert len(order) == 2
    assert order.pop(now=5.0) == "b"
    assert order.pop(now=5.0) == "a"
    renewed = order_of("b", "c")
    renewed.touch("b", now=0.0)
    add(renewed, "b")
    renewed.touch("c", now=0.0)
    assert drained(renewed) == "cb"


def test_what_is_superseded_goes_before_what_may_be_asked_for() -> None:
    order = order_of("a", "b", "c", expires_at=9.0)
    for _ in range(5):
        order.touch("c", now=1.0)
    order.supersede("c")
    assert drained(order) == "cab"
    used = order_of("a", "b")
    used.supersede("b")
    used.touch("b", now=5.0)
    assert drained(used) == "ba"


def test_unknown_keys_are_ignored() -> None:
    order = order_of("a")
    order.supersede("z")
    order.touch("z", now=0.0)
    order.discard("z")
    assert "z" not in order
    assert drained(order) == "a"


def test_keys_need_no_order_of_their_own() -> None:
    order: EvictionOrder[object] = EvictionOrder()
    same: list[object] = [("x", 1), 7, None, frozenset({1})]
    for key in same:
        order.add(key, priority="low", expires_at=5.0, cost=1.0, size=1.0, now=0.0)
    assert [order.pop(now=0.0) for _ in same] == same


@pytest.mark.parametrize("lives", [inf, 1e6])
def test_what_is_left_behind_stays_bounded(lives: float) -> None:
    order = order_of(*"abcdefgh", expires_at=lives)
    for place in range(1000):
        add(order, "a", priority="low" if place % 2 else "high", expires_at=lives)
        order.touch("b", now=float(place))
        add(order, f"temporary {place}", priority="low", expires_at=lives)
        order.discard(f"temporary {place}")
    stale = int(repr(order).rpartition(" ")[2].rstrip("]>"))
    assert stale <= 4 * 32 + 2 * len(order)
    assert len(order) == 8


def test_rebuilding_one_priority_does_not_visit_the_others() -> None:
    # a heap is rebuilt from its own entries: were it from all keys, this would be quadratic
    order = order_of(*map(str, range(3000)))
    kept = order_of()
    for side in (order, kept):
        for place in range(300):
            add(side, f"x{place}", priority="low", now=1.0)
            side.discard(f"x{place}")
    assert repr(order).rpartition(" ")[2] == repr(kept).rpartition(" ")[2]


def test_its_repr_tells_an_operator_what_it_holds() -> None:
    order = order_of("a", "b", expires_at=5.0)
    add(order, "c", priority="high")
    assert repr(order) == "<EvictionOrder [keys: 0 low, 2 medium, 1 high | stale: 0]>"
    order.discard("a")
    assert repr(order) == "<EvictionOrder [keys: 0 low, 1 medium, 1 high | stale: 2]>"


def replay(priority: Literal["low", "high"]) -> list[str | None]:
    order = order_of()
    for place in range(200):
        add(
            order,
            str(place % 37),
            priority=priority,
            cost=float(place % 5),
            expires_at=place + 50.0,
        )
        order.touch(str(place % 11), now=float(place))
    return [order.pop(now=150.0) for _ in range(len(order))]


def test_the_same_history_has_the_same_victims() -> None:
    assert replay("low") == replay("low") == replay("high")
