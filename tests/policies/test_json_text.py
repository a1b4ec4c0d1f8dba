"""policies.json_text: the same text as in one call, in parts that each take little."""

import json
from typing import Any

import pytest
from hypothesis import given

from policies.json_text import SLICE_CHARACTERS, SLICE_ITEMS, encode, pieces
from tests.policies.making import few, json_values

LARGE: dict[str, Any] = {
    "token ids": list(range(3 * SLICE_ITEMS)),
    "texts": ["é\n" * 10] * (2 * SLICE_ITEMS),
    "long texts in a list": ["x" * SLICE_CHARACTERS, "y\\" * SLICE_CHARACTERS, ""],
    "a text": 'a "quoted" 😀\n' * SLICE_CHARACTERS,
    "lists": [[], [1], [[]], {}] * SLICE_ITEMS,
    "members": {f"{number}": number for number in range(2 * SLICE_ITEMS)},
}


@few
@given(json_values)
def test_the_pieces_are_the_text_of_one_call(value: Any) -> None:
    assert "".join(pieces(value, sort_keys=True)) == encode(value)
    unsorted = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert "".join(pieces(value, sort_keys=False)) == unsorted


@pytest.mark.parametrize("name", LARGE)
def test_no_piece_of_a_large_value_is_large(name: str) -> None:
    value = {"z": LARGE[name], "a": (1, 2)}
    found = list(pieces(value, sort_keys=True))
    assert "".join(found) == encode(value)
    assert max(map(len, found)) <= 2 * SLICE_CHARACTERS
