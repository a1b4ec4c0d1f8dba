"""What Prometheus may scrape, made of the statistics when it is asked for.

Labels come from closed sets only: a model or tenant that the configuration does not name is
labelled ``other``, so that the number of series never depends on what clients send.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from gateway.backends.figures import Figures
from gateway.engine_metrics import engine_families
from gateway.savings import ERRANDS
from gateway.store.base import Fill
from gateway.tally import BUCKETS_S, OTHER, Statistics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
Family = Metric


class Metrics:
    """The exposition of one gateway's numbers."""

    def __init__(
        self, *, models: Collection[str], tenants: Collection[str], version: str = "unknown"
    ) -> None:
        self._version = version
        self._models = frozenset(models)
        self._tenants = frozenset(tenants)

    def page(
        self,
        statistics: Statistics,
        fills: Sequence[Fill],
        flights: int,
        *,
        backends: Figures | None = None,
        states: Mapping[str, str] | None = None,
        stores: Mapping[str, str | None] | None = None,
    ) -> bytes:
        """The exposition text. ``states`` are those of the backends that are not ``up``.

        ``stores`` says of each place outside this process why it is of no use (None: it works).
        """
        registry = CollectorRegistry()
        families = [
            *self._families(statistics, fills, flights),
            *_backends(backends or {}, states or {}),
            *_places(stores or {}),
            *engine_families(backends or {}),
        ]
        registry.register(_Page(families))
        return generate_latest(registry)

    def _families(
        self, statistics: Statistics, fills: Sequence[Fill], flights: int
    ) -> Iterator[Family]:
        yield InfoMetricFamily("kvgate_build", "This gateway.", value={"version": self._version})
        yield self._requests(statistics)
        yield _seconds(statistics)
        yield _tokens(statistics)
        misses = CounterMetricFamily(
            "kvgate_misses", "Calls not answered by the store, by reason.", labels=("reason",)
        )
        for reason, count in _misses(statistics).items():
            misses.add_metric((reason,), count)
        yield misses
        whole = statistics.total
        yield CounterMetricFamily(
            "kvgate_collapsed",
            "Calls that read along with a flight in the air.",
            value=whole.collapsed,
        )
        yield CounterMetricFamily(
            "kvgate_store_errors",
            "Store calls that failed; the request went on.",
            value=statistics.store_errors,
        )
        saved = CounterMetricFamily("kvgate_saved_seconds", "Time of original computations saved.")
        saved.add_metric((), whole.seconds_saved)
        yield saved
        yield CounterMetricFamily(
            "kvgate_saved_money",
            "Money saved by the configured prices, in their currency.",
            value=whole.money_saved,
        )
        yield CounterMetricFamily(
            "kvgate_stale", "Hits that were served past their ttl.", value=whole.stale
        )
        yield CounterMetricFamily(
            "kvgate_journal_lines",
            "Lines written to the journal.",
            value=statistics.journal_lines,
        )
        yield CounterMetricFamily(
            "kvgate_journal_lost_lines",
            "Lines that could not be written to the journal.",
            value=statistics.journal_lost,
        )
        yield from _spent(statistics)
        yield from _stores(fills)
        yield GaugeMetricFamily("kvgate_flights", "Flights in the air.", value=flights)

    def _requests(self, statistics: Statistics) -> Family:
        family = CounterMetricFamily(
            "kvgate_requests",
            "Model calls by the level that answered them.",
            labels=("endpoint", "level", "status", "model", "tenant"),
        )
        counts: Counter[tuple[str, ...]] = Counter()
        for group, tally in statistics.groups():
            model = group.model if group.model in self._models else OTHER
            tenant = group.tenant if group.tenant in self._tenants else OTHER
            counts[group.endpoint, group.level, str(group.status), model, tenant] += tally.requests
        for endpoint, status, count in statistics.refusals():
            counts[endpoint, "none", str(status), OTHER, OTHER] += count
        for labels, count in counts.items():
            family.add_metric(labels, count)
        return family


class _Page(Collector):
    """Families that are there already."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        yield from self._families


def _seconds(statistics: Statistics) -> Family:
    family = HistogramMetricFamily(
        "kvgate_request_seconds",
        "Time from the request's head to the end of its answer.",
        labels=("level",),
    )
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    for level, tally in statistics.by("level").items():
        within = accumulate(tally.within)
        family.add_metric((level,), list(zip(bounds, within, strict=True)), sum_value=tally.seconds)
    return family


def _tokens(statistics: Statistics) -> Family:
    family = CounterMetricFamily(
        "kvgate_tokens",
        "Tokens by what became of them: saved, reused (KV), computed, generated.",
        labels=("kind",),
    )
    whole = statistics.total
    for kind, count in (
        ("saved", whole.tokens_saved),
        ("reused", whole.hit_tokens),
        ("computed", whole.miss_tokens),
        ("generated", whole.completion_tokens),
    ):
        family.add_metric((kind,), count)
    return family


def _misses(statistics: Statistics) -> Counter[str]:
    counts: Counter[str] = Counter()
    for group, tally in statistics.groups():
        if group.level in {"prefix", "none"}:
            counts[group.reason or "disabled"] += tally.requests
    return counts


def _spent(statistics: Statistics) -> Iterator[Family]:
    labels = ("errand",)
    seconds = CounterMetricFamily(
        "kvgate_spent_seconds", "Backend time for what no user waited for.", labels=labels
    )
    tokens = CounterMetricFamily(
        "kvgate_spent_tokens", "Tokens computed for what no user waited for.", labels=labels
    )
    spent = {errand: [0.0, 0] for errand in ERRANDS}
    for purpose, sums in statistics.purposes():
        spent[purpose.errand][0] += sums.seconds
        spent[purpose.errand][1] += sums.tokens
    for errand, (took_s, computed) in spent.items():
        seconds.add_metric((errand,), took_s)
        tokens.add_metric((errand,), computed)
    yield from (seconds, tokens)


def _backends(said: Figures, states: Mapping[str, str]) -> Iterator[Family]:
    """Whether each backend is asked at the moment, and whether it tells its figures."""
    if not said:
        return
    up = GaugeMetricFamily(
        "kvgate_backend_up", "Whether calls go to the backend: 1 yes, 0 no.", labels=("backend",)
    )
    for name, one in said.items():
        up.add_metric((name,), float("error" not in one and states.get(name, "up") == "up"))
    yield up


def _places(stores: Mapping[str, str | None]) -> Iterator[Family]:
    if not stores:
        return
    up = GaugeMetricFamily(
        "kvgate_store_up", "Whether the store is of use: 1 yes, 0 no.", labels=("store",)
    )
    for name, why in stores.items():
        up.add_metric((name,), float(why is None))
    yield up


def _stores(fills: Sequence[Fill]) -> Iterator[Family]:
    labels = ("tier",)
    entries = GaugeMetricFamily("kvgate_store_entries", "Entries by tier.", labels=labels)
    held = GaugeMetricFamily("kvgate_store_bytes", "Bytes held by tier.", labels=labels)
    limit = GaugeMetricFamily("kvgate_store_limit_bytes", "Room by tier.", labels=labels)
    evictions = CounterMetricFamily(
        "kvgate_store_evictions", "Entries thrown out since the start, by tier.", labels=labels
    )
    for fill in fills:
        entries.add_metric((fill.tier,), fill.entries)
        held.add_metric((fill.tier,), fill.size_bytes)
        limit.add_metric((fill.tier,), fill.max_bytes)
        evictions.add_metric((fill.tier,), fill.evictions)
    yield from (entries, held, limit, evictions)
