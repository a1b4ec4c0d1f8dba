"""JSON of clients and upstreams, with every number as it was written; no IO.

orjson parses and writes. It makes floats of integers beyond 64 bits, and of decimals that a
double cannot tell from others. :func:`loads` notices the bytes that may hold such numbers, and
parses those once more with :class:`~policies.numbers.ExactNumber` in their place.

Answers of upstreams hold what is no strict JSON: ``NaN``, ``Infinity`` and halves of surrogate
pairs. :func:`loads_answer` takes them and :func:`dumps` writes them as they came. A store holds
strict JSON only: :func:`dumps_strict`.
"""

import json
from typing import Any, Final

import orjson

from policies.json_text import pieces
from policies.numbers import ExactNumber, decimal, integer, unmarked

JSONDecodeError = orjson.JSONDecodeError
JSONEncodeError = orjson.JSONEncodeError

_LONG: Final = b"0" * 16  # digits in a row that may be more than an int64 or a double holds
_FAR: Final = b"0e000"  # an exponent that may lie beyond a double
_ZEROS: Final = bytes.maketrans(b"123456789E", b"000000000e")
_DIGITS: Final = b"0123456789."
_BLANKS: Final = b" \t\r\n"
_TOO_DEEP: Final = "Recursion limit"
_NO_NUMBERS: Final = {"NaN", "Infinity", "-Infinity"}


class NotStrict(ValueError):
    """A value that strict JSON cannot hold: NaN, an infinity, half of a surrogate pair."""


def loads(raw: bytes) -> Any:
    """``raw`` as strict JSON (RFC 8259). Raises: JSONDecodeError."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "infinity" not in error.msg:
            raise
        try:
            value = _exact(raw.decode(), _refused)
            orjson.dumps(value, default=_written)  # refuses what orjson.loads would
        except (ValueError, RecursionError, orjson.JSONEncodeError):
            raise error from None
        return value
    return value if _is_exact(raw, value) else _exactly(raw, value)


def loads_answer(raw: bytes) -> Any:
    """``raw`` as an upstream sends JSON: NaN, infinities and halves of surrogates too.

    Raises: JSONDecodeError.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        try:
            return _exact(raw.decode(), ExactNumber)
        except (ValueError, RecursionError):
            raise error from None
    return value if _is_exact(raw, value) else _exactly(raw, value)


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """``value`` as JSON, its numbers as they came. Raises: JSONEncodeError (nested too deep)."""
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    try:
        return orjson.dumps(value, default=_written, option=option)
    except orjson.JSONEncodeError as error:
        if _TOO_DEEP in str(error):
            raise
        try:
            return _by_hand(value, sort_keys=sort_keys)
        except RecursionError as error:
            raise orjson.JSONEncodeError("nested too deep") from error


def dumps_in_steps(value: Any) -> bytes:
    """The same for a large value, in steps that each take a millisecond or less, for a thread."""
    try:
        return unmarked("".join(pieces(value, sort_keys=False))).encode()
    except RecursionError as error:
        raise orjson.JSONEncodeError("nested too deep") from error


def dumps_strict(value: Any) -> bytes:
    """The same, for a store. Raises: NotStrict; JSONEncodeError (nested too deep)."""
    try:
        return orjson.dumps(value, default=_written_strictly)
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, NotStrict):
            raise error.__cause__ from None
    written = dumps(value)
    try:
        orjson.loads(written)
    except orjson.JSONDecodeError as error:
        raise NotStrict(error.msg) from None
    return written


def _is_exact(raw: bytes, value: Any) -> bool:
    """Whether ``value`` has every number of ``raw``; a wrong no costs time only."""
    zeros = raw.translate(_ZEROS, b".+-")
    if _LONG not in zeros and _FAR not in zeros:
        return True
    # Long numbers in texts, and the floats of embeddings: written again they are the same.
    try:
        again = orjson.dumps(value)
    except orjson.JSONEncodeError:  # nested deeper than is passed on
        return False
    return again == raw or _bare(again) == _bare(raw)


def _bare(raw: bytes) -> bytes:
    """Without blanks, and with Python's exponents as orjson writes them."""
    *parts, last = raw.translate(None, _BLANKS).split(b"e-05")
    written = []
    for part in parts:  # orjson writes these numbers without an exponent
        head = part.rstrip(_DIGITS)
        written.append(b"%b0.0000%b" % (head, part[len(head) :].replace(b".", b"")))
    return b"".join((*written, last)).replace(b"e-0", b"e-")


def _exactly(raw: bytes, value: Any) -> Any:
    try:
        return _exact(raw.decode(), _refused)
    except RecursionError:  # nested deeper than is passed on
        return value


def _exact(text: str, constant: Any) -> Any:
    return json.loads(text, parse_int=integer, parse_float=decimal, parse_constant=constant)


def _refused(name: str) -> None:
    raise ValueError(name)


def _written(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text)
    raise TypeError(type(value).__name__)


def _written_strictly(value: Any) -> orjson.Fragment:
    if isinstance(value, ExactNumber) and value.text in _NO_NUMBERS:
        raise NotStrict(value.text)
    return _written(value)


def _by_hand(value: Any, *, sort_keys: bool) -> bytes:
    """What orjson does not write: halves of surrogate pairs, and integers made by adding."""
    if isinstance(value, dict):
        names = sorted(value) if sort_keys else value
        members = (
            b"%b:%b" % (_text(name), _by_hand(value[name], sort_keys=sort_keys)) for name in names
        )
        return b"{%b}" % b",".join(members)
    if isinstance(value, list | tuple):
        return b"[%b]" % b",".join(_by_hand(item, sort_keys=sort_keys) for item in value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return b"%d" % value
    return orjson.dumps(value, default=_written)


def _text(text: str) -> bytes:
    """Two halves that stand together are written as the character that they make."""
    try:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return json.dumps(text).encode()
    return orjson.dumps(text)
