"""What an engine is told of a call's KV beside salt, ttl and priority; it hears of no tenant and no name.

Under a shared context two salts meet in one prompt. The base prompt is under the context's, so that it
is stored once for all who may use it. What follows is under the caller's own, a user's or the tenant's,
so that no user of a context finds, by an answer that came sooner, what another has asked.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from policies.call import Call
from policies.contexts import Base
from policies.directive import Directive
from policies.keys import Scope, kv_salt
from policies.rules import Rules, TierName

FLOORS: Final[dict[TierName, TierName | None]] = {"hot": "warm", "warm": None, "cold": None}
"""Who names the tier hot is not to wait for a disk: as long as its ttl lasts it stays in memory."""


@dataclass(frozen=True, slots=True)
class After:
    """Whose KV follows a base prompt (``salt``), and where the base ends.

    After so many ``messages``, the last of them cut to ``characters`` where it is a text; of a plain
    prompt after so many ``characters``.
    """

    salt: str
    messages: int | None
    characters: int | None


@dataclass(frozen=True, slots=True)
class KvTerms:
    """``after``: what follows a shared base. ``session``: a name of the conversation.

    ``own_salts``: others under which the same caller could have asked, named only to one that wants
    an explanation. ``quota_bytes``: how much the caller's scope may keep. ``floor``: the farthest tier
    that its KV may be dropped to.
    """

    after: After | None = None
    session: str | None = None
    own_salts: tuple[str, ...] = ()
    quota_bytes: int | None = None
    floor: TierName | None = None


def kv_terms(
    call: Call,
    directive: Directive,
    scope: Scope,
    user: str | None,
    rules: Rules,
    *,
    tier: TierName,
    base: Base | None,
) -> KvTerms:
    """The terms of a call in this scope; ``base`` is the context's text that it begins with."""
    return KvTerms(
        after=None if base is None else _after(call, base, own_scope(scope, user), rules),
        session=_session(directive, scope, rules),
        own_salts=_own_salts(scope, user, rules) if directive.debug else (),
        quota_bytes=rules.kv_quotas.get(scope.tenant),
        floor=FLOORS[tier],
    )


def own_scope(scope: Scope, user: str | None) -> Scope:
    """What a caller has for itself of what it asks under a shared context."""
    if user is None:
        return Scope("tenant", scope.tenant)
    return Scope("user", scope.tenant, user=user)


def _after(call: Call, base: Base, own: Scope, rules: Rules) -> After:
    salt, content = kv_salt(own, rules.kv_secret), base[-1].get("content")
    characters = len(content) if isinstance(content, str) else None
    return After(salt, len(base) if call.endpoint == "chat" else None, characters)


def _session(directive: Directive, scope: Scope, rules: Rules) -> str | None:
    """Hashed, since a key may say something. A context's own name is no conversation's."""
    name = directive.affinity
    if name is None or name == scope.context:
        return None
    key = blake2b(rules.kv_secret).digest()
    raw = name.encode()  # a key is printable
    return blake2b(raw, key=key, digest_size=16, person=b"kvgate session").hexdigest()


def _own_salts(scope: Scope, user: str | None, rules: Rules) -> tuple[str, ...]:
    scopes = [Scope("tenant", scope.tenant)]
    if user is not None:
        scopes.append(Scope("user", scope.tenant, user=user))
    return tuple(kv_salt(one, rules.kv_secret) for one in scopes if one != scope)
