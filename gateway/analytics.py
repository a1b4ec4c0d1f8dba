"""The conversations of each tenant, as numbers: what was asked how often, and what it saved.

A conversation is what one user of one tenant names by one ``cache_key``. It is fed by the journal
with settled calls, off the hot path, and it is bounded: each tenant has its own room, in which the
conversation not heard of for longest goes first. No text is kept: sums, lengths, recent gaps, and
the beginnings of fingerprints.

The numbers are those of this process.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Any, Final

from gateway import exact_json
from gateway.request_log import Answered, Visit
from policies.analytics import Recommendation, Tally, recommend
from policies.call import NOT_IN_THE_ANSWER, Call
from policies.conversation import Shape, shape_of
from policies.keys import fingerprint
from policies.plan import Plan
from policies.rules import Rules

MAX_PER_TENANT: Final = 1000
"""Conversations remembered of one tenant."""
MOST_SHAPE_BYTES: Final = 256 * 1024
"""Of a request: of a larger one the shape is told from the latest ``MOST_MESSAGES``."""
MOST_MESSAGES: Final = 64
_QUESTION_BYTES: Final = 8

Name = tuple[str | None, str]
"""User and cache key."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation, for whoever may see its tenant and user."""

    tenant: str
    user: str | None
    name: str
    tally: Tally

    def as_dict(self, rules: Rules) -> dict[str, Any]:
        """JSON for ``/v1/cache/conversations``. Lengths in characters, times in seconds."""
        tally, shape = self.tally, self.tally.shape
        gap_s = tally.gap_p90_s
        return {
            "id": self.name,
            "tenant": self.tenant,
            "user": self.user,
            "messages": shape.messages,
            "mean_length": round(shape.mean_characters, 1),
            "class": shape.kind,
            "reuse_potential": round(shape.reuse_potential, 4),
            "calls": tally.calls,
            "hits": tally.hits,
            "hit_rate": round(tally.hits / tally.calls, 4),
            "stored_rate": round(tally.stored_hits / tally.calls, 4),
            "levels": dict(tally.levels),
            "repeats": tally.repeats,
            "uncached": tally.uncached,
            "expired": tally.expired,
            "tokens_saved": tally.tokens_saved,
            "seconds_saved": round(tally.seconds_saved, 6),
            "first_seen": round(tally.first_s, 3),
            "last_seen": round(tally.last_s, 3),
            "gap_p90_s": None if gap_s is None else round(gap_s, 3),
            "recommendations": [shown(one) for one in recommend(tally, rules)],
        }


def shown(one: Recommendation) -> dict[str, Any]:
    """A recommendation as JSON."""
    return {
        "action": one.action,
        "value": one.value,
        "because": one.because,
        "measured": dict(one.measured),
        "span_s": one.span_s,
    }


class Conversations:
    """Every tenant's conversations. ``now`` is unix time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tenants: dict[str, OrderedDict[Name, Tally]] = {}

    def note(self, answered: Iterable[Answered]) -> None:
        """Count settled calls; those that name no conversation, or were asked by nobody, are not."""
        now = 0.0
        for visit, plan, outcome in answered:
            if plan.affinity is None or plan.preload or visit.endpoint == "embeddings":
                continue
            now = now or self._now()
            computed = outcome.forwarded is not None
            tally = self._tally(visit, plan, anew=computed, now=now)
            if computed:
                question = _question(visit, plan)
                tally.computed(plan, outcome, seconds=visit.seconds, question=question, now=now)
            else:
                tally.stored(plan, outcome, cost_s=visit.cost_s, now=now)

    def _tally(self, visit: Visit, plan: Plan, *, anew: bool, now: float) -> Tally:
        """The conversation's sums; ``anew`` looks at its shape again."""
        assert plan.affinity is not None
        held = self._tenants.get(plan.scope.tenant)
        if held is None:
            held = self._tenants[plan.scope.tenant] = OrderedDict()
        name = (plan.user, plan.affinity)
        tally = held.get(name)
        if tally is None:
            tally = held[name] = Tally(now, now, _shape(visit.call))
            if len(held) > MAX_PER_TENANT:
                held.popitem(last=False)
        else:
            held.move_to_end(name)
            if anew:
                tally.shape = _shape(visit.call)
        return tally

    def of(self, tenant: str, *, user: str | None = None) -> Sequence[Conversation]:
        """A tenant's conversations, the latest first; with ``user`` only that user's."""
        return [
            Conversation(tenant, *name, tally)
            for name, tally in reversed(self._tenants.get(tenant, {}).items())
            if user is None or name[0] == user
        ]

    def latest(self, limit: int) -> Sequence[Conversation]:
        """Of all tenants, those heard of last, the latest first."""
        each = [self._backwards(tenant) for tenant in self._tenants]
        return list(islice(merge(*each, key=lambda one: -one.tally.last_s), limit))

    def _backwards(self, tenant: str) -> Iterator[Conversation]:
        for name, tally in reversed(self._tenants[tenant].items()):
            yield Conversation(tenant, *name, tally)

    def tenants(self) -> Iterable[str]:
        """Tenants that have any."""
        return [tenant for tenant, held in self._tenants.items() if held]

    def forget(self, conversation: Conversation) -> None:
        """Drop one that :meth:`of` gave, if it is still there."""
        held = self._tenants.get(conversation.tenant, OrderedDict())
        held.pop((conversation.user, conversation.name), None)

    def __repr__(self) -> str:
        known = sum(map(len, self._tenants.values()))
        return f"<Conversations {known} of {len(self._tenants)} tenants>"


def _shape(call: Call | None) -> Shape:
    """The shape of what was sent; a completion's prompt counts as one message."""
    if call is None:
        return shape_of(())
    messages = call.messages
    if call.endpoint == "completions":
        prompt = call.body.get("prompt")
        # Token ids hold no text, and looking for it in a million of them holds up the loop.
        messages = [{"role": "user", "content": prompt if isinstance(prompt, str) else None}]
    if call.size_bytes <= MOST_SHAPE_BYTES:
        return shape_of(messages)
    latest = [one for one in messages[-MOST_MESSAGES:] if isinstance(one.get("content"), str)]
    return replace(shape_of(latest), messages=len(messages))


def _question(visit: Visit, plan: Plan) -> bytes | None:
    """The beginning of the fingerprint; for what did not use the response store, of its like.

    That has no canonical form, and making one here would hold up the loop for a long request.
    """
    if plan.enabled:
        return plan.fingerprint[:_QUESTION_BYTES]
    if visit.call is None:
        return None
    if visit.call.size_bytes > MOST_SHAPE_BYTES:
        return None
    body = {key: value for key, value in visit.call.body.items() if key not in NOT_IN_THE_ANSWER}
    try:
        like = exact_json.dumps(body, sort_keys=True)
    except exact_json.JSONEncodeError:  # nested too deep
        return None
    return fingerprint(like)[:_QUESTION_BYTES]
