"""A replay says what would have been there."""

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.replay import (
    Cache,
    Learned,
    LeastRecentlyUsed,
    Lookup,
    Optimal,
    Score,
    leading,
    replay,
    with_foresight,
)

Prompts = list[list[int]]
MAKERS: dict[str, Callable[[int, Prompts], Cache]] = {
    "learned": lambda capacity, _: Learned(capacity),
    "lru": lambda capacity, _: LeastRecentlyUsed(capacity),
    "optimal": Optimal,
}
TURNS: Prompts = [[1, 2], [1, 3], [1, 2, 4], [1, 5], [1, 2, 4, 6]]


@st.composite
def conversations(draw: st.DrawFn) -> Prompts:
    """Prompts that continue one another: an id stands for all that is before it."""
    known: list[tuple[int, ...]] = [()]
    prompts, fresh = [], 0
    for _ in range(draw(st.integers(1, 25))):
        chain = list(draw(st.sampled_from(known)))
        for _ in range(draw(st.integers(1, 3))):
            fresh += 1
            chain.append(fresh)
        prompts.append(chain)
        known += [tuple(chain[:length]) for length in range(1, len(chain) + 1)]
        if draw(st.booleans()):
            prompts.append(list(draw(st.sampled_from(prompts))))
    return prompts


@pytest.mark.parametrize("name", MAKERS)
def test_with_room_for_all_every_repetition_is_a_hit(name: str) -> None:
    score = replay(MAKERS[name](100, TURNS), TURNS)
    assert score == Score(lookups=13, hits=7, evictions=0)
    assert score.hit_rate == pytest.approx(7 / 13)


@pytest.mark.parametrize("name", MAKERS)
def test_no_more_is_held_than_fits(name: str) -> None:
    cache = MAKERS[name](2, TURNS)
    score = replay(cache, TURNS)
    assert score.evictions == score.lookups - score.hits - 2 or name == "lru"
    assert cache.request([]) == 0


def test_least_recently_used_is_what_it_says() -> None:
    cache = LeastRecentlyUsed(3)
    assert [cache.request(chain) for chain in ([1, 2], [3], [1], [4], [2], [1])] == [
        0, 0, 1, 0, 0, 1,
    ]  # fmt: skip


def test_an_empty_trace_has_no_rate() -> None:
    assert replay(Learned(1), []).hit_rate == 0.0


def test_only_an_unbroken_beginning_counts() -> None:
    assert leading([1, 2, 3], {1, 3}) == 1
    assert leading([1, 2], {1, 2}) == 2


def best_possible(capacity: int, prompts: Prompts) -> int:
    """The optimum by trying everything: which blocks to keep after each prompt."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for chain in prompts:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            found = hits + leading(chain, held)
            everything = held | set(chain)
            size = min(capacity, len(everything))
            for kept in combinations(sorted(everything), size):
                key = frozenset(kept)
                after[key] = max(after.get(key, 0), found)
        states = after
    return max(states.values())


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=1), min_size=1, max_size=8),
    st.integers(1, 3),
)
def test_the_optimum_is_the_optimum_for_single_blocks(prompts: Prompts, capacity: int) -> None:
    assert replay(Optimal(capacity, prompts), prompts).hits == best_possible(capacity, prompts)


@given(conversations(), st.integers(1, 12))
def test_nobody_beats_a_cache_without_bound(prompts: Prompts, capacity: int) -> None:
    unbounded = replay(LeastRecentlyUsed(10**6), prompts)
    for name, make in MAKERS.items():
        score = replay(make(capacity, prompts), prompts)
        assert score.hits <= unbounded.hits, name
        assert score.lookups == unbounded.lookups


def held(cache: Learned, prompts: Sequence[Sequence[int]]) -> set[int]:
    for chain in prompts:
        cache.request(chain)
    return set(cache._parent)


@given(conversations(), st.integers(1, 12))
def test_the_learned_order_never_leaves_a_block_without_its_beginning(
    prompts: Prompts, capacity: int
) -> None:
    cache = Learned(capacity)
    there = held(cache, prompts)
    assert len(there) <= capacity
    assert all(cache._parent[block] is None or cache._parent[block] in there for block in there)


def looked_up(text: str, *, size: float = 1.0) -> list[Lookup]:
    """A letter is a look-up; an upper case one finds nothing good anywhere, as the first of a key."""
    seen: set[str] = set()
    found = []
    for letter in text:
        key = letter.lower()
        found.append(Lookup(key, size, good=letter.islower() and key in seen))
        seen.add(key)
    return found


@pytest.mark.parametrize(
    ("text", "capacity", "hits", "evictions"),
    [
        ("abab", 1, 1, 1),  # b is wanted later than a: it goes at once
        ("abab", 2, 2, 0),
        ("abcba", 1, 1, 1),
        ("aA", 9, 0, 0),  # too old by then: nobody keeps it
        ("aAa", 9, 1, 0),
        ("", 1, 0, 0),
    ],
)
def test_foresight_keeps_what_is_wanted_soonest(
    text: str, capacity: int, hits: int, evictions: int
) -> None:
    score = with_foresight(looked_up(text), capacity)
    assert score == Score(lookups=len(text), hits=hits, evictions=evictions)


def test_foresight_counts_sizes() -> None:
    lookups = [
        Lookup("large", 3.0, good=False),
        Lookup("small", 1.0, good=False),
        Lookup("small", 1.0, good=True),
        Lookup("large", 3.0, good=True),
    ]
    assert with_foresight(lookups, 3.0) == Score(lookups=4, hits=1, evictions=1)
    assert with_foresight(lookups, 4.0) == Score(lookups=4, hits=2, evictions=0)


@given(st.text(st.sampled_from("abcABC"), max_size=12), st.integers(1, 4))
def test_foresight_is_the_optimum_for_answers_of_one_size(text: str, capacity: int) -> None:
    lookups = looked_up(text)
    states: dict[frozenset[str], int] = {frozenset(): 0}
    for lookup in lookups:
        after: dict[frozenset[str], int] = {}
        for held, hits in states.items():
            found = hits + (lookup.key in held and lookup.good)
            everything = held | {lookup.key}
            for size in range(min(capacity, len(everything)) + 1):
                for kept in combinations(sorted(everything), size):
                    after[frozenset(kept)] = max(after.get(frozenset(kept), 0), found)
        states = after
    assert with_foresight(lookups, capacity).hits == max(states.values())
