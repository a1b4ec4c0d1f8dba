"""What became of each call: one log line, the metrics, the statistics. Off the hot path.

A finished call is only put on a list; a hundredth of a second later the list is settled in one go,
which costs a fraction of doing it call by call. Who reads the numbers settles first.

Nothing here ever holds a prompt, an answer, an API key or a token. Savings are what the
original computation took: measured seconds, counted tokens, and money by the configured
prices; response hits and reused prefixes are kept apart.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from gateway.metrics import Metrics
from gateway.request_log import MAX_NAME, Answered, RequestLog, Visit
from policies.outcome import Outcome
from policies.plan import Plan

MAX_LABELS: Final = 256
"""Models and tenants counted by name; later ones are counted as ``other``."""
SETTLE_AFTER_S: Final = 0.01
MOST_UNSETTLED: Final = 64
"""So that settling never holds up the event loop for a millisecond."""


@dataclass(frozen=True, slots=True)
class Price:
    """Money per million tokens: prompt computed, prompt reused, completion."""

    miss_per_mtok: float
    hit_per_mtok: float
    output_per_mtok: float


@dataclass(slots=True)
class Tally:
    """Counts of one level, tier, model or tenant."""

    requests: int = 0
    hits: int = 0
    tokens_saved: int = 0
    seconds_saved: float = 0.0
    money_saved: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON for ``/v1/cache/stats``."""
        return {
            "requests": self.requests,
            "hits": self.hits,
            "hit_rate": round(self.hits / self.requests, 4) if self.requests else 0.0,
            "tokens_saved": self.tokens_saved,
            "seconds_saved": round(self.seconds_saved, 6),
            "money_saved": round(self.money_saved, 9),
        }


@dataclass(slots=True)
class Statistics:
    """Everything counted since the start."""

    total: Tally = field(default_factory=Tally)
    levels: dict[str, Tally] = field(default_factory=dict)
    tiers: dict[str, Tally] = field(default_factory=dict)
    models: dict[str, Tally] = field(default_factory=dict)
    tenants: dict[str, Tally] = field(default_factory=dict)
    miss_reasons: dict[str, int] = field(default_factory=dict)
    collapsed: int = 0
    stale: int = 0
    errors: int = 0
    store_errors: int = 0


_log = structlog.get_logger("kvgate")


_Group = tuple[str, str | None, str, str]
"""Level, tier (None: the store was not asked for), model, tenant."""


class Journal:
    """Takes every outcome once, after its answer has left. Belongs to one event loop."""

    def __init__(self, metrics: Metrics, prices: Mapping[str, Price], log: RequestLog) -> None:
        self.metrics = metrics
        self.statistics = Statistics()
        self._prices = prices
        self._log = log
        self._unsettled: list[Visit] = []

    def note(self, visit: Visit) -> None:
        """A call was answered: the visit has its plan and its outcome."""
        self._unsettled.append(visit)
        if len(self._unsettled) == 1:
            asyncio.get_running_loop().call_later(SETTLE_AFTER_S, self.settle)
        elif len(self._unsettled) >= MOST_UNSETTLED:
            self.settle()

    def settle(self) -> None:
        """Count and log what was noted."""
        visits, self._unsettled = self._unsettled, []
        answered: list[Answered] = []
        sums: dict[_Group, Tally] = {}
        for visit in visits:
            plan, outcome = visit.plan, visit.outcome
            if plan is not None and outcome is not None:
                answered.append(Answered(visit, plan, outcome))
                if not plan.preload:  # no user asked for it: it would spoil the hit rate
                    tier = outcome.tier if plan.enabled else None
                    group = (outcome.level, tier, plan.model, plan.scope.tenant)
                    if (tally := sums.get(group)) is None:
                        tally = sums[group] = Tally()
                    self._add(tally, plan, outcome, visit.cost_s)
                    self.metrics.note(plan, visit.endpoint, outcome, visit.seconds)
        for counted, tally in sums.items():
            self._count(counted, tally)
        self._log.answered(answered)

    def refused(
        self, *, request_id: str, endpoint: str, status: int, code: str, seconds: float
    ) -> None:
        """A call ended in an error."""
        self.statistics.errors += 1
        self.metrics.refused(endpoint, status)
        line = {"event": "refused", "id": request_id, "endpoint": endpoint, "status": status}
        self._log.write([line | {"code": code, "ms": round(seconds * 1000, 2)}])

    def store_failed(self, error: Exception) -> None:
        """An answer was given and could not be stored."""
        self.statistics.store_errors += 1
        self.metrics.store_failed()
        _log.warning("answer not stored", error=type(error).__name__, reason=str(error)[:200])

    def left(self, *, request_id: str, endpoint: str, seconds: float) -> None:
        """The client went away before its answer was whole."""
        line = {"event": "left", "id": request_id, "endpoint": endpoint}
        self._log.write([line | {"ms": round(seconds * 1000, 2)}])

    def _add(self, tally: Tally, plan: Plan, outcome: Outcome, cost_s: float) -> None:
        tally.requests += 1
        tally.hits += outcome.hit
        tally.tokens_saved += outcome.tokens_saved
        tally.money_saved += self._money(plan.model, outcome)
        if outcome.level in {"response", "semantic"}:
            tally.seconds_saved += cost_s
        statistics = self.statistics
        statistics.collapsed += outcome.collapsed
        statistics.stale += outcome.stale
        statistics.store_errors += outcome.store_error
        if outcome.miss_reason is not None:
            reasons = statistics.miss_reasons
            reasons[outcome.miss_reason] = reasons.get(outcome.miss_reason, 0) + 1

    def _count(self, group: _Group, added: Tally) -> None:
        level, tier, model, tenant = group
        statistics = self.statistics
        tallies = [
            statistics.total,
            _tally(statistics.levels, level),
            _tally(statistics.models, model[:MAX_NAME]),
            _tally(statistics.tenants, tenant),
        ]
        if tier is not None:
            tallies.append(_tally(statistics.tiers, tier))
        for tally in tallies:
            tally.requests += added.requests
            tally.hits += added.hits
            tally.tokens_saved += added.tokens_saved
            tally.seconds_saved += added.seconds_saved
            tally.money_saved += added.money_saved

    def _money(self, model: str, outcome: Outcome) -> float:
        price = self._prices.get(model) or self._prices.get("default")
        if price is None:
            return 0.0
        if outcome.level in {"response", "semantic"} or outcome.collapsed:
            return (
                outcome.prompt_tokens * price.miss_per_mtok
                + outcome.completion_tokens * price.output_per_mtok
            ) / 1e6
        return outcome.hit_tokens * (price.miss_per_mtok - price.hit_per_mtok) / 1e6


def _tally(group: dict[str, Tally], name: str) -> Tally:
    tally = group.get(name)
    if tally is None:
        tally = group.setdefault(name if len(group) < MAX_LABELS else "other", Tally())
    return tally
