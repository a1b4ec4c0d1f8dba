"""What would happen to a call, and why, without sending it.

The same questions as on the way of a call, asked by the same code, with nothing done about the
answers: the plan is :func:`policies.plan.decide`'s, the verdict :func:`policies.freshness.judge`'s,
the reason of a miss that of :mod:`gateway.misses`. No counter moves, no entry is counted as read, no
context is made, no backend computes; the engine alone is asked what it knows of the prompt.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from gateway import exact_json
from gateway.backends.base import Foresees, KnownPrefix, LooksUp, Place
from gateway.contexts import Contexts
from gateway.errors import GatewayError
from gateway.flights import Flights
from gateway.misses import Misses
from gateway.off_loop import off_loop
from gateway.recall import Recall
from gateway.router import Router, Target
from gateway.store.base import Selector, StoreError
from gateway.store.tiers import Tiers
from policies.call import Call
from policies.directive import Directive
from policies.embeddings import for_list, is_list, part_of, places_of
from policies.freshness import EntryMeta, Expired, Fresh, Stale, judge
from policies.keys import Principal
from policies.outcome import Outcome
from policies.plan import Plan
from policies.rules import Rules

KV_PATIENCE_S: Final = 5.0
"""How long an engine may take to say what it knows."""
MOST_INPUTS: Final = 512
"""Of a list that are looked up; the rest is not explained."""

Verdict = Literal["hit", "partial", "stale", "negative", "joins", "computes", "refused"]
State = Literal["fresh", "stale", "expired", "absent", "not_read", "store_error"]


@dataclass(frozen=True, slots=True)
class Found:
    """What the response level has for a plan. ``missed`` says why it is not served."""

    state: State
    meta: EntryMeta | None = None
    age_s: float | None = None
    ttl_left_s: float | None = None
    served: bool = False
    missed: Outcome | None = None


class Explainer:
    """Foresees calls. ``now`` is unix time, in seconds."""

    def __init__(
        self,
        *,
        router: Router,
        contexts: Contexts,
        store: Tiers,
        recall: Recall,
        flights: Flights,
        rules: Rules,
        now: Callable[[], float],
    ) -> None:
        self._router = router
        self._contexts = contexts
        self._store = store
        self._recall = recall
        self._misses = Misses(store, recall, rules.kv_secret)
        self._flights = flights
        self._rules = rules
        self._now = now

    async def explain(
        self, call: Call, directive: Directive, principal: Principal
    ) -> dict[str, Any]:
        """Everything as JSON. Raises: RequestError, ClientFault, StoreError, as the call itself."""
        target = self._router.target(call.model, named=call.names_model)
        directive = replace(directive, debug=True)  # so that a miss is told with all that is known
        fit = await self._contexts.foresee(call, directive, principal)
        plan = await off_loop(
            call.size_bytes, fit.plan, directive, principal, self._rules, target.model
        )
        told: dict[str, Any] = {
            "object": "cache.explanation",
            "endpoint": call.endpoint,
            "asked_model": call.model,
            "model": target.model,
            "stream": call.stream,
            "plan": shown_plan(plan),
        }
        found, in_the_air = await self.find(plan), self._flies(plan)
        verdict = _verdict(plan, found, in_the_air=in_the_air)
        if plan.enabled and not call.stream and is_list(call) and not found.served:
            told["inputs"] = inputs = await self._inputs(fit.call, for_list(plan))
            served = sum(inputs["states"].get(state, 0) for state in ("fresh", "stale"))
            if served and verdict != "refused":
                verdict = "hit" if served == inputs["different"] else "partial"
        known = await self._known(fit.call, plan, target)
        places = _places(fit.call, plan, target)
        return {
            **told,
            "verdict": verdict,
            "response": _shown(found, in_the_air=in_the_air),
            "kv": None if known is None else asdict(known),
            "backends": [asdict(place) for place in places],
        }

    async def find(self, plan: Plan) -> Found:
        """What the response level has, looked at and not counted as read."""
        if not plan.may_read:
            missed = await self._misses.outcome(plan, expired=False, store_failed=False)
            return Found("not_read", missed=missed)
        try:
            metas = await self._store.scan(Selector(None, key=plan.key), after=None, limit=1)
        except StoreError:
            missed = await self._misses.outcome(plan, expired=False, store_failed=True)
            return Found("store_error", missed=missed)
        if not metas:
            missed = await self._misses.outcome(plan, expired=False, store_failed=False)
            return Found("absent", missed=missed)
        meta = metas[0]
        verdict = judge(meta, plan, self._now(), 0.0, beta=self._rules.refresh_beta)
        match verdict:
            case Fresh():
                return Found("fresh", meta, verdict.age_s, verdict.ttl_left_s, served=True)
            case Stale(usable="revalidate"):
                return Found("stale", meta, verdict.age_s, verdict.ttl_left_s, served=True)
            case Stale() | Expired():
                missed = await self._misses.outcome(plan, expired=True, store_failed=False)
                left_s = verdict.ttl_left_s if isinstance(verdict, Stale) else None
                state: State = "stale" if isinstance(verdict, Stale) else "expired"
                return Found(state, meta, verdict.age_s, left_s, missed=missed)

    async def entry(self, meta: EntryMeta, *, kv: bool) -> dict[str, Any]:
        """What this process knows of a stored entry besides: hits, the plan that made it, its KV.

        ``None`` where another process stored it, or it was long ago. ``kv``: ask the engine, which
        is possible while the request is remembered.
        """
        note = self._recall.note(meta.key)
        known = None
        if kv and note is not None and (call := self._asked(meta)) is not None:
            with suppress(GatewayError):
                known = await self._known(call, note.plan, self._router.target(meta.model))
        return {
            "hits": None if note is None else note.hits,
            "made_by": None if note is None else shown_plan(note.plan),
            "kv": None if known is None else asdict(known),
        }

    def _asked(self, meta: EntryMeta) -> Call | None:
        """The request that an entry answers, as far as it makes the prompt, if it is remembered."""
        form = self._recall.canonical(meta.key)
        if form is None:
            return None
        endpoint, body, *partly = exact_json.loads(form)
        if partly:  # the last question alone, which is no prompt
            return None
        return Call(endpoint, meta.model, body, stream=False, include_usage=False)

    async def _inputs(self, call: Call, plan: Plan) -> dict[str, Any]:
        """How many different inputs of a list are there, by state; why not, is not said of each."""
        plan = replace(plan, debug=False)  # comparing each with what is remembered would take long
        inputs = places_of(call)
        states: Counter[str] = Counter()
        for item in inputs[:MOST_INPUTS]:
            found = await self.find(part_of(call, plan, *item).plan)
            # what is stale may be there and yet not be served
            states[found.state if found.served or found.state != "stale" else "expired"] += 1
        return {"different": len(inputs), "states": dict(states)}

    def _flies(self, plan: Plan) -> bool:
        shared = plan.may_read and plan.may_store
        return shared and self._flights.find(plan.key) is not None

    async def _known(self, call: Call, plan: Plan, target: Target) -> KnownPrefix | None:
        """What the engine that would be asked knows of the prompt; None: nobody can say."""
        if not isinstance(target.backend, LooksUp):
            return None
        with suppress(GatewayError, TimeoutError):
            async with asyncio.timeout(KV_PATIENCE_S):
                return await target.backend.lookup_kv(call, plan)
        return None


def shown_plan(plan: Plan) -> dict[str, Any]:
    """A plan as JSON, with its reasons in the order of deciding; no text of the call."""
    return {
        "key": plan.public_key,
        "scope": plan.scope.kind,
        "context": plan.scope.context,
        "tier": plan.tier,
        "ttl_s": plan.ttl_s,
        "priority": plan.priority,
        "enabled": plan.enabled,
        "read": plan.may_read,
        "store": plan.may_store,
        "match": plan.match,
        "lane": plan.lane,
        "reuse_prefix": plan.reuse_prefix,
        "why_not": plan.why_not,
        "reasons": [reason._asdict() for reason in plan.reasons],
        "unknown": list(plan.unknown),
    }


def _places(call: Call, plan: Plan, target: Target) -> list[Place]:
    if isinstance(target.backend, Foresees):
        return list(target.backend.foreseen(call, plan))
    return [Place(target.backend.name, target.model, "up")]


def _verdict(plan: Plan, found: Found, *, in_the_air: bool) -> Verdict:
    if found.served and found.meta is not None:
        if found.meta.status != 200:
            return "negative"
        return "hit" if found.state == "fresh" else "stale"
    if plan.only_if_cached:
        return "refused"
    return "joins" if in_the_air else "computes"


def _shown(found: Found, *, in_the_air: bool) -> dict[str, Any]:
    missed = found.missed
    difference = missed.difference if missed is not None else None
    return {
        "state": found.state,
        "served": found.served,
        "tier": found.meta.tier if found.meta is not None else None,
        "status": found.meta.status if found.meta is not None else None,
        "age_s": None if found.age_s is None else round(found.age_s, 3),
        "ttl_left_s": None if found.ttl_left_s is None else round(found.ttl_left_s, 3),
        "tokens": 0 if found.meta is None else _tokens(found.meta),
        "miss_reason": missed.miss_reason if missed is not None else None,
        "difference": difference.as_dict() if difference is not None else None,
        "in_flight": in_the_air,
    }


def _tokens(meta: EntryMeta) -> int:
    return meta.prompt_tokens + meta.completion_tokens
