"""Metrics: right numbers, and as many series as the configuration has names."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics
from gateway.store.base import Fill
from policies.keys import Principal
from policies.outcome import Outcome
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


def metrics() -> Metrics:
    return Metrics(models=["m"], tenants=["default"])


def samples(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Value by name and label values, these in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_calls_are_counted_by_the_level_that_answered() -> None:
    counted, (_, plan) = metrics(), asked()
    for outcome in (HIT, HIT, MISS, replace(MISS, level="prefix", hit_tokens=5, miss_tokens=4)):
        counted.note(plan, "chat", outcome, 0.002)
    found = samples(counted.page([], 2))
    requests = "kvgate_requests_total"
    assert found[requests, ("chat", "response", "m", "200", "default")] == 2
    assert found[requests, ("chat", "none", "m", "200", "default")] == 1
    assert found["kvgate_misses_total", ("cold",)] == 2
    tokens = {
        kind: found["kvgate_tokens_total", (kind,)] for kind in ("reused", "computed", "saved")
    }
    assert tokens == {"reused": 5, "computed": 13, "saved": 14}
    assert found["kvgate_tokens_total", ("generated",)] == 8
    assert found["kvgate_request_seconds_count", ("response",)] == 2
    assert found["kvgate_flights", ()] == 2


def test_reading_along_and_store_failures_are_counted() -> None:
    counted, (_, plan) = metrics(), asked()
    counted.note(plan, "chat", replace(MISS, collapsed=True, store_error=True), 0.1)
    found = samples(counted.page([], 0))
    assert found["kvgate_collapsed_total", ()] == 1
    assert found["kvgate_store_errors_total", ()] == 1


def test_refusals_are_counted_by_status() -> None:
    counted = metrics()
    counted.refused("chat", 404)
    found = samples(counted.page([], 0))
    assert found["kvgate_requests_total", ("chat", "none", "other", "404", "other")] == 1


def test_how_full_the_store_is_is_shown_by_tier() -> None:
    fill = Fill("hot", "memory", entries=3, size_bytes=4000, max_bytes=9000, evictions=2)
    found = samples(metrics().page([fill], 0))
    assert found["kvgate_store_entries", ("hot",)] == 3
    assert found["kvgate_store_bytes", ("hot",)] == 4000
    assert found["kvgate_store_evictions", ("hot",)] == 2


@pytest.mark.parametrize("varied", ["model", "tenant"])
def test_what_clients_name_makes_no_new_series(varied: str) -> None:
    counted = metrics()
    counts = []
    for number in range(200):
        name = f"name-{number}"
        _, plan = asked(model=name) if varied == "model" else asked(principal=Principal(name))
        counted.note(plan, "chat", MISS, 0.1)
        counts.append(len(samples(counted.page([], 0))))
    assert counts[0] == counts[-1]


def test_each_gateway_has_metrics_of_its_own() -> None:
    one, other = metrics(), metrics()
    one.refused("chat", 400)
    assert b'status="400"' not in other.page([], 0)
