"""Calls of the journal as the plans, endings and outcomes that the deciders know. No IO."""

from collections.abc import Sequence

from gateway.trace import Event, Recorded, StoredLine
from gateway.whatif_wishes import Decided
from policies.keys import Scope
from policies.kv import KvTerms
from policies.outcome import Completed, Failed, Outcome, Usage
from policies.plan import Plan


def linked(events: Sequence[Event]) -> dict[int, tuple[Recorded, StoredLine]]:
    """Which call had the answer of each ``stored`` line computed, by the identity of the call.

    Of the calls for the key that were computed by then, or answered with what was stale and renewed
    behind their backs, the latest that has none yet.
    """
    waiting: dict[str, list[Recorded]] = {}
    found: dict[int, tuple[Recorded, StoredLine]] = {}
    for event in events:
        if isinstance(event, Recorded):
            computes = event.stale if event.hit and not event.computed else not event.collapsed
            if event.key is not None and event.store and computes:
                waiting.setdefault(event.key, []).append(event)
        elif isinstance(event, StoredLine) and (calls := waiting.get(event.key)):
            call = calls.pop()
            found[id(call)] = (call, event)
    return found


def plan_of(call: Recorded, wish: Decided) -> Plan:
    """The call's plan, as far as it decides about stored answers."""
    assert call.key is not None
    return Plan(
        key=bytes.fromhex(call.key),
        public_key=call.key,
        scope=Scope("tenant", call.tenant),
        scope_key=b"",
        model=call.model,
        salt="",
        kv=KvTerms(),
        cache_key=None,
        affinity=None,
        fingerprint=b"",
        canonical=b"",
        tier=wish.tier,
        ttl_s=wish.ttl_s,
        priority=wish.priority,
        may_read=call.read,
        may_store=call.store and wish.ttl_s > 0,
        enabled=True,
        match=call.match,
        max_age_s=call.max_age_s,
        only_if_cached=False,
        lane=call.lane,
        reuse_prefix=True,
        user=None,
        tags=(),
        batch_id=None,
        context=None,
        preload=call.preload,
        debug=False,
        why_not=None if call.store and wish.ttl_s > 0 else "ttl_0",
        reasons=(),
        unknown=(),
    )


def as_recorded(call: Recorded, *, collapsed: bool | None = None) -> Outcome:
    along = call.collapsed if collapsed is None else collapsed
    saved = call.tokens_saved
    if along != call.collapsed:
        saved = call.prompt_tokens + call.completion_tokens
    return Outcome(
        level=call.level,
        hit=call.hit,
        collapsed=along,
        stale=call.stale,
        forwarded=call.forwarded,
        key=call.key or "",
        tier=call.tier or call.plan_tier,
        tokens_saved=saved,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        hit_tokens=call.hit_tokens,
        miss_tokens=call.miss_tokens,
        miss_reason=call.reason,
        status=call.status,
    )


def computed_now(call: Recorded, plan: Plan, *, reused: int, collapsed: bool) -> Outcome:
    return Outcome(
        level="prefix" if reused else "none",
        hit=reused > 0,
        collapsed=collapsed,
        forwarded="uri-miss",
        key=plan.public_key,
        tier=plan.tier,
        tokens_saved=call.prompt_tokens + call.completion_tokens if collapsed else reused,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        hit_tokens=reused,
        miss_tokens=call.prompt_tokens - reused,
        miss_reason="evicted",
    )


def ending(facts: Recorded | StoredLine) -> Completed | Failed:
    if facts.status != 200:
        return Failed(status=facts.status, code="", message="", fault="backend")
    return Completed(Usage(facts.prompt_tokens, facts.completion_tokens), facts.cost_s)
