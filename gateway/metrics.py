"""What Prometheus may scrape. Labels come from closed sets only.

A model or tenant that the configuration does not name is labelled ``other``, so that the
number of series never depends on what clients send.
"""

from collections.abc import Collection, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.store.base import Fill
from policies.outcome import Outcome
from policies.plan import Plan

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
OTHER: Final = "other"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, *, models: Collection[str], tenants: Collection[str]) -> None:
        self.registry = CollectorRegistry()
        self._models = frozenset(models)
        self._tenants = frozenset(tenants)
        self._requests = Counter(
            "kvgate_requests",
            "Model calls by the level that answered them.",
            ("endpoint", "level", "status", "model", "tenant"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "kvgate_request_seconds",
            "Time from the request's head to the end of its answer.",
            ("level",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "kvgate_tokens",
            "Tokens by what became of them: saved, reused (KV), computed, generated.",
            ("kind",),
            registry=self.registry,
        )
        self._misses = Counter(
            "kvgate_misses", "Calls not answered by the store, by reason.", ("reason",),
            registry=self.registry,
        )  # fmt: skip
        self._collapsed = Counter(
            "kvgate_collapsed",
            "Calls that read along with a flight in the air.",
            registry=self.registry,
        )
        self._store_errors = Counter(
            "kvgate_store_errors",
            "Store calls that failed; the request went on.",
            registry=self.registry,
        )
        self._entries = Gauge(
            "kvgate_store_entries", "Entries by tier.", ("tier",), registry=self.registry
        )
        self._bytes = Gauge(
            "kvgate_store_bytes", "Bytes held by tier.", ("tier",), registry=self.registry
        )
        self._evictions = Gauge(
            "kvgate_store_evictions",
            "Entries thrown out since the start, by tier.",
            ("tier",),
            registry=self.registry,
        )
        self._flights = Gauge("kvgate_flights", "Flights in the air.", registry=self.registry)
        self._saved = self._tokens.labels("saved")
        self._levels: dict[tuple[str, ...], Counter] = {}
        self._timers = {
            level: self._seconds.labels(level)
            for level in ("response", "semantic", "prefix", "negative", "none")
        }

    def note(self, plan: Plan, endpoint: str, outcome: Outcome, seconds: float) -> None:
        """Count one finished call."""
        labels = (
            endpoint,
            outcome.level,
            str(outcome.status),
            plan.model if plan.model in self._models else OTHER,
            plan.scope.tenant if plan.scope.tenant in self._tenants else OTHER,
        )
        counter = self._levels.get(labels)
        if counter is None:
            counter = self._levels[labels] = self._requests.labels(*labels)
        counter.inc()
        self._timers[outcome.level].observe(seconds)
        if outcome.tokens_saved:
            self._saved.inc(outcome.tokens_saved)
        if outcome.level in {"prefix", "none"}:
            self._tokens.labels("reused").inc(outcome.hit_tokens)
            self._tokens.labels("computed").inc(outcome.miss_tokens)
            self._tokens.labels("generated").inc(outcome.completion_tokens)
            self._misses.labels(outcome.miss_reason or "disabled").inc()
        if outcome.collapsed:
            self._collapsed.inc()
        if outcome.store_error:
            self._store_errors.inc()

    def store_failed(self) -> None:
        """Count a store call that failed after its request was answered."""
        self._store_errors.inc()

    def refused(self, endpoint: str, status: int) -> None:
        """Count a call that ended in an error before or instead of an answer."""
        self._requests.labels(endpoint, "none", str(status), OTHER, OTHER).inc()

    def page(self, fills: Sequence[Fill], flights: int) -> bytes:
        """The exposition text, with the gauges as they are now."""
        for fill in fills:
            self._entries.labels(fill.tier).set(fill.entries)
            self._bytes.labels(fill.tier).set(fill.size_bytes)
            self._evictions.labels(fill.tier).set(fill.evictions)
        self._flights.set(flights)
        return generate_latest(self.registry)
