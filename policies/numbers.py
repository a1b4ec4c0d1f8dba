"""Numbers of JSON that neither a 64-bit integer nor a double can hold, kept as they were written.

A parser that makes floats of them gives two different numbers one value: ``2**64`` and
``2**64 + 1`` as seeds would share an answer. Every other number stays an ``int`` or a ``float``.
"""

import re
from typing import Final, NamedTuple

MARK: Final = "\ud800"
"""Half of a surrogate pair, which no parsed request holds: in a text it marks a number as one."""
MOST_DIGITS: Final = 4000
"""Whole numbers with more digits are compared as text with an exponent, not written out."""

_MARKED: Final = re.compile(f'"{MARK}([^"]*)"')
_NUMBER: Final = re.compile(r"(-?)0*([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
_SAFE_DIGITS: Final = 15  # a double tells all decimals of so many digits apart
_INT64_DIGITS: Final = 20
_MOST_EXPONENT_DIGITS: Final = 18


class ExactNumber:
    """A number by its JSON text. Equal means written alike.

    It is no dataclass, because orjson would write its field in place of the number.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text: Final = text

    def __repr__(self) -> str:
        return f"ExactNumber({self.text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExactNumber) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class _Decimal(NamedTuple):
    """``digits`` times ten to the ``exponent``; no zeros on either end of the digits."""

    sign: str
    digits: str
    exponent: int | str


def integer(text: str) -> int | ExactNumber:
    """A JSON integer: an ``int`` when 64 bits hold it, signed or unsigned."""
    if len(text) <= _INT64_DIGITS:
        value = int(text)
        if -(2**63) <= value < 2**64:
            return value
    return ExactNumber(text)


def decimal(text: str) -> float | ExactNumber:
    """A JSON number with a point or an exponent: a ``float`` when that is the same number."""
    value = float(text)
    if len(text) <= _SAFE_DIGITS and "e" not in text and "E" not in text:
        return value
    written = repr(value)
    if written == text or _parts(written) == _parts(text):
        return value
    return ExactNumber(text)


def canonical_text(number: ExactNumber | float) -> str:
    """JSON text that is the same for equal numbers: an integer where it is one."""
    parts = _parts(number.text if isinstance(number, ExactNumber) else repr(number))
    if parts is None:
        assert isinstance(number, ExactNumber)  # NaN and the infinities of an answer
        return number.text
    sign, digits, exponent = parts
    if not digits:
        return "0"
    if isinstance(exponent, int) and exponent >= 0 and len(digits) + exponent <= MOST_DIGITS:
        return f"{sign}{digits}{'0' * exponent}"
    return f"{sign}{digits}E{exponent}"


def marked(number: object) -> str:
    """For the ``default`` of :mod:`json`, whose text then goes through :func:`unmarked`."""
    if isinstance(number, ExactNumber):
        return MARK + number.text
    raise TypeError(type(number).__name__)


def unmarked(text: str) -> str:
    """JSON text with its marked strings as the numbers that they stand for."""
    return _MARKED.sub(r"\1", text) if MARK in text else text


def _parts(text: str) -> _Decimal | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, whole, fraction, power = found[1], found[2], found[3] or "", found[4] or "0"
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return _Decimal("", "", 0)
    shorter = digits.rstrip("0")
    if len(power) > _MOST_EXPONENT_DIGITS:  # no such number is written out, or near another one
        return _Decimal(sign, digits, f"{power}-{len(fraction)}")
    return _Decimal(sign, shorter, int(power) - len(fraction) + len(digits) - len(shorter))
