"""What the client asked about caching, and where each word of it came from.

``_TABLE`` is the protocol's table of directives, a line a row; a reader turns one raw value into
one field, or says what is wrong with it and what is allowed.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from policies.call import RequestError, json_type
from policies.eviction import Priority
from policies.rules import Limits, Match, ScopeName, TierName

__all__ = ["Directive", "Limits", "Match", "Priority", "ScopeName", "TierName", "parse_directive"]

_MAX_ECHO = 40  # characters of a client's value that a message may repeat
_MAX_UNKNOWN = 16  # unknown names remembered for the debug output
_MAX_TAGS = 32
_MAX_AGE_S = 2.0**31  # RFC 9111 section 1.2.2: more than this is this


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """The client's wishes; None means that the client said nothing.

    ``origins`` names for each spoken field where it came from: ``body kv_cache.ttl``,
    ``header X-Cache-TTL``, ``Cache-Control`` or ``body prompt_cache_key``. ``unknown`` lists
    ``X-Cache-*`` names and ``kv_cache`` members that mean nothing here, shortened.
    ``shared`` is ``X-Cache-Shared``, ``shared_context`` the id of a context named in the body.
    """

    enabled: bool | None = None
    cache_key: str | None = None
    prompt_cache_key: str | None = None
    ttl_s: float | None = None
    priority: Priority | None = None
    tier: TierName | None = None
    prompt_type: str | None = None
    context: str | None = None
    strategy: str | None = None
    reuse: bool | None = None
    context_aware: bool | None = None
    match: Match | None = None
    scope: ScopeName | None = None
    stream: bool | None = None
    batch_mode: bool | None = None
    batch_id: str | None = None
    share: bool | None = None
    preload: bool | None = None
    shared_context: str | None = None
    shared: bool | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    debug: bool = False
    no_cache: bool = False
    no_store: bool = False
    max_age_s: float | None = None
    only_if_cached: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def affinity(self) -> str | None:
        """What prompts that begin alike are called: it steers routing and retention."""
        return self.prompt_cache_key if self.cache_key is None else self.cache_key


def parse_directive(
    kv_cache: object,
    headers: Iterable[tuple[str, str]],
    *,
    limits: Limits,
    prompt_cache_key: object = None,
) -> Directive:
    """Read the body's ``kv_cache``, all request ``headers``, and OpenAI's ``prompt_cache_key``.

    Where both speak the body wins, but a malformed header is malformed all the same, and both must
    name the same user.
    ``kv_cache`` may be an object, null, or true/false as shorthand for ``enabled``.

    Raises RequestError naming the header or the body field: 400 ``invalid_cache_directive``, 403
    ``user_mismatch``.
    """
    said = _Said(limits)
    _read_headers(headers, said)
    _read_body(kv_cache, said)
    if prompt_cache_key is not None:
        name = _key_text(prompt_cache_key, "prompt_cache_key", limits)
        said.fields["prompt_cache_key"] = name
        said.origins["prompt_cache_key"] = "body prompt_cache_key"
    return Directive(
        **said.fields,
        origins=said.origins,
        unknown=tuple(name[:_MAX_ECHO] for name in said.unknown[:_MAX_UNKNOWN]),
    )


class _Said:
    """What was read so far."""

    __slots__ = ("fields", "limits", "origins", "unknown")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.fields: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.unknown: list[str] = []


def _read_headers(headers: Iterable[tuple[str, str]], said: _Said) -> None:
    seen: dict[str, str] = {}
    for name, raw in headers:
        lower = name.lower()
        if lower.startswith("x-cache-"):
            word = _BY_HEADER.get(lower)
            if word is None:
                said.unknown.append(name)
                continue
            value = raw.strip(" \t")
            if seen.setdefault(lower, value) != value:
                raise _malformed(word.where, "it is sent twice with different values", "one value")
            said.fields[word.field] = word.read(value, word.where, said.limits)
            said.origins[word.field] = word.origin
        elif lower == "cache-control":
            _read_cache_control(raw, said)


def _read_body(kv_cache: object, said: _Said) -> None:
    if kv_cache is None:
        return
    if isinstance(kv_cache, bool):
        said.fields["enabled"] = kv_cache
        said.origins["enabled"] = "body kv_cache"
        return
    if not isinstance(kv_cache, dict):
        raise _malformed("kv_cache", f"it is {json_type(kv_cache)}", "an object, a boolean or null")
    for member, value in kv_cache.items():
        word = _BY_MEMBER.get(member)
        if word is None:
            said.unknown.append(f"kv_cache.{member}")
        elif value is not None:
            read = word.read(value, word.where, said.limits)
            if word.field == "user" and said.fields.get("user", read) != read:
                raise _other_user(word.where)
            said.fields[word.field] = read
            said.origins[word.field] = word.origin


def _read_cache_control(raw: str, said: _Said) -> None:
    """RFC 9111 section 5.2.1; its other request directives mean nothing here and are ignored."""
    for name, digits in _items_of(raw):
        field_name = _CACHE_CONTROL.get(name.lower())
        if field_name is None:
            continue
        value: bool | float = True
        if field_name == "max_age_s":
            if not (digits.isascii() and digits.isdigit()):
                problem = f"max-age is {_quoted(digits)}"
                raise _malformed("Cache-Control", problem, "whole seconds, 0 or more")
            value = min(float(digits), _MAX_AGE_S, said.fields.get(field_name, _MAX_AGE_S))
        said.fields[field_name] = value
        said.origins[field_name] = "Cache-Control"


# A directive of RFC 9111 section 5.2: a token, and perhaps an argument, which is a token or a quoted
# string of RFC 9110 section 5.6.4. Commas and directives within quotes mean nothing.
_ITEM = re.compile(
    r"""[ \t]*(?P<name>[^\s,="]*)[ \t]*
        (?:=[ \t]*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^",]*)))?[ \t]*(?:,|\Z)""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(.)")


def _items_of(raw: str) -> Iterator[tuple[str, str]]:
    """The directives of a header with their arguments. Raises: RequestError 400."""
    at = 0
    while at < len(raw):
        item = _ITEM.match(raw, at)
        if item is None:
            problem = f"{_quoted(raw[at:])} is no directive"
            raise _malformed("Cache-Control", problem, 'name, name=token, name="text"')
        at = item.end()
        quoted = item["quoted"]
        if quoted is not None:
            yield item["name"], _ESCAPED.sub(r"\1", quoted)
        else:
            yield item["name"], (item["token"] or "").rstrip(" \t")


# ---- one reader per kind of value: (value, where, limits) -> field, or RequestError

_Reader = Callable[[object, str, Limits], Any]

_TRUE_OR_FALSE: Final[dict[str, bool]] = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,32}(?:\.[0-9]{1,32})?")
# Controls (C0, DEL, C1), line and paragraph separators, what reorders text on a screen,
# lone surrogates (bytes of a header that were no UTF-8) and noncharacters.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def _boolean(value: object, where: str, _limits: Limits) -> bool:
    if isinstance(value, bool):
        return value
    meant = _TRUE_OR_FALSE.get(value.lower()) if isinstance(value, str) else None
    if meant is None:
        raise _malformed(where, _what(value), "true, false, 1, 0, yes, no, on or off")
    return meant


def _seconds(value: object, where: str, limits: Limits) -> float:
    allowed = f"seconds from 0 to {limits.max_ttl_s:.15g}"
    if isinstance(value, str):
        if _PLAIN_NUMBER.fullmatch(value) is None:
            raise _malformed(where, f"{_quoted(value)} is not a plain number", allowed)
        number: float = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    else:
        raise _malformed(where, _what(value), allowed)
    if number < 0:
        raise _malformed(where, "it is negative", allowed)
    if not number <= limits.max_ttl_s:
        raise _malformed(where, "it is more, or no number at all", allowed)
    return abs(float(number))  # -0.0 is 0.0


def _one_of(*allowed: str) -> _Reader:
    def read(value: object, where: str, _limits: Limits) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _malformed(where, _what(value), " or ".join(allowed))
        return value

    return read


def _text(most: int) -> _Reader:
    allowed = f"1 to {most} printable characters"

    def read(value: object, where: str, _limits: Limits) -> str:
        if not isinstance(value, str):
            raise _malformed(where, _what(value), allowed)
        if not 0 < len(value) <= most:
            raise _malformed(where, f"it has {len(value)} characters", allowed)
        unfit = _UNPRINTABLE.search(value)
        if unfit is not None:
            problem = f"character {unfit.start()} of {_quoted(value)} is U+{ord(unfit[0]):04X}"
            raise _malformed(where, problem, allowed)
        return value

    return read


_key_text = _text(512)
_kind_text = _text(128)
_tag_text = _text(64)


def _tags(value: object, where: str, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _malformed(where, _what(value), f"a list of at most {_MAX_TAGS} strings")
    if len(value) > _MAX_TAGS:
        raise _malformed(where, f"it has {len(value)} labels", f"at most {_MAX_TAGS}")
    return tuple(dict.fromkeys(_tag_text(tag, where, limits) for tag in value))


def _tags_of_header(value: object, where: str, limits: Limits) -> tuple[str, ...]:
    """A list of RFC 9110 section 5.6.1: empty elements do not count."""
    tags = [tag.strip(" \t") for tag in str(value).split(",")]
    return _tags([tag for tag in tags if tag], where, limits)


# The same words in other places of the wire: names, seconds, priorities.
read_name: Final = _key_text
read_seconds: Final = _seconds
read_priority: Final = _one_of("high", "medium", "low")


class _Word(NamedTuple):
    """What one member of ``kv_cache``, or one header, says."""

    field: str
    where: str
    origin: str
    read: _Reader


_TABLE: Final[tuple[tuple[str, str | None, str | None, _Reader], ...]] = (
    # field, member of kv_cache, header, reader
    ("enabled", "enabled", "X-Cache-Enable", _boolean),
    ("cache_key", "cache_key", "X-Cache-ID", _key_text),
    ("ttl_s", "ttl", "X-Cache-TTL", _seconds),
    ("priority", "priority", "X-Cache-Priority", read_priority),
    ("tier", "tier", "X-Cache-Tier", _one_of("hot", "warm", "cold")),
    ("prompt_type", "prompt_type", "X-Cache-Prompt-Type", _kind_text),
    ("context", "context", "X-Cache-Context", _kind_text),
    ("strategy", "strategy", "X-Cache-Strategy", _one_of("adaptive")),
    ("reuse", "reuse", "X-Cache-Reuse", _boolean),
    ("context_aware", "context_aware", "X-Cache-Context-Aware", _boolean),
    ("match", "match", "X-Cache-Match", _one_of("exact", "key", "semantic")),
    ("scope", "scope", "X-Cache-Scope", _one_of("tenant", "user", "shared")),
    ("stream", "stream", "X-Cache-Stream", _boolean),
    ("batch_mode", "batch_mode", "X-Cache-Batch", _boolean),
    ("batch_id", "batch_id", "X-Cache-Batch-ID", _key_text),
    ("share", "share", "X-Cache-Share", _boolean),
    ("preload", "preload", "X-Cache-Warm", _boolean),
    ("shared_context", "shared_context", None, _key_text),
    ("shared", None, "X-Cache-Shared", _boolean),
    ("user", "user", "X-Cache-User", _key_text),
    ("tags", "tags", None, _tags),
    ("tags", None, "X-Cache-Tags", _tags_of_header),
    ("debug", "debug", "X-Cache-Debug", _boolean),
)
_BY_MEMBER: Final = {
    member: _Word(name, f"kv_cache.{member}", f"body kv_cache.{member}", read)
    for name, member, _, read in _TABLE
    if member is not None
}
_BY_HEADER: Final = {
    header.lower(): _Word(name, header, f"header {header}", read)
    for name, _, header, read in _TABLE
    if header is not None
}
_CACHE_CONTROL: Final = {
    "no-cache": "no_cache",
    "no-store": "no_store",
    "max-age": "max_age_s",
    "only-if-cached": "only_if_cached",
}


def _other_user(where: str) -> RequestError:
    """A proxy says in the header whose body it passes on: the body cannot choose another view."""
    return RequestError(
        f"{where} and X-Cache-User name different users",
        code="user_mismatch",
        param=where,
        status=403,
    )


def _what(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else f"it is {json_type(value)}"


def _quoted(value: str) -> str:
    return repr(value[:_MAX_ECHO]) + ("..." if len(value) > _MAX_ECHO else "")


def _malformed(where: str, problem: str, allowed: str) -> RequestError:
    return RequestError(
        f"{where}: {problem}; allowed: {allowed}", code="invalid_cache_directive", param=where
    )
