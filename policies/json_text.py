"""JSON text in short steps, for values so large that one call of an encoder would hold all threads.

Python's encoder is one call in C, and no other thread runs until it returns. :func:`pieces` makes the
same text of parts that each take a millisecond or less: slices of long texts and lists.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from policies.numbers import marked

SLICE_CHARACTERS: Final = 256 * 1024
SLICE_ITEMS: Final = 8192
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})

encode: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=marked
).encode
"""Canonical JSON in one call: names sorted, no blanks. Marked numbers are to be unmarked."""


def pieces(value: Any, *, sort_keys: bool) -> Iterator[str]:
    """The text of ``value``, to be joined. The caller bounds the depth."""
    kind = type(value)
    if kind is dict:
        yield from _members(value, sort_keys=sort_keys)
    elif kind is list or kind is tuple:
        yield from _items(value, sort_keys=sort_keys)
    elif kind is str and len(value) > SLICE_CHARACTERS:
        yield '"'
        for start in range(0, len(value), SLICE_CHARACTERS):
            yield encode(value[start : start + SLICE_CHARACTERS])[1:-1]
        yield '"'
    else:
        yield encode(value)


def _members(value: dict[str, Any], *, sort_keys: bool) -> Iterator[str]:
    before = "{"
    names: Iterable[str] = sorted(value) if sort_keys else value
    for name in names:
        yield f"{before}{encode(name)}:"
        yield from pieces(value[name], sort_keys=sort_keys)
        before = ","
    yield "}" if value else "{}"


def _items(value: list[Any] | tuple[Any, ...], *, sort_keys: bool) -> Iterator[str]:
    before = "["
    for start in range(0, len(value), SLICE_ITEMS):
        some = value[start : start + SLICE_ITEMS]
        if _SCALARS.issuperset(map(type, some)) and _is_short(some):
            yield f"{before}{encode(some)[1:-1]}"
            before = ","
            continue
        for item in some:
            yield before
            yield from pieces(item, sort_keys=sort_keys)
            before = ","
    yield "]" if value else "[]"


def _is_short(some: list[Any] | tuple[Any, ...]) -> bool:
    return sum(len(item) for item in some if type(item) is str) <= SLICE_CHARACTERS
