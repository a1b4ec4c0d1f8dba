"""Waits for tokens."""

from engine.latency import KEPT, Latency, Waits
from engine.request import TokenEvent


def test_the_first_token_and_those_after_it_are_told_apart() -> None:
    latency = Latency()
    latency.accepted("a", now=1.0)
    latency.accepted("b", now=1.5)
    latency.heard([TokenEvent("a", token=5)], now=2.0)
    latency.heard([TokenEvent("a", token=6), TokenEvent("b", token=5)], now=2.25)
    latency.heard(
        [TokenEvent("a", token=7, finish="length"), TokenEvent("b", finish="abort")], now=2.5
    )
    found = latency.as_json()
    assert found["first_token"] == {
        "count": 2, "total_ms": 1750.0, "p50_ms": 750.0, "p95_ms": 750.0,
    }  # fmt: skip
    assert found["inter_token"]["count"] == 2
    assert found["inter_token"]["total_ms"] == 500.0


def test_nothing_is_kept_of_a_request_that_has_ended_or_was_never_accepted() -> None:
    latency = Latency()
    latency.accepted("a", now=0.0)
    latency.heard([TokenEvent("a", finish="stop"), TokenEvent("x", token=1)], now=1.0)
    latency.heard([TokenEvent("a", token=1)], now=2.0)
    assert latency.first_token.count == latency.next_token.count == 0
    assert latency.as_json()["first_token"]["p95_ms"] == 0.0


def test_quantiles_are_of_the_latest_waits_only() -> None:
    waits = Waits()
    for number in range(2 * KEPT):
        waits.note(float(number))
    found = waits.as_json()
    assert found["count"] == 2 * KEPT
    assert found["p50_ms"] == (KEPT + (KEPT - 1) // 2) * 1000.0
