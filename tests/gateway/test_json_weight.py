"""gateway.json_weight: the values of a text are counted, and what stands in texts is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.json_weight import MAX_VALUES, values_in
from tests.policies.making import few

MANY = MAX_VALUES + 10


@pytest.mark.parametrize(
    "value", [[1] * MANY, [[]] * (MANY // 2), [{"a": 1}] * (MANY // 5), ["a, b"] * MANY]
)
def test_many_values_are_too_many(value: Any) -> None:
    assert values_in(json.dumps(value).encode()) > MAX_VALUES


@pytest.mark.parametrize("text", [",[{:" * MANY, '\\",' * MANY, "\\\\" * MANY + ",[" * MANY])
def test_a_text_is_one_value_whatever_is_in_it(text: str) -> None:
    assert values_in(json.dumps([text, text, {"a": text}]).encode()) < 10


def _values(value: Any) -> int:
    if isinstance(value, dict):
        return 2 + sum(4 + _values(one) for one in value.values())
    if isinstance(value, list):
        return 2 + sum(1 + _values(one) for one in value)
    return 1


texts = st.text(st.sampled_from('a",:[]{}\\'), max_size=8)
values = st.recursive(
    texts | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=9,
)


@few
@given(values)
def test_the_count_is_near_the_truth_behind_so_many_texts(value: Any) -> None:
    padding = ",[" * MANY
    raw = json.dumps([padding, value]).encode()
    assert values_in(raw) <= _values([padding, value])
