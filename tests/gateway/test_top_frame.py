"""Two looks at a gateway, and what lies between."""

from typing import Any

import pytest

from gateway.top_frame import Look, frame, quantile

BOUNDS = [0.001, 0.01, 0.1]


def stats(requests: int = 0, hits: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "requests": requests, "hits": hits, "hit_rate": 0.5, "tokens_saved": 10 * hits,
        "stored_answers": hits // 2, "stored_rate": 0.25, "prompt_tokens": 100 * requests,
        "prompt_tokens_reused": 25 * requests, "reuse_rate": 0.25,
        "seconds_saved": 1.5, "money_saved": 0.25, "errors": 0, "store_errors": 0,
        "levels": {"response": {"requests": hits}, "none": {"requests": requests - hits}},
        "miss_reasons": {"cold": requests - hits},
        "latency": {
            "bounds_s": BOUNDS,
            "levels": {"response": {"seconds": 0.1, "within": [hits, 0, 0, 0]}},
        },
        **more,
    }  # fmt: skip


def test_the_first_look_counts_since_the_start_and_knows_no_rates() -> None:
    seen = frame(Look(100.0, stats(10, 4)), None)
    assert (seen["requests"], seen["hit_rate"], seen["interval_s"]) == (10, 0.4, None)
    assert (seen["stored_rate"], seen["reuse_rate"]) == (0.2, 0.25)
    assert seen["requests_per_s"] is None
    assert seen["levels"]["none"]["per_s"] is None
    assert seen["levels"]["response"]["p50_s"] == pytest.approx(0.0005)
    assert seen["levels"]["none"]["p50_s"] is None
    assert seen["status"] == "unknown"


def test_the_next_look_counts_what_came_since() -> None:
    seen = frame(Look(102.0, stats(30, 14)), Look(100.0, stats(10, 4)))
    assert (seen["requests"], seen["requests_per_s"], seen["hit_rate"]) == (20, 10.0, 0.5)
    assert seen["levels"]["response"]["per_s"] == 5.0
    assert seen["misses"] == {"cold": 10}
    assert seen["since_start"]["requests"] == 30
    quiet = frame(Look(104.0, stats(30, 14)), Look(102.0, stats(30, 14)))
    assert (quiet["hit_rate"], quiet["misses"]) == (None, {})
    assert quiet["stored_rate"] is quiet["reuse_rate"] is None
    assert quiet["levels"]["response"]["p95_s"] is None


def test_a_gateway_that_was_restarted_begins_anew() -> None:
    seen = frame(Look(102.0, stats(3, 1)), Look(100.0, stats(10, 4)))
    assert (seen["requests"], seen["interval_s"]) == (3, None)


def test_tiers_backends_and_jobs_are_shown_with_what_they_say() -> None:
    tier = {"store": "memory", "entries": 3, "size_bytes": 50, "max_bytes": 200, "evictions": 6}
    kv = {
        "blocks": {"total": 100, "free": 25}, "hit_rate": 0.75, "evictions": 4,
        "sequences": {"running": 2, "waiting": 1},
    }  # fmt: skip
    backends = {
        "eng": {"kv": kv},
        "up": {"kv": None},
        "new": {"error": "engine_starting"},
    }
    ready = {
        "status": "waiting", "waiting_for": {"engine": "loading"}, "backends": {"up": "down"},
    }  # fmt: skip
    counts = {"total": 10, "done": 3, "skipped": 2, "failed": 1, "pending": 4}
    job = {"id": "warm-1", "status": "running", "counts": counts}
    before = stats(1, 0, tiers={"hot": {**tier, "evictions": 2}})
    now = stats(1, 0, tiers={"hot": tier, "cold": {"requests": 1}}, backends=backends)
    seen = frame(Look(102.0, now, ready, [job]), Look(100.0, before))
    assert seen["tiers"] == {
        "hot": {
            "store": "memory", "entries": 3, "size_bytes": 50, "max_bytes": 200, "fill": 0.25,
            "evictions": 4, "evictions_per_s": 2.0,
        }
    }  # fmt: skip
    eng, up, new = (seen["backends"][name] for name in ("eng", "up", "new"))
    assert (eng["kv_fill"], eng["kv_hit_rate"], eng["running"], eng["waiting"]) == (
        0.75,
        0.75,
        2,
        1,
    )
    assert (up["state"], up["kv_fill"]) == ("down", None)
    assert (new["state"], new["error"]) == ("loading", "engine_starting")
    assert seen["warm"] == [
        {"id": "warm-1", "status": "running", "total": 10, "ended": 6, "failed": 1}
    ]


@pytest.mark.parametrize(
    ("within", "share", "value"),
    [
        ([10, 0, 0, 0], 0.5, 0.0005),
        ([0, 10, 0, 0], 1.0, 0.01),
        ([5, 5, 0, 0], 0.75, 0.0055),
        ([0, 0, 0, 3], 0.5, 0.1),
        ([1, 0, 0, 9], 0.95, 0.1),
        ([0, 0, 0, 0], 0.5, None),
        ([], 0.5, None),
    ],
)
def test_quantiles_lie_within_their_bucket(
    within: list[int], share: float, value: float | None
) -> None:
    found = quantile(BOUNDS, within, share)
    assert found == (None if value is None else pytest.approx(value))
