"""The orders that ours is compared with do what their papers say, on examples done by hand."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.eviction_baselines import (
    AdaptiveReplacement,
    FirstIn,
    LeastFrequentlyUsed,
    S3Fifo,
)
from policies.replay import Cache, LeastRecentlyUsed, Optimal, replay

MAKERS: dict[str, Callable[[int], Cache]] = {
    "fifo": FirstIn,
    "lfu": LeastFrequentlyUsed,
    "lfu, remembers": lambda capacity: LeastFrequentlyUsed(capacity, remembers=True),
    "arc": AdaptiveReplacement,
    "s3-fifo": S3Fifo,
}


def hits(cache: Cache, blocks: str) -> str:
    """``+`` for a hit and ``-`` for a miss of each block, asked for one by one."""
    return "".join("-+"[cache.request([ord(block)])] for block in blocks)


def names(queue: Iterable[int]) -> str:
    return "".join(map(chr, queue))


def test_fifo_lets_the_first_go_though_it_was_used() -> None:
    cache = FirstIn(2)
    # a b | a is used, and still goes for c | b is there | a is back, b goes | b is not there
    assert hits(cache, "abacbab") == "--+-+--"
    assert cache.evictions == 3


def test_lfu_lets_the_rarest_go_and_of_these_the_longest_unused() -> None:
    cache = LeastFrequentlyUsed(2)
    # a twice, b once: c takes b's place | b takes c's, both once | a is there
    assert hits(cache, "aabcba") == "-+---+"
    assert cache.evictions == 2
    assert hits(LeastFrequentlyUsed(2), "abca") == "----", "equal counts: the longest unused"


def test_lfu_forgets_counts_unless_it_remembers() -> None:
    # b was used once before it went; when it is back it counts as used twice, as a does: a is older
    assert hits(LeastFrequentlyUsed(2), "aabcbca") == "-+----+"
    assert hits(LeastFrequentlyUsed(2, remembers=True), "aabcbca") == "-+-----"


def test_arc_moves_its_target_by_what_comes_back() -> None:
    cache = AdaptiveReplacement(2)
    assert hits(cache, "aab") == "-+-"
    assert (names(cache.t1), names(cache.t2)) == ("b", "a")
    # c: the cache is full; |t1| = 1 is over the target 0, so b goes and is remembered in b1
    assert hits(cache, "c") == "-"
    assert (names(cache.t1), names(cache.t2), names(cache.b1)) == ("c", "a", "b")
    # b is in b1: the target becomes 1; t1 is not over it, so a goes from t2 to b2
    assert hits(cache, "b") == "-"
    assert cache.target == 1.0
    assert (names(cache.t1), names(cache.t2), names(cache.b2)) == ("c", "b", "a")
    # a is in b2: the target is 0 again; c goes to b1
    assert hits(cache, "a") == "-"
    assert cache.target == 0.0
    assert (names(cache.t1), names(cache.t2), names(cache.b1)) == ("", "ba", "c")
    assert hits(cache, "ba") == "++"


def test_arc_is_not_flushed_by_a_scan() -> None:
    often, scan = "ababab", "cdefghijkl"
    assert hits(AdaptiveReplacement(4), often + scan + "ab").endswith("++")
    assert hits(AdaptiveReplacement(2), "abcd") == "----", "a full t1 without ghosts"


def test_s3_fifo_lets_one_hit_wonders_go_before_they_reach_main() -> None:
    cache = S3Fifo(10)  # one block is small, nine are main
    assert hits(cache, "aaa") == "-++"
    assert hits(cache, "bcdefghij") == "-" * 9
    # k: small is over its share; a was used twice and moves to main, b was not and goes
    assert hits(cache, "k") == "-"
    assert (names(cache.small), names(cache.main), names(cache.ghosts)) == ("cdefghijk", "a", "b")
    # b is remembered: it comes back into main, c goes for it
    assert hits(cache, "b") == "-"
    assert (names(cache.main), names(cache.ghosts)) == ("ab", "c")
    assert hits(cache, "ab") == "++"


def test_s3_fifo_gives_what_was_used_in_main_another_round() -> None:
    cache = S3Fifo(2)
    assert hits(cache, "aaabbbccc") == "-++-++-++"
    # both are in main, used: each loses its uses before the first goes
    assert names(cache.main) + names(cache.small) == "bc"
    assert cache.evictions == 1


@pytest.mark.parametrize("name", MAKERS)
@given(
    chains=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), max_size=40),
    capacity=st.integers(1, 12),
)
def test_no_order_holds_more_than_fits_or_beats_the_optimum(
    name: str, chains: list[list[int]], capacity: int
) -> None:
    single = [[block] for chain in chains for block in chain]
    score = replay(MAKERS[name](capacity), single)
    assert score.hits <= replay(Optimal(capacity, single), single).hits
    assert score.lookups - score.hits - score.evictions <= capacity
    if capacity > 9:
        assert score.hits == replay(LeastRecentlyUsed(10), single).hits
        assert score.evictions == 0
    assert replay(MAKERS[name](capacity), chains).hits <= len(single)
