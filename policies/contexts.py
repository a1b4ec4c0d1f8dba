"""Shared contexts: who may use one, does the prompt start with it, put it in front.

A shared context is a base prompt under a name, for the users of one tenant. It is held in two
parts: its :class:`Terms` (small, read on each use, never remembered: a right that is taken away
is gone at once) and its text, which is read only for those who may use it and compared only
then. So whoever is refused was refused before anything could depend on the text, time included.

Every text has an ``edition`` of its own, which is part of the scope: answers and KV of a context
that was deleted, or given another text, cannot be reached by what has its name later.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from policies.call import Call, Endpoint, RequestError, canonical, json_type, parse_call
from policies.directive import Directive, read_name, read_priority, read_seconds
from policies.eviction import Priority
from policies.keys import Principal, Scope
from policies.numbers import decimal, integer, marked, unmarked
from policies.rules import Limits

DEFAULT_TTL_S: Final = 7200.0
DEFAULT_PRIORITY: Final[Priority] = "high"
MAX_ALLOWED_USERS: Final = 10_000
_BASE_ROLES: Final = frozenset({"system", "developer"})
_VERSION: Final = 1
_TEXTS: Final = ("base_prompt", "base_messages", "messages")
_MEMBERS: Final = (*_TEXTS, "allowed_users", "ttl", "priority", "model")

Message = Mapping[str, Any]
Base = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """All that is known of a context but its text and its use.

    No ``allowed_users`` means the whole tenant. Times are unix seconds; ``renewed_at`` is when
    it was last put. ``made_by`` is the user who made it, if it was one. ``by_id``: a call that sends
    the mere ID means the context; not if the ID named answers when the context was made. ``size_bytes``
    is that of the text.
    """

    tenant: str
    id: str
    edition: str
    allowed_users: tuple[str, ...]
    ttl_s: float
    priority: Priority
    model: str | None
    made_by: str | None
    created_at: float
    renewed_at: float
    by_id: bool = True
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ContextWish:
    """What a client asked a context to be; ``by_id`` is the gateway's to say."""

    base: Base
    allowed_users: tuple[str, ...] = ()
    ttl_s: float = DEFAULT_TTL_S
    priority: Priority = DEFAULT_PRIORITY
    model: str | None = None
    by_id: bool = True


