"""The plan: where the call, the client's wishes, the principal's rights and the rules meet."""

from dataclasses import dataclass
from typing import Literal

from policies.call import Call
from policies.directive import Directive
from policies.eviction import Priority
from policies.keys import Principal, Scope
from policies.rules import Match, Rules, TierName

Lane = Literal["interactive", "batch", "warm"]


@dataclass(frozen=True, slots=True)
class Reason:
    """One decision and the rule that made it: ``("ttl_s", "86400", "key prefix faq:")``."""

    field: str
    value: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was decided about a call; both cache levels and every backend follow it.

    ``why_not`` is the miss-reason word for a plan that may not read or may not store:
    ``disabled``, ``too_short``, ``stream``, ``no_cache``, ``no_store`` or ``ttl_0``.
    ``context`` is the kind of context the client named (``code_review``); the id of a shared
    context is in ``scope.context``. ``reasons`` stand in the order of deciding.
    """

    key: bytes
    public_key: str
    scope: Scope
    model: str
    salt: str
    cache_key: str | None
    fingerprint: bytes
    canonical: bytes
    tier: TierName
    ttl_s: float
    priority: Priority
    may_read: bool
    may_store: bool
    enabled: bool
    match: Match
    max_age_s: float | None
    only_if_cached: bool
    lane: Lane
    reuse_prefix: bool
    user: str | None
    tags: tuple[str, ...]
    batch_id: str | None
    context: str | None
    preload: bool
    debug: bool
    why_not: str | None
    reasons: tuple[Reason, ...]
    unknown: tuple[str, ...]


def decide(
    call: Call,
    directive: Directive,
    principal: Principal,
    rules: Rules,
    *,
    model: str | None = None,
) -> Plan:
    raise NotImplementedError
