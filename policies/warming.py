"""What a warming request asks for: each question as the very call that a client will make later.

A *pattern* is a base of messages and variations on it::

    {id, base_messages, variations: [...], model?, params?, ttl?, tier?, priority?, kv_cache?}

A variation is a user's text, a message object, or ``{question: text, ...}`` with a model, params,
ttl, tier, priority, ``cache_key`` or ``kv_cache`` of its own. A list of ``questions`` is one pattern
without an id. ``kv_cache`` takes every directive of an ordinary call.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from policies.call import RequestError, json_type, parse_call
from policies.directive import parse_directive
from policies.rules import Limits

MAX_ITEMS: Final = 10_000
MAX_MESSAGES: Final = 100_000
"""Of all questions of a job, those of their bases counted each time."""
MAX_ID: Final = 128
QUESTIONS: Final = "questions"
"""The id of a pattern that is a bare list."""
MODEL: Final = "default"
"""What stands for the first model served; the key of an answer has the served model's name."""

_SHORTHANDS: Final = ("ttl", "tier", "priority")
_OVERRIDES: Final = ("model", "params", "kv_cache", *_SHORTHANDS)
_PATTERN: Final = frozenset({"id", "base_messages", "variations", *_OVERRIDES})
_QUESTION: Final = frozenset({"question", "cache_key", *_OVERRIDES})
_NOT_A_PARAM: Final = ("model", "messages", "kv_cache")
_NOTE: Final = frozenset({"warmed_at"})
"""What the guide's own warmer writes down beside its patterns."""
_MESSAGE: Final = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Item:
    """One question: a client's chat request, ``kv_cache`` included.

    ``own`` is the request without the base messages of its pattern. ``base`` holds those, once for all
    questions of the pattern. ``where`` is its place in what was sent: ``patterns[0].variations[2]``.
    """

    pattern: str
    where: str
    own: Mapping[str, Any]
    base: Sequence[Any] = ()

    @property
    def body(self) -> Mapping[str, Any]:
        """The whole request, made anew each time."""
        if not self.base:
            return self.own
        return {**self.own, "messages": [*self.base, *self.own["messages"]]}


