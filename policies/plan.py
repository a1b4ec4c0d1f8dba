"""The plan: where the call, the client's wishes, the principal's rights and the rules meet."""

from typing import Literal, NamedTuple

from policies.call import Call, RequestError, canonical
from policies.contexts import Base, Terms, scope_of
from policies.directive import Directive
from policies.eviction import Priority
from policies.keys import Principal, Scope, entry_key, fingerprint, kv_salt, public_key, scope_key
from policies.kv import KvTerms, kv_terms
from policies.record import record
from policies.retention import Reason, agreed, bids_of
from policies.rules import Match, Rules, TierName

Lane = Literal["interactive", "batch", "warm"]


@record
class Plan:
    """What was decided about a call; both cache levels and every backend follow it.

    ``why_not`` is the miss-reason word for a plan that may not read or may not store:
    ``disabled``, ``too_short``, ``stateful``, ``stream``, ``no_cache``, ``no_store``, ``ttl_0``.
    ``affinity`` names prompts that begin alike, and no answer: ``cache_key``, else OpenAI's
    ``prompt_cache_key``. ``context`` is the kind of context the client named (``code_review``); the id
    of a shared context is in ``scope.context``. ``reasons`` stand in the order of deciding.
    ``scope_key`` is what the scope's entry keys are made with, ``salt`` that of its KV, and ``kv`` what
    else the engine is told of it.
    """

    key: bytes
    public_key: str
    scope: Scope
    scope_key: bytes
    model: str
    salt: str
    kv: KvTerms
    cache_key: str | None
    affinity: str | None
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
    context: Terms | None = None,
    base: Base | None = None,
    without: str | None = None,
) -> Plan:
    """Decide everything about a call that can be decided before looking anything up.

    ``model`` is the served model that the call's name stands for, if not that name itself.
    ``context`` is the shared context it is asked under, looked up and its rights judged before, and
    ``base`` its text, which the call begins with.
    ``without`` says why it has none though it asked for one: then nothing of it is cached.

    Raises RequestError: 403 ``user_mismatch``; 400 ``invalid_cache_directive`` for wishes that
    need a word the client did not give; 400 for a body nested too deep.
    """
    reasons: list[Reason] = []
    model = call.model if model is None else model
    user = believed_user(directive, principal)
    enabled, why_not = _enabled(call, directive, rules, reasons, without)
    scope = _scope(directive, principal, user, rules, reasons, context=context, without=without)
    matched = _match(directive, scope, rules, reasons)
    retention = agreed(bids_of(call, directive, rules, context), reasons)
    rights = _rights(call, directive, retention.ttl_s, reasons, enabled=enabled, why_not=why_not)
    # What touches no entry needs no key: the canonical form is half the cost of a decision.
    form = canonical(call, context_aware=directive.context_aware is not False) if enabled else b""
    print_ = fingerprint(form)
    within = scope_key(scope, rules.kv_secret)
    print_for_key = None if matched == "key" else print_
    key = _key(call, directive, scope, model, print_for_key, within=within)
    _note_the_rest(directive, reasons)
    return Plan(
        key=key,
        public_key=public_key(key),
        scope=scope,
        scope_key=within,
        model=model,
        salt=kv_salt(scope, rules.kv_secret),
        kv=kv_terms(call, directive, scope, user, rules, tier=retention.tier, base=base),
        cache_key=directive.cache_key,
        affinity=directive.affinity,
        fingerprint=print_,
        canonical=form,
        tier=retention.tier,
        ttl_s=retention.ttl_s,
        priority=retention.priority,
        may_read=rights.may_read,
        may_store=rights.may_store,
        enabled=enabled,
        match=matched,
        max_age_s=directive.max_age_s,
        only_if_cached=directive.only_if_cached,
        lane=_lane(directive, reasons),
        # The prefix level is lossless and always on, but no-store covers every part of a request.
        reuse_prefix=not directive.no_store,
        user=user,
        tags=directive.tags,
        batch_id=directive.batch_id,
        context=directive.context,
        preload=directive.preload is True,
        debug=directive.debug,
        why_not=rights.why_not,
        reasons=tuple(reasons),
        unknown=directive.unknown,
    )


def _key(
    call: Call,
    directive: Directive,
    scope: Scope,
    model: str,
    print_: bytes | None,
    *,
    within: bytes,
) -> bytes:
    # without the fingerprint, the endpoint alone keeps answers of different shapes apart
    endpoint = call.endpoint if print_ is None else None
    # a context's own name names nothing more: calls that bring its text meet those that leave it
    name = None if directive.cache_key == scope.context else directive.cache_key
    return entry_key(within, model, name, print_, endpoint=endpoint)


def believed_user(directive: Directive, principal: Principal) -> str | None:
    """Whom the call speaks for. Raises RequestError 403 ``user_mismatch``."""
    if directive.user is None or directive.user == principal.user:
        return principal.user
    if principal.trusted:
        return directive.user
    raise RequestError(
        "this API key may not speak for another user",
        code="user_mismatch",
        param=_param(directive, "user"),
        status=403,
    )


def _enabled(
    call: Call, directive: Directive, rules: Rules, reasons: list[Reason], without: str | None
) -> tuple[bool, str | None]:
    origins = directive.origins
    if without is not None:
        enabled, because = False, without
    elif directive.enabled is not None:
        enabled, because = directive.enabled, origins["enabled"]
    elif directive.preload or directive.only_if_cached:
        enabled, because = True, origins["preload" if directive.preload else "only_if_cached"]
    else:
        enabled, because = rules.enabled_default, "config defaults.enabled"
    why_not = None if enabled else "disabled"
    if enabled and call.stateful:
        enabled, why_not, because = False, "stateful", "the backend remembers it"
    if enabled and directive.strategy == "adaptive":
        there, needed = len(call.messages), rules.adaptive_min_messages
        enabled = there >= needed
        why_not = None if enabled else "too_short"
        because = f"strategy adaptive: {there} messages, from {needed} on"
    reasons.append(Reason("enabled", _word(enabled), because))
    return enabled, why_not


