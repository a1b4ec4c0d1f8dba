"""What became of a call, in the words of an ``Outcome``; no IO.

The pipeline says what happened; here it becomes the record that headers, log and metrics are made
of, and what is remembered about a new entry.
"""

from collections.abc import Sequence
from dataclasses import replace

from gateway.backends.base import Computes
from gateway.chunks import Opening
from gateway.store.base import Entry
from policies.admission import Finish, Store
from policies.call import Call
from policies.explain import debug_line
from policies.freshness import EntryMeta, Fresh, Stale
from policies.outcome import Completed, Ending, Failed, Forwarded, Outcome, Usage
from policies.plan import Plan
from policies.rules import Rules


def with_opening(
    missed: Outcome, opening: Opening, backend: Computes, *, collapsed: bool
) -> Outcome:
    """The outcome with what the backend said at its first piece about reuse."""
    hit_tokens, miss_tokens = opening.hit_tokens or 0, opening.miss_tokens or 0
    return replace(
        missed,
        level="prefix" if hit_tokens else "none",
        hit=hit_tokens > 0,
        collapsed=collapsed,
        stored=missed.stored and opening.fallback is None,
        ttl_left_s=missed.ttl_left_s if opening.fallback is None else None,
        detail=missed.detail if opening.fallback is None else "fallback",
        fallback=opening.fallback,
        backend=opening.backend or backend.name,
        tokens_saved=hit_tokens,
        prompt_tokens=hit_tokens + miss_tokens,
        hit_tokens=hit_tokens,
        miss_tokens=miss_tokens,
    )


def with_usage(outcome: Outcome, usage: Usage) -> Outcome:
    """The outcome with the token counts of a computed answer."""
    reused = usage.hit_tokens > 0
    whole = usage.prompt_tokens + usage.completion_tokens
    return replace(
        outcome,
        level="prefix" if reused else "none",
        hit=reused,
        tokens_saved=whole if outcome.collapsed else usage.hit_tokens,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        hit_tokens=usage.hit_tokens,
        miss_tokens=usage.miss_tokens,
    )


def as_kept(outcome: Outcome, finish: Finish, size_bytes: int, rules: Rules) -> Outcome:
    """The outcome with what is known of the answer's place in the store once it is whole."""
    ttl_s = outcome.ttl_left_s
    if finish == "filtered" and ttl_s is not None:
        ttl_s = min(ttl_s, rules.negative_ttl_s)
    lasts = ttl_s is None or ttl_s > 0
    if finish != "unfinished" and size_bytes <= rules.limits.max_entry_bytes and lasts:
        return replace(outcome, ttl_left_s=ttl_s)
    return replace(outcome, stored=False, ttl_left_s=None)


def of_several(plan: Plan, outcomes: Sequence[tuple[Outcome, int]]) -> Outcome:
    """One outcome for inputs that were answered each on its own, and how often each was asked for.

    A hit as soon as one input came from the store. That an input stands twice and is computed once
    is the client's own saving, not ours.
    """
    kept = [outcome for outcome, _ in outcomes if outcome.forwarded is None]
    asked = [outcome for outcome, _ in outcomes if outcome.forwarded is not None]
    along = [outcome for outcome in asked if outcome.collapsed]
    first = (asked or kept)[0]
    reused = sum(outcome.hit_tokens for outcome in asked)
    left_s = [outcome.ttl_left_s for outcome, _ in outcomes if outcome.ttl_left_s is not None]
    return replace(
        first,
        level="response" if kept else "prefix" if reused else "none",
        hit=bool(kept or reused),
        collapsed=bool(along) and not kept,
        stale=any(outcome.stale for outcome in kept),
        forwarded="partial" if asked and (kept or 0 < len(along) < len(asked)) else first.forwarded,
        key=plan.public_key,
        age_s=max((outcome.age_s or 0.0 for outcome in kept), default=None),
        ttl_left_s=min(left_s, default=None),
        tokens_saved=sum(_saved(outcome, times) for outcome, times in outcomes),
        prompt_tokens=sum(outcome.prompt_tokens * times for outcome, times in outcomes),
        hit_tokens=reused,
        miss_tokens=sum(outcome.miss_tokens for outcome in asked if not outcome.collapsed),
        store_error=any(outcome.store_error for outcome in asked),
        detail=next((outcome.detail for outcome in asked if outcome.detail), None),
        debug=debug_line(plan) if plan.debug else None,
    )


def _saved(outcome: Outcome, times: int) -> int:
    spared = outcome.forwarded is None or outcome.collapsed
    return outcome.tokens_saved * times if spared else outcome.tokens_saved


def from_store(entry: Entry, plan: Plan, verdict: Fresh | Stale) -> Outcome:
    """Answered with a stored entry, which is a refusal or an answer."""
    meta = entry.meta
    negative = meta.status != 200
    return Outcome(
        level="negative" if negative else "response",
        hit=True,
        stale=isinstance(verdict, Stale),
        key=plan.public_key,
        tier=meta.tier,
        age_s=verdict.age_s,
        ttl_left_s=verdict.ttl_left_s,
        tokens_saved=meta.prompt_tokens + meta.completion_tokens,
        prompt_tokens=meta.prompt_tokens,
        completion_tokens=meta.completion_tokens,
        status=meta.status,
        debug=debug_line(plan) if plan.debug else None,
    )


def forwarded(plan: Plan, *, expired: bool) -> Forwarded:
    """Why a backend is asked, in the words of RFC 9211."""
    if not plan.enabled:
        return "bypass"
    if not plan.may_read:
        return "request"
    return "stale" if expired else "uri-miss"


def meta_of(
    call: Call,
    plan: Plan,
    ending: Ending,
    kept: Store,
    rules: Rules,
    *,
    now: float,
    size_bytes: int,
) -> EntryMeta:
    """What is known about an entry that is kept as ``kept`` says."""
    tier = rules.tiers[plan.tier]
    completed = ending if isinstance(ending, Completed) else Completed(Usage(), 0.0)
    return EntryMeta(
        key=plan.key,
        scope=plan.scope,
        model=plan.model,
        endpoint=call.endpoint,
        tier=plan.tier,
        priority=plan.priority,
        stored_at=now,
        ttl_s=kept.ttl_s,
        stale_while_revalidate_s=0.0 if kept.negative else tier.stale_while_revalidate_s,
        stale_if_error_s=0.0 if kept.negative else tier.stale_if_error_s,
        cost_s=completed.duration_s,
        size_bytes=size_bytes,
        prompt_tokens=completed.usage.prompt_tokens,
        completion_tokens=completed.usage.completion_tokens,
        cache_key=plan.cache_key,
        tags=plan.tags,
        batch_id=plan.batch_id,
        user=plan.user,
        context=plan.context,
        status=ending.status if isinstance(ending, Failed) else 200,
    )