@dataclass(frozen=True, slots=True)
class _Base:
    """The messages that stand before every variation, and their place."""

    where: str
    messages: list[Any]


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a pattern says for all its variations, or a variation for itself."""

    model: str | None
    params: Mapping[str, Any]
    kv_cache: Mapping[str, Any]


def parse_wish(
    wish: Mapping[str, Any], configured: Mapping[str, tuple[Item, ...]], *, limits: Limits
) -> tuple[Item, ...]:
    """The questions of a request to warm. ``configured`` are the patterns of the configuration.

    Raises RequestError naming the field: 400, or 404 ``pattern_not_found``.
    """
    named = [name for name in ("patterns", "pattern", QUESTIONS) if wish.get(name) is not None]
    if len(named) != 1:
        raise RequestError(
            f"say what to warm: one of patterns, pattern, questions; here are {len(named)}",
            code="invalid_value" if named else "missing_field",
            param=named[1] if named else None,
        )
    match named[0]:
        case "pattern":
            _only(wish, frozenset({"pattern"}), "")
            return _known(wish["pattern"], configured)
        case "patterns":
            _only(wish, frozenset({"patterns"}), "")
            found = _patterns(wish["patterns"], limits)
        case _:
            _only(wish, (_PATTERN - {"variations"}) | {QUESTIONS}, "")
            found = pattern_items({"id": QUESTIONS, **wish}, "", limits=limits, list_=QUESTIONS)
    _check_messages(sum(len(item.base) + 1 for item in found), named[0])
    if len(found) > MAX_ITEMS:
        raise RequestError(
            f"{len(found)} questions are too many for one job; at most {MAX_ITEMS}",
            code="invalid_value",
            param=named[0],
        )
    return found


def pattern_items(
    pattern: object, where: str, *, limits: Limits, list_: str = "variations"
) -> tuple[Item, ...]:
    """The questions of one pattern; ``list_`` is the member that holds them.

    Raises RequestError naming the field under ``where``.
    """
    if not isinstance(pattern, dict):
        raise _wrong_type(where, pattern, "an object")
    _only(pattern, (_PATTERN - {"variations"}) | {list_} | _NOTE, where)
    name = pattern.get("id")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ID or not name.isprintable():
        allowed = f"a string of 1 to {MAX_ID} printable characters"
        raise RequestError(
            f"{_under(where, 'id')} must be {allowed}",
            code="invalid_value",
            param=_under(where, "id"),
        )
    wishes = _wishes(pattern, where, limits)
    at = _under(where, "base_messages")
    before = pattern.get("base_messages")
    base = _Base(at, [] if before is None else _list(before, at))
    places = _under(where, list_)
    variations = _list(pattern.get(list_), places)
    if not variations:
        raise RequestError(f"{places} is empty", code="invalid_value", param=places)
    _check_messages(len(variations) * (len(base.messages) + 1), places)
    items = []
    for number, variation in enumerate(variations):
        at = f"{places}[{number}]"
        own = _own(variation, at, wishes, limits)
        # The base is the same for all: the first question shows whether it is one.
        _check_call(own, _Base(base.where, base.messages if number == 0 else []), at)
        items.append(Item(name, at, own, base.messages))
    return tuple(items)


def _check_messages(count: int, where: str) -> None:
    """Each question is asked with its whole base, so both count."""
    if count > MAX_MESSAGES:
        raise RequestError(
            f"{where} makes {count} messages, the base counted for each question; at most "
            f"{MAX_MESSAGES} for one job",
            code="invalid_value",
            param=where,
        )


def _known(name: object, configured: Mapping[str, tuple[Item, ...]]) -> tuple[Item, ...]:
    if not isinstance(name, str):
        raise _wrong_type("pattern", name, "the id of a pattern in the configuration")
    if name not in configured:
        raise RequestError(
            "the configuration has no pattern of this id",
            code="pattern_not_found",
            param="pattern",
            status=404,
        )
    return configured[name]


def _patterns(patterns: object, limits: Limits) -> tuple[Item, ...]:
    """A list, or an object of patterns by id."""
    if isinstance(patterns, dict):
        found = [
            pattern_items(
                {"id": name, **pattern} if isinstance(pattern, dict) else pattern,
                f"patterns.{name[:MAX_ID]}",
                limits=limits,
            )
            for name, pattern in patterns.items()
        ]
    else:
        found = [
            pattern_items(pattern, f"patterns[{number}]", limits=limits)
            for number, pattern in enumerate(_list(patterns, "patterns"))
        ]
    if not found:
        raise RequestError("patterns is empty", code="invalid_value", param="patterns")
    return tuple(item for items in found for item in items)


def _own(variation: object, where: str, wishes: _Wishes, limits: Limits) -> Mapping[str, Any]:
    own = _Wishes(None, {}, {})
    match variation:
        case str():
            last: Any = {"role": "user", "content": variation}
        case dict() if "question" in variation:
            _only(variation, _QUESTION, where)
            if not isinstance(variation["question"], str):
                raise _wrong_type(f"{where}.question", variation["question"], "a string")
            last = {"role": "user", "content": variation["question"]}
            own = _wishes(variation, where, limits)
        case dict():
            last = variation
        case _:
            raise _wrong_type(where, variation, "a string, a message or an object with a question")
    return {
        **wishes.params,
        **own.params,
        "model": own.model or wishes.model or MODEL,
        "messages": [last],
        "kv_cache": {**wishes.kv_cache, **own.kv_cache, "enabled": True, "preload": True},
    }


def _check_call(own: Mapping[str, Any], base: _Base, where: str) -> None:
    body = {**own, "messages": [*base.messages, *own["messages"]]}
    try:
        parse_call("chat", body)
    except RequestError as error:
        raise _moved(error, base, where) from None


def _moved(error: RequestError, base: _Base, where: str) -> RequestError:
    """The error of a call in the words of the pattern it was made from."""
    said = error.param or ""
    if (found := _MESSAGE.fullmatch(said)) is not None:
        place = int(found[1])
        param = (f"{base.where}[{place}]" if place < len(base.messages) else where) + found[2]
    else:
        param = f"{where}.params.{said}"
    return RequestError(error.message.replace(said, param), code=error.code, param=param)


def _wishes(said: Mapping[str, Any], where: str, limits: Limits) -> _Wishes:
    model = said.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        raise _wrong_type(_under(where, "model"), model, "the name of a model")
    params = _object(said.get("params"), _under(where, "params"))
    for name in _NOT_A_PARAM:
        if name in params:
            at = _under(where, f"params.{name}")
            raise RequestError(f"{at} has a place of its own", code="invalid_value", param=at)
    kv_cache = _object(said.get("kv_cache"), _under(where, "kv_cache"))
    short = {name: said[name] for name in ("cache_key", *_SHORTHANDS) if said.get(name) is not None}
    for members, prefix in ((kv_cache, "kv_cache."), (short, "")):
        try:
            parse_directive(members, (), limits=limits)
        except RequestError as error:
            member = (error.param or "").removeprefix("kv_cache.")
            at = _under(where, prefix + member)
            message = error.message.replace(f"kv_cache.{member}", at)
            raise RequestError(message, code=error.code, param=at) from None
    return _Wishes(model, params, {**kv_cache, **short})


def _only(said: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    for name in said:
        if name not in allowed:
            at = _under(where, str(name)[:64])
            raise RequestError(
                f"{at} is unknown; allowed are {', '.join(sorted(allowed - _NOTE))}",
                code="unknown_field",
                param=at,
            )


def _list(value: object, where: str) -> list[Any]:
    if value is None:
        raise RequestError(f"{where} is required", code="missing_field", param=where)
    if not isinstance(value, list):
        raise _wrong_type(where, value, "a list")
    return value


def _object(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong_type(where, value, "an object")
    return value


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong_type(where: str, value: object, allowed: str) -> RequestError:
    return RequestError(
        f"{where} is {json_type(value)}; it must be {allowed}", code="invalid_type", param=where
    )
