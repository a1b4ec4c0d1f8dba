"""Why nothing stored could answer, as the outcome so far of a call that needs a backend.

It asks the gateway's short memory (:mod:`gateway.recall`) and, for a debug answer, whether the same
principal's other scope has it. Nothing is counted here: who only wants to know may ask as well.
"""

from gateway.outcomes import forwarded
from gateway.recall import Recall
from gateway.store.base import Selector, StoreError
from gateway.store.tiers import Tiers
from policies.explain import debug_line, difference, miss_reason
from policies.keys import Scope, entry_key, scope_key
from policies.outcome import Outcome
from policies.plan import Plan


class Misses:
    """Explains misses."""

    def __init__(self, store: Tiers, recall: Recall, secret: bytes) -> None:
        self._secret = secret
        self._store = store
        self._recall = recall

    async def outcome(self, plan: Plan, *, expired: bool, store_failed: bool) -> Outcome:
        """The outcome so far of a call that needs a backend, and why it does."""
        nearest: bytes | None = None
        if plan.enabled:
            nearest = self._recall.nearest(plan) if plan.debug else self._recall.any_other(plan)
        reason = miss_reason(
            plan,
            departed="expired" if expired else self._recall.departure(plan.key),
            nearest=nearest,
            other_scope=plan.debug and await self._in_other_scope(plan),
        )
        explained = plan.debug and reason == "fingerprint"
        return Outcome(
            key=plan.public_key,
            tier=plan.tier,
            stored=plan.may_store,
            ttl_left_s=plan.ttl_s if plan.may_store else None,
            forwarded=forwarded(plan, expired=expired),
            miss_reason=reason,
            difference=difference(nearest, plan.canonical) if explained and nearest else None,
            store_error=store_failed,
            detail="store-error" if store_failed else None,
            debug=debug_line(plan) if plan.debug else None,
        )

    async def _in_other_scope(self, plan: Plan) -> bool:
        """Whether this principal's other scope holds the answer; never anybody else's."""
        twins = [Scope(kind="tenant", tenant=plan.scope.tenant)]
        if plan.user is not None:
            twins.append(Scope(kind="user", tenant=plan.scope.tenant, user=plan.user))
        for scope in twins:
            if scope != plan.scope and plan.match != "key":
                within = scope_key(scope, self._secret)
                key = entry_key(within, plan.model, plan.cache_key, plan.fingerprint)
                try:
                    if await self._store.scan(Selector(None, key=key), after=None, limit=1):
                        return True
                except StoreError:
                    return False
        return False
