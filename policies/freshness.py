"""How long an answer is good: jitter when it is stored, a verdict when it is found."""

from dataclasses import dataclass
from math import log1p
from typing import Literal

from policies.eviction import Priority
from policies.keys import Scope
from policies.plan import Plan
from policies.record import record
from policies.rules import TierName


@record
class EntryMeta:
    """What is known about a stored answer without reading it.

    ``stored_at`` is unix time in seconds; ``ttl_s`` is jittered already. ``cost_s`` is what the
    answer took to compute. ``status`` is 200 for an answer, else that of a remembered refusal.
    """

    key: bytes
    scope: Scope
    model: str
    endpoint: str
    tier: TierName
    priority: Priority
    stored_at: float
    ttl_s: float
    stale_while_revalidate_s: float
    stale_if_error_s: float
    cost_s: float
    size_bytes: int
    prompt_tokens: int
    completion_tokens: int
    cache_key: str | None = None
    tags: tuple[str, ...] = ()
    batch_id: str | None = None
    user: str | None = None
    context: str | None = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Fresh:
    """May be served. ``refresh_ahead``: this reader is the one who should renew it meanwhile."""

    age_s: float
    ttl_left_s: float
    refresh_ahead: bool


@dataclass(frozen=True, slots=True)
class Stale:
    """Past its ttl (``ttl_left_s`` <= 0), yet usable while it is renewed or if that fails."""

    age_s: float
    ttl_left_s: float
    usable: Literal["revalidate", "on_error"]


@dataclass(frozen=True, slots=True)
class Expired:
    """Not to be served to this request."""

    age_s: float


def judge(
    meta: EntryMeta, plan: Plan, now: float, draw: float, *, beta: float
) -> Fresh | Stale | Expired:
    """May a stored answer be served now, to this plan?

    ``draw`` in ``[0, 1)`` decides about refreshing ahead of expiry: XFetch (Vattani, Chierichetti
    and Lowenstein, *Optimal Probabilistic Cache Stampede Prevention*, VLDB 2015). The more an
    answer cost, the earlier one of its readers renews it; ``beta`` scales that, 0 turns it off.

    A stale answer can be served to save waiting (``revalidate``), or only when the backend
    fails (``on_error``). A request's max-age is the client's word on age and knows no stale.
    """
    ahead_s = meta.stored_at - now
    age_s = max(0.0, -ahead_s)
    if ahead_s > meta.ttl_s:  # a clock set back this far would keep the entry for ever
        return Expired(age_s)
    if plan.max_age_s is not None and age_s > plan.max_age_s:
        return Expired(age_s)
    left_s = meta.ttl_s - age_s
    if left_s > 0:
        return Fresh(age_s, left_s, _refresh_ahead(meta, plan, left_s, draw, beta))
    if meta.status == 200 and -left_s < meta.stale_while_revalidate_s:
        return Stale(age_s, left_s, "revalidate")
    if meta.status == 200 and -left_s < meta.stale_if_error_s:
        return Stale(age_s, left_s, "on_error")
    return Expired(age_s)


def last_use(meta: EntryMeta) -> float:
    """When the gateway stops serving it, stale rules included (unix seconds)."""
    stale_s = max(meta.stale_while_revalidate_s, meta.stale_if_error_s)
    return meta.stored_at + meta.ttl_s + stale_s


def _refresh_ahead(meta: EntryMeta, plan: Plan, left_s: float, draw: float, beta: float) -> bool:
    """XFetch: an exponential draw, scaled by the cost, reaches the expiry."""
    return plan.may_store and meta.status == 200 and -log1p(-draw) * meta.cost_s * beta >= left_s


def jittered(ttl_s: float, jitter: float, draw: float) -> float:
    """Shorten a ttl by a random share up to ``jitter``, never lengthen it."""
    return ttl_s * (1.0 - min(1.0, max(0.0, jitter)) * draw)
