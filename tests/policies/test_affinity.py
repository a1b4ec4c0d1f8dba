"""A prompt goes to where its beginning is known, unless that place has had enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.affinity import CHUNK_BYTES, Affinity, Choice, chain_of

NAMES = ("a", "b", "c")


def affinity(capacity: int = 100) -> Affinity:
    return Affinity(dict.fromkeys(NAMES, capacity))


def place(where: Affinity, chain: list[int], among: tuple[str, ...] = NAMES) -> Choice:
    choice = where.choose(chain, among)
    where.sent(choice.name, chain)
    return choice


def test_the_next_turn_goes_to_where_the_last_one_was() -> None:
    where = affinity()
    first = [place(where, [n, n + 1, n + 2]) for n in (10, 20, 30)]
    assert sorted(choice.name for choice in first) == list(NAMES)
    for n, choice in zip((10, 20, 30), first, strict=True):
        again = place(where, [n, n + 1, n + 2, n + 3])
        assert again == Choice(choice.name, 3)


def test_a_beginning_that_everybody_shares_is_no_reason() -> None:
    where = affinity()
    names = {place(where, [1, n]).name for n in (10, 20, 30)}
    assert names == set(NAMES)


def test_a_hot_beginning_spreads_when_its_place_has_had_enough() -> None:
    where = affinity(10_000)
    names = {place(where, [1, 2, *range(n, n + 50)]).name for n in range(100, 1000, 50)}
    assert names == set(NAMES)


def test_only_those_that_are_open_are_chosen() -> None:
    where = affinity()
    home = place(where, [1, 2, 3]).name
    others = tuple(name for name in NAMES if name != home)
    assert where.choose([1, 2, 3], others).name in others
    assert where.choose([1, 2, 3], [home]) == Choice(home, 3)


def test_what_was_not_used_for_long_is_forgotten() -> None:
    where = affinity(4)
    where.sent("a", [1, 2, 3])
    where.sent("a", [7, 8])
    assert where.choose([1, 2, 3], ["a"]).known == 0
    assert where.choose([7, 8], ["a"]).known == 2
    where.forget("a")
    assert where.choose([7, 8], ["a"]).known == 0
    assert repr(where) == "<Affinity a 0, b 0, c 0>"


def test_who_has_had_enough_is_ranked_last_though_it_knows_the_beginning() -> None:
    where = affinity(10_000)
    where.sent("a", list(range(500)))
    assert [choice.name for choice in where.rank([0, 1, 2], NAMES)] == ["b", "c", "a"]
    assert where.rank([0, 1, 2], NAMES)[-1].known == 3


def test_the_favourite_goes_first_until_it_has_had_enough() -> None:
    where = affinity(10_000)
    where.sent("a", [1, 2, 3])
    assert [one.name for one in where.rank([1, 2, 3], NAMES, favourite="c")] == ["c", "a", "b"]
    where.sent("c", list(range(100, 600)))
    assert where.rank([1, 2, 3], NAMES, favourite="c")[0].name == "a"


def test_a_backend_may_turn_out_to_hold_less() -> None:
    where = affinity()
    where.resize("a", 2)
    where.sent("a", [1, 2, 3])
    assert where.choose([2, 3], ["a"]).known == 2
    assert where.choose([1, 2, 3], ["a"]).known == 0


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_a_chain_has_a_link_for_each_whole_chunk(length: int) -> None:
    assert len(chain_of("m", [b"x" * length])) == length // CHUNK_BYTES


@given(st.binary(max_size=2000), st.binary(max_size=2000), st.integers(0, 2000))
def test_equal_beginnings_have_equal_links_and_others_do_not(
    text: bytes, other: bytes, cut: int
) -> None:
    whole, split = chain_of("m", [text]), chain_of("m", [text[:cut], text[cut:]])
    assert whole == split
    shared = chain_of("m", [text[:cut] + other])
    same = 0
    for one, two in zip(whole, shared, strict=False):
        same += one == two
    joined = text[:cut] + other
    agree = next(
        (at for at, (a, b) in enumerate(zip(text, joined, strict=False)) if a != b),
        min(len(text), len(joined)),
    )
    assert same == agree // CHUNK_BYTES
    assert not set(chain_of("other", [text])) & set(whole)
