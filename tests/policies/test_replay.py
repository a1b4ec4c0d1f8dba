"""A replay says what would have been there."""

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.replay import Cache, Learned, LeastRecentlyUsed, Optimal, Score, leading, replay

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