How = Literal["named", "shared", "scope", "key"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The context that a call names, and how.

    ``named``: ``kv_cache.shared_context``, which may stand in for the base prompt. ``shared``:
    ``X-Cache-Shared``, which makes it when there is none. ``scope``: scope shared. ``key``: by
    the mere ID, which may be a key and nothing more. ``origin`` is the directive's field.
    """

    id: str
    how: How
    origin: str


def wanted(directive: Directive, endpoint: Endpoint) -> Wanted | None:
    """The context that a call asks for, if it asks for one.

    Raises RequestError (400): an ID is missing, scopes contradict, or embeddings are wanted.
    """
    found = _wanted(directive)
    if found is None or found.how == "key":
        return None if endpoint == "embeddings" else found
    if directive.scope in {"tenant", "user"}:
        raise _refused(
            directive,
            "scope",
            f"scope {directive.scope} contradicts a shared context; leave it out",
        )
    if endpoint == "embeddings":
        raise _refused(directive, found.origin, "embeddings have no shared context")
    return found


def _wanted(directive: Directive) -> Wanted | None:
    if directive.shared_context is not None:
        return Wanted(directive.shared_context, "named", "shared_context")
    key = directive.cache_key
    asked: How | None = (
        "shared" if directive.shared else "scope" if directive.scope == "shared" else None
    )
    if asked is not None and key is None:
        raise _refused(directive, asked, "a shared context needs its ID: X-Cache-ID or cache_key")
    if key is None or asked is not None:
        return Wanted(key, asked, asked) if key is not None and asked is not None else None
    if directive.shared is False or directive.scope is not None or directive.enabled is False:
        return None
    return Wanted(key, "key", "cache_key")


def _refused(directive: Directive, field: str, problem: str) -> RequestError:
    where = directive.origins.get(field, field).rpartition(" ")[2]
    return RequestError(f"{where}: {problem}", code="invalid_cache_directive", param=where)


def parse_context(body: Mapping[str, Any], *, limits: Limits) -> ContextWish:
    """What the body of a PUT says.

    Raises RequestError (400) naming the member. An unknown one is refused as well: a mistyped
    ``allowed_users`` must not open the context to everybody.
    """
    for name in body:
        if name not in _MEMBERS:
            raise _invalid(name[:64], f"is unknown; allowed are {', '.join(_MEMBERS)}")
    said = {name: value for name, value in body.items() if value is not None}
    model = said.get("model")
    if model is not None:
        model = read_name(model, "model", limits)
    ttl_s = read_seconds(said.get("ttl", DEFAULT_TTL_S), "ttl", limits)
    if ttl_s == 0:
        raise _invalid("ttl", "must be more than 0 seconds")
    return ContextWish(
        base=_base(said, limits),
        allowed_users=_users(said.get("allowed_users", []), limits),
        ttl_s=ttl_s,
        priority=read_priority(said.get("priority", DEFAULT_PRIORITY), "priority", limits),
        model=model,
    )


def _base(said: Mapping[str, Any], limits: Limits) -> Base:
    given = [name for name in _TEXTS if name in said]
    if len(given) != 1:
        name = given[1] if given else "base_prompt"
        raise _invalid(name, "or base_messages is needed, and not both", "missing_field")
    (name,) = given
    value = said[name]
    if name == "base_prompt":
        if not isinstance(value, str):
            raise _invalid(name, f"is {json_type(value)}; it must be a string", "invalid_type")
        if not value:
            raise _invalid(name, "is empty")
        value = [{"role": "system", "content": value}]
    try:
        canonical(parse_call("chat", {"model": "any", "messages": value}))
    except RequestError as error:
        where = name + (error.param or "").removeprefix("messages")
        raise RequestError(f"{where}: {error.message}", code=error.code, param=where) from error
    check_size(value, name, limits)
    return tuple(value)


def _users(value: object, limits: Limits) -> tuple[str, ...]:
    if not isinstance(value, list):
        problem = f"is {json_type(value)}; it must be a list of strings"
        raise _invalid("allowed_users", problem, "invalid_type")
    if len(value) > MAX_ALLOWED_USERS:
        raise _invalid("allowed_users", f"has more than {MAX_ALLOWED_USERS} users")
    names = (read_name(user, f"allowed_users[{at}]", limits) for at, user in enumerate(value))
    return tuple(dict.fromkeys(names))


def _invalid(param: str, problem: str, code: str = "invalid_value") -> RequestError:
    return RequestError(f"{param} {problem}", code=code, param=param)


def check_size(base: Sequence[Message], param: str, limits: Limits) -> None:
    """Raises RequestError (400) for a base prompt larger than an entry may be."""
    if len(base_record(base)) > limits.max_entry_bytes:
        raise _invalid(param, f"is larger than {limits.max_entry_bytes} bytes as JSON")


def base_of(call: Call) -> Base:
    """The base prompt that a first call makes a context of: its leading system messages.

    Only they: what a user says is not shared because it came first. Raises RequestError (400).
    """
    if call.endpoint != "chat":
        raise _invalid("prompt", "makes no shared context: a chat does, or a PUT")
    canonical(call)  # for the depth, which is checked nowhere before
    roles = [message["role"] in _BASE_ROLES for message in call.messages]
    leading = roles.index(False) if False in roles else len(roles)
    if not leading:
        problem = "must begin with the system prompt that the shared context is to hold"
        raise _invalid("messages", problem)
    return tuple(call.messages[:leading])


# ---- rights


def scope_of(terms: Terms) -> Scope:
    """Whose answers and KV blocks meet: those of one edition of one context."""
    return Scope("shared", terms.tenant, context=terms.id, edition=terms.edition)


def may_use(terms: Terms, user: str | None) -> bool:
    """Whether ``user`` (None: a key of no user) may ask under the context, and read its text."""
    return not terms.allowed_users or user in terms.allowed_users


def may_see(terms: Terms, view: Principal) -> bool:
    """Whether what lies under the context is any business of ``view``; keys of no user stand for all."""
    return view.viewer is None or may_use(terms, view.viewer)


def may_manage(terms: Terms | None, view: Principal) -> bool:
    """Whether ``view`` may put, delete and count.

    Keys of no user stand for the tenant. A user may make a context and manage those of its own making.
    An admin may all; an admin's key that speaks for a user is no admin's view.
    """
    return view.viewer is None or terms is None or terms.made_by == view.viewer


def not_found(id_: str) -> RequestError:
    """404: there is none in this tenant, or it has expired."""
    return RequestError(
        f"There is no shared context {id_[:64]!r}.", code="context_not_found", status=404
    )


def forbidden() -> RequestError:
    """403, with nothing of the context in it."""
    return RequestError(
        "This user may not do that with this shared context.", code="context_forbidden", status=403
    )


# ---- the text


def fitted(call: Call, base: Base, *, stands_in: bool) -> Call:
    """The call with the base prompt at its start; with ``stands_in`` it is put there.

    Raises RequestError (400) naming the first place that differs.
    """
    if call.endpoint == "chat":
        difference = _first_difference(call.messages, base)
        if difference is None:
            return call
        if stands_in:
            return replace(call, body={**call.body, "messages": [*base, *call.messages]})
        raise _differs(*difference)
    text, prompt = _text_of(base), call.body["prompt"]
    if text is None or not isinstance(prompt, str):
        raise _invalid("prompt", "cannot be joined to this context: both must be one text")
    if prompt.startswith(text):
        return call
    if stands_in:
        return replace(call, body={**call.body, "prompt": text + prompt})
    raise _differs("prompt", _parting(prompt, text))


def _differs(where: str, character: int | None) -> RequestError:
    at = "" if character is None else f" from character {character} on"
    return _invalid(where, f"differs{at}: the call must start with the context's base prompt")


def _first_difference(
    messages: Sequence[Message], base: Sequence[Message]
) -> tuple[str, int | None] | None:
    """Field and character where ``messages`` leave ``base``; None when they start with it.

    The last message of the base may go on: it is a beginning too.
    """
    for at, wanted_ in enumerate(base):
        if at >= len(messages):
            return f"messages[{at}]", None
        there, want = _spoken(messages[at]), _spoken(wanted_)
        ours, theirs = there.pop("content", None), want.pop("content", None)
        if there != want:
            field = next(name for name in {**want, **there} if there.get(name) != want.get(name))
            return f"messages[{at}].{field}", None
        both = isinstance(ours, str) and isinstance(theirs, str)
        if ours == theirs or (both and at == len(base) - 1 and ours.startswith(theirs)):
            continue
        return f"messages[{at}].content", _parting(ours, theirs) if both else None
    return None


def _spoken(message: Message) -> dict[str, Any]:
    return {name: value for name, value in message.items() if value is not None}


def _parting(ours: str, theirs: str) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _text_of(base: Base) -> str | None:
    content = base[0].get("content") if len(base) == 1 else None
    return content if isinstance(content, str) else None


# ---- as records


def terms_record(terms: Terms) -> bytes:
    """As JSON."""
    return json.dumps({"version": _VERSION, **asdict(terms)}).encode()


def terms_from(record: bytes) -> Terms | None:
    """What :func:`terms_record` wrote; None for anything else: what is not understood is closed."""
    try:
        found = json.loads(record)
        if found.pop("version") != _VERSION or not isinstance(found["allowed_users"], list):
            return None
        return Terms(**{**found, "allowed_users": tuple(found["allowed_users"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def base_record(base: Sequence[Message]) -> bytes:
    """As JSON."""
    return unmarked(json.dumps(list(base), ensure_ascii=False, default=marked)).encode(
        "utf-8", "surrogatepass"
    )


def base_from(record: bytes) -> Base:
    """What :func:`base_record` wrote."""
    text = record.decode("utf-8", "surrogatepass")
    return tuple(json.loads(text, parse_int=integer, parse_float=decimal))
