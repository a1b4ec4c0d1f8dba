"""A list of inputs taken apart and put together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.embeddings import (
    added,
    apportioned,
    divided,
    for_list,
    is_list,
    part_of,
    places_of,
)
from tests.policies.making import because, call_of, few, plan_of

WISH = {"enabled": True, "cache_key": "docs"}
weights = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)
counts = st.integers(0, 10**9)
usages = st.recursive(
    st.dictionaries(st.sampled_from("abcd"), counts, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), counts | inner, max_size=3),
    max_leaves=5,
)


def embed(given: object, **fields: Any) -> Any:
    return call_of(endpoint="embeddings", input=given, **fields)


@pytest.mark.parametrize(
    ("given", "several"),
    [("a", False), ([1, 2], False), (["a"], True), (["a", "b"], True), ([[1, 2]], True)],
)
def test_a_list_of_texts_or_of_token_lists_has_several_inputs(given: object, several: bool) -> None:
    assert is_list(embed(given)) is several


def test_a_list_of_prompts_is_no_list_of_inputs() -> None:
    assert not is_list(call_of(endpoint="completions", prompt=["a", "b"]))
    assert not is_list(call_of(endpoint="completions", prompt="a", input=["a"]))


def test_equal_inputs_stand_in_several_places() -> None:
    assert places_of(embed(["a", "b", "a"])) == [("a", (0, 2)), ("b", (1,))]
    assert places_of(embed([[1, 2], [2, 1], [1, 2]])) == [([1, 2], (0, 2)), ([2, 1], (1,))]


def test_inputs_that_only_look_alike_stay_apart() -> None:
    odd: list[Any] = [[1], [True], [{"a": 1}], [{"a": [1]}], [["a", 1]]]
    assert [where for _, where in places_of(embed(odd))] == [(0,), (1,), (2,), (3,), (4,)]
    assert len(places_of(embed(["é", "e\u0301", "e", "E", " e"]))) == 5


@pytest.mark.parametrize(("item", "given"), [("a", ["b", "a"]), ([1, 2], [[3], [1, 2]])])
@pytest.mark.parametrize("wish", [WISH, {**WISH, "context_aware": False}, {**WISH, "ttl": 7}])
def test_an_input_of_a_list_has_the_key_that_it_has_alone(
    item: object, given: object, wish: dict[str, Any]
) -> None:
    call, fields = embed(given, dimensions=8), {"dimensions": 8}
    plan = plan_of(wish, call=call)
    part = part_of(call, plan, item, (1,))
    alone = plan_of(wish, call=embed(item, **fields))
    assert (part.plan.key, part.plan.public_key) == (alone.key, alone.public_key)
    assert (part.plan.canonical, part.plan.fingerprint) == (alone.canonical, alone.fingerprint)
    assert part.plan.ttl_s == plan.ttl_s
    assert part.call.body == {**call.body, "input": item}
    assert part.places == (1,)


def test_what_the_client_asks_of_the_vector_is_part_of_the_key() -> None:
    keys = {
        part_of(call, plan_of(WISH, call=call), "a", (0,)).plan.key
        for call in (
            embed(["a"]),
            embed(["a"], dimensions=8),
            embed(["a"], encoding_format="base64"),
            embed(["a"], encoding_format="float"),
            embed(["a"], later="field"),
        )
    }
    assert len(keys) == 5


def test_a_list_is_never_matched_by_its_name_alone() -> None:
    call = embed(["a", "b"])
    named = plan_of({**WISH, "match": "key"}, call=call)
    plan = for_list(named)
    assert plan.match == "exact"
    assert plan.key == plan_of(WISH, call=call).key != named.key
    assert plan.reasons[-1].value == "exact"
    assert because(named, "match")[0] == "key"
    exact = plan_of(WISH, call=call)
    assert for_list(exact) is exact


def test_an_input_weighs_what_it_is_long() -> None:
    call = embed(["", "four", "一二"])
    plan = plan_of(WISH, call=call)
    assert [part_of(call, plan, item, where).weight for item, where in places_of(call)] == [1, 4, 2]


@few
@given(total=counts, parts=weights)
def test_shares_are_whole_fair_and_add_up(total: int, parts: list[int]) -> None:
    shares = apportioned(total, parts)
    assert sum(shares) == total
    for share, weight in zip(shares, parts, strict=True):
        assert abs(share - total * weight / sum(parts)) < 1 + 1e-6


def test_token_lists_get_exactly_their_tokens() -> None:
    assert apportioned(9, [2, 3, 4]) == [2, 3, 4]
    assert apportioned(10, [1, 1, 1]) == [4, 3, 3]


@few
@given(usage=usages, parts=weights)
def test_what_was_divided_adds_up_again(usage: dict[str, Any], parts: list[int]) -> None:
    shares = divided(usage, parts)
    assert len(shares) == len(parts)
    assert added((share, 1) for share in shares) == usage


def test_what_is_no_count_is_everybodys() -> None:
    usage = {"prompt_tokens": 3, "details": None, "tier": "a", "cached": True, "odd": -1}
    one, two = divided(usage, [1, 2])
    assert one == {**usage, "prompt_tokens": 1}
    assert two == {**usage, "prompt_tokens": 2}
    assert added([(one, 1), (two, 1)]) == usage


def test_what_stands_twice_counts_twice() -> None:
    usage = {"prompt_tokens": 3, "details": {"cached_tokens": 1}}
    assert added([(usage, 2), ({"prompt_tokens": 1}, 1)]) == {
        "prompt_tokens": 7,
        "details": {"cached_tokens": 2},
    }
    assert added([({"a": "word"}, 1), ({"a": 2}, 1)]) == {"a": 2}
