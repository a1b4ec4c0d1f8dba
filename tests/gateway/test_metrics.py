"""Metrics: right numbers, and as many series as the configuration has names."""

import io
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.journal import Journal
from gateway.metrics import Metrics
from gateway.request_log import RequestLog, Visit
from gateway.store.base import Fill
from gateway.tally import Statistics
from policies.keys import Principal
from policies.outcome import Outcome
from policies.plan import Plan
from tests.kit.entries import asked

HIT = Outcome(key="k", tier="warm", level="response", hit=True, tokens_saved=7)
MISS = Outcome(
    key="k",
    tier="warm",
    miss_reason="cold",
    prompt_tokens=9,
    miss_tokens=9,
    completion_tokens=4,
)
METRICS = Metrics(models=["m"], tenants=["default"])
Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(statistics: Statistics, fills: tuple[Fill, ...] = (), flights: int = 0) -> Samples:
    """Value by name and label values, these in the order of the labels' names."""
    page = METRICS.page(statistics, fills, flights)
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


class Counted:
    """A journal that counts as the gateway's does."""

    def __init__(self) -> None:
        self.journal = Journal({}, RequestLog("error", "json", io.StringIO()))
        self.statistics = self.journal.statistics

    def note(self, plan: Plan, outcome: Outcome, seconds: float = 0.002) -> None:
        self.journal.note(Visit("r", "chat", 0.0, plan=plan, outcome=outcome, seconds=seconds))
        self.journal.settle()


async def test_calls_are_counted_by_the_level_that_answered() -> None:
    counted, (_, plan) = Counted(), asked()
    for outcome in (HIT, HIT, MISS, replace(MISS, level="prefix", hit_tokens=5, miss_tokens=4)):
        counted.note(plan, outcome)
    found = samples(counted.statistics, flights=2)
    requests = "kvgate_requests_total"
    assert found[requests, ("chat", "response", "m", "200", "default")] == 2
    assert found[requests, ("chat", "none", "m", "200", "default")] == 1
    assert found["kvgate_misses_total", ("cold",)] == 2
    tokens = {
        kind: found["kvgate_tokens_total", (kind,)] for kind in ("reused", "computed", "saved")
    }
    assert tokens == {"reused": 5, "computed": 13, "saved": 14}
    assert found["kvgate_tokens_total", ("generated",)] == 8
    assert found["kvgate_flights", ()] == 2


async def test_answer_times_are_counted_in_buckets_that_add_up() -> None:
    counted, (_, plan) = Counted(), asked()
    for seconds in (0.0005, 0.001, 0.0011, 3.0, 1000.0):
        counted.note(plan, HIT, seconds)
    found = samples(counted.statistics)
    bucket, at = "kvgate_request_seconds_bucket", ("response",)
    by_bound = {
        bound: found[bucket, (bound, *at)] for bound in ("0.001", "0.0025", "5.0", "60.0", "+Inf")
    }
    assert by_bound == {"0.001": 2, "0.0025": 3, "5.0": 4, "60.0": 4, "+Inf": 5}
    assert found["kvgate_request_seconds_count", at] == 5
    assert found["kvgate_request_seconds_sum", at] == pytest.approx(1003.0026)


async def test_reading_along_and_store_failures_are_counted() -> None:
    counted, (_, plan) = Counted(), asked()
    counted.note(plan, replace(MISS, collapsed=True, store_error=True))
    counted.journal.store_failed(OSError("disk full"))
    found = samples(counted.statistics)
    assert found["kvgate_collapsed_total", ()] == 1
    assert found["kvgate_store_errors_total", ()] == 2


def test_refusals_are_counted_by_status() -> None:
    statistics = Statistics()
    statistics.refused("chat", 404)
    found = samples(statistics)
    assert found["kvgate_requests_total", ("chat", "none", "other", "404", "other")] == 1


def test_how_full_the_store_is_is_shown_by_tier() -> None:
    fill = Fill("hot", "memory", entries=3, size_bytes=4000, max_bytes=9000, evictions=2)
    found = samples(Statistics(), (fill,))
    assert found["kvgate_store_entries", ("hot",)] == 3
    assert found["kvgate_store_bytes", ("hot",)] == 4000
    assert found["kvgate_store_evictions_total", ("hot",)] == 2


@pytest.mark.parametrize("varied", ["model", "tenant"])
async def test_what_clients_name_makes_no_new_series(varied: str) -> None:
    counted = Counted()
    counts = []
    for number in range(200):
        name = f"name-{number}"
        _, plan = asked(model=name) if varied == "model" else asked(principal=Principal(name))
        counted.note(plan, MISS)
        counts.append(len(samples(counted.statistics)))
    assert counts[0] == counts[-1]
