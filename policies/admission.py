"""Is a new answer kept, and for how long?"""

from dataclasses import dataclass
from typing import assert_never

from policies.freshness import jittered
from policies.outcome import Abandoned, Completed, Elsewhere, Ending, Failed
from policies.plan import Plan
from policies.rules import Rules

# A refusal that the same request will meet again. 401, 403, 408, 409, 429 and 5xx may pass.
_DETERMINISTIC = frozenset({400, 404, 422})


@dataclass(frozen=True, slots=True)
class Store:
    """Keep it for ``ttl_s`` (jittered). ``negative``: what is kept is a refusal, not an answer."""

    ttl_s: float
    negative: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not keep it. ``why`` is one word for log and metrics."""

    why: str


def admit(
    plan: Plan, ending: Ending, *, size_bytes: int, rules: Rules, draw: float
) -> Store | Refuse:
    """Keep what ended well, and for a short while what will be refused again.

    ``draw`` in ``[0, 1)`` jitters the ttl. Why not: a word of ``Plan.why_not``, ``too_large``,
    ``error`` or ``unfinished``.
    """
    if not plan.may_store:
        return Refuse(_why_not_stored(plan))
    match ending:
        case Completed():
            ttl_s, negative = plan.ttl_s, False
        case Failed():
            if not _is_remembered(plan, ending, rules):
                return Refuse("error")
            ttl_s, negative = rules.negative_ttl_s, True
        case Abandoned() | Elsewhere():
            return Refuse("unfinished")
        case _:
            assert_never(ending)
    if size_bytes > rules.limits.max_entry_bytes:
        return Refuse("too_large")
    return Store(jittered(ttl_s, rules.jitter, draw), negative)


def _is_remembered(plan: Plan, ending: Failed, rules: Rules) -> bool:
    """A refusal belongs to one fingerprint, and must not take the place of a good answer."""
    return (
        ending.status in _DETERMINISTIC
        and ending.fault != "ours"
        and rules.negative_ttl_s > 0
        and plan.match != "key"
        and plan.may_read
    )


def _why_not_stored(plan: Plan) -> str:
    # why_not tells why reading was refused where both were; the two storing words remain
    if plan.why_not != "no_cache" and plan.why_not is not None:
        return plan.why_not
    return "ttl_0" if plan.ttl_s == 0 else "no_store"