def _scope(
    directive: Directive,
    principal: Principal,
    user: str | None,
    rules: Rules,
    reasons: list[Reason],
    *,
    context: Terms | None,
    without: str | None,
) -> Scope:
    tenant = principal.tenant
    if context is not None:
        assert context.tenant == tenant
        reasons.append(Reason("scope", "shared", f"shared context {context.id}"))
        return scope_of(context)
    kind = directive.scope or rules.scope_default
    because = directive.origins.get("scope", "config defaults.scope")
    if kind == "shared" or without is not None:
        # It was for a circle that is not there: nobody else is let in instead.
        kind, because = "tenant" if user is None else "user", without or "no shared context"
    if directive.share:
        if directive.batch_id is None:
            reasons.append(Reason("share", "ignored", "share needs a batch_id"))
        elif kind == "user":
            because = directive.origins["share"]
            reasons.append(Reason("scope", "batch", because))
            return Scope("batch", tenant, batch=directive.batch_id)
        else:
            reasons.append(Reason("share", "ignored", f"scope {kind} reaches other users already"))
    reasons.append(Reason("scope", kind, because))
    if kind == "tenant":
        return Scope("tenant", tenant)
    if user is None:
        raise RequestError(
            "scope user needs a user: an API key of one, or X-Cache-User from a trusted key",
            code="invalid_cache_directive",
            param=_param(directive, "scope"),
        )
    return Scope("user", tenant, user=user)


def _match(directive: Directive, scope: Scope, rules: Rules, reasons: list[Reason]) -> Match:
    """``key`` only for a key that the caller gave as such: it vouches that all its uses agree."""
    wanted = directive.match or rules.match_default
    because = directive.origins.get("match", "config defaults.match")
    if wanted == "key":
        if directive.cache_key is not None and directive.cache_key == scope.context:
            wanted, because = "exact", "the key names a shared context, not an answer"
        elif directive.cache_key is not None:
            pass
        elif directive.prompt_cache_key is not None:
            wanted, because = "exact", "prompt_cache_key names a prompt prefix, not an answer"
        elif directive.match is None:
            wanted, because = "exact", "match key needs a cache_key"
        else:
            raise RequestError(
                "match key needs a cache_key",
                code="invalid_cache_directive",
                param=_param(directive, "match"),
            )
    elif wanted == "semantic":
        wanted, because = "exact", "semantic matching is not available"
    reasons.append(Reason("match", wanted, because))
    return wanted


class _Rights(NamedTuple):
    may_read: bool
    may_store: bool
    why_not: str | None


def _rights(
    call: Call,
    directive: Directive,
    ttl_s: float,
    reasons: list[Reason],
    *,
    enabled: bool,
    why_not: str | None,
) -> _Rights:
    """May this call be answered from the cache, may its answer be kept, and if not, why."""
    if not enabled:
        return _Rights(False, False, why_not)
    origins = directive.origins
    if call.stream and directive.stream is False:
        reasons.append(Reason("read", "false", origins["stream"]))
        reasons.append(Reason("store", "false", origins["stream"]))
        return _Rights(False, False, "stream")
    may_read = may_store = True
    if directive.reuse is False or directive.no_cache:
        may_read, why_not = False, "no_cache"
        because = origins["reuse"] if directive.reuse is False else origins["no_cache"]
        reasons.append(Reason("read", "false", because))
    if directive.no_store:
        may_store, why_not = False, why_not or "no_store"
        reasons.append(Reason("store", "false", origins["no_store"]))
    elif ttl_s == 0:
        may_store, why_not = False, why_not or "ttl_0"
        reasons.append(Reason("store", "false", "ttl 0"))
    return _Rights(may_read, may_store, why_not)


def _lane(directive: Directive, reasons: list[Reason]) -> Lane:
    """Batches yield to people, warming to both. Who names a batch means one, unless it says no."""
    lane: Lane
    if directive.preload:
        lane, said = "warm", "preload"
    elif directive.batch_mode:
        lane, said = "batch", "batch_mode"
    elif directive.batch_mode is None and directive.batch_id is not None:
        lane, said = "batch", "batch_id"
    else:
        return "interactive"
    reasons.append(Reason("lane", lane, directive.origins[said]))
    return lane


def _note_the_rest(directive: Directive, reasons: list[Reason]) -> None:
    """Say what else was heard, and honestly what nothing is done about yet."""
    origins = directive.origins
    if directive.cache_key is not None:
        reasons.append(Reason("cache_key", "given", origins["cache_key"]))
    elif directive.prompt_cache_key is not None:
        reasons.append(Reason("affinity", "given", origins["prompt_cache_key"]))
    if directive.user is not None:
        reasons.append(Reason("user", "given", origins["user"]))
    if directive.context_aware is False:
        reasons.append(Reason("context_aware", "false", origins["context_aware"]))
    if directive.max_age_s is not None:
        reasons.append(Reason("max_age_s", f"{directive.max_age_s:.15g}", origins["max_age_s"]))


def _word(value: bool) -> str:
    return "true" if value else "false"


def _param(directive: Directive, field: str) -> str:
    """The body field or header that a field came from: the last word of its origin."""
    return directive.origins.get(field, field).rpartition(" ")[2]
