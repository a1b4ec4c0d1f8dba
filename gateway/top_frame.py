"""What ``kvgate top`` shows, as numbers: two looks at a gateway's statistics, and what lies between.

Pure: no IO, no clock. Counts of a frame are those since the look before; without one, since the
gateway's start, and there are no rates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

LEVELS: Final = ("response", "semantic", "prefix", "negative", "none")
SINCE_START: Final = (
    "requests", "hit_rate", "stored_rate", "reuse_rate", "tokens_saved", "seconds_saved",
    "money_saved",
)  # fmt: skip
QUANTILES: Final = {"p50_s": 0.5, "p95_s": 0.95}
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """What a gateway said at ``at`` (unix seconds): its statistics, its state, its warm jobs."""

    at: float
    stats: Json
    ready: Json = field(default_factory=dict)
    jobs: Sequence[Json] = ()


def frame(now: Look, before: Look | None) -> dict[str, Any]:
    """Everything that is shown, as JSON."""
    if before is not None and now.stats.get("requests", 0) < before.stats.get("requests", 0):
        before = None  # it was restarted
    was: Json = {} if before is None else before.stats
    interval_s = None if before is None else max(1e-3, now.at - before.at)
    requests, hits = (_grown(now.stats, was, name) for name in ("requests", "hits"))
    return {
        "at": round(now.at, 3),
        "interval_s": None if interval_s is None else round(interval_s, 3),
        "tenant": now.stats.get("tenant"),
        "status": now.ready.get("status", "unknown"),
        "requests": requests,
        "requests_per_s": _rate(requests, interval_s),
        "hit_rate": _share(hits, requests),
        "stored_rate": _share(_grown(now.stats, was, "stored_answers"), requests),
        "reuse_rate": _share(
            _grown(now.stats, was, "prompt_tokens_reused"), _grown(now.stats, was, "prompt_tokens")
        ),
        "since_start": {name: now.stats.get(name, 0) for name in SINCE_START},
        "errors": _grown(now.stats, was, "errors"),
        "store_errors": _grown(now.stats, was, "store_errors"),
        "flights": now.stats.get("flights"),
        "levels": _levels(now.stats, was, requests, interval_s),
        "tiers": _tiers(now.stats, was, interval_s),
        "misses": _misses(now.stats, was),
        "backends": _backends(now),
        "warm": [_job(job) for job in now.jobs],
    }


def quantile(bounds: Sequence[float], within: Sequence[int], share: float) -> float | None:
    """The value that ``share`` of the counted ones do not exceed, by straight lines in a bucket.

    ``within`` has one count a bucket and one more for what is over the last bound, of which
    nothing but that bound is known. None when nothing was counted.
    """
    wanted = share * sum(within)
    if not wanted:
        return None
    below, seen = 0.0, 0
    for bound, count in zip(bounds, within, strict=False):
        if count and seen + count >= wanted:
            return below + (bound - below) * (wanted - seen) / count
        seen += count
        below = bound
    return below


def _levels(
    stats: Json, was: Json, requests: float, interval_s: float | None
) -> dict[str, dict[str, Any]]:
    latency, before = stats.get("latency") or {}, (was.get("latency") or {}).get("levels") or {}
    bounds = latency.get("bounds_s") or ()
    shown = {}
    held = stats.get("levels") or {}
    for name in (*LEVELS, *(held.keys() - set(LEVELS))):
        if name not in held:
            continue
        count = _grown(held[name], (was.get("levels") or {}).get(name) or {}, "requests")
        within = _between((latency.get("levels") or {}).get(name), before.get(name))
        shown[name] = {
            "requests": count,
            "per_s": _rate(count, interval_s),
            "share": _share(count, requests),
            **{key: quantile(bounds, within, share) for key, share in QUANTILES.items()},
        }
    return shown


def _between(now: Json | None, before: Json | None) -> Sequence[int]:
    if now is None:
        return ()
    if before is None:
        return list(now["within"])
    pairs = zip(now["within"], before["within"], strict=False)
    return [max(0, one - other) for one, other in pairs]


def _tiers(stats: Json, was: Json, interval_s: float | None) -> dict[str, dict[str, Any]]:
    shown = {}
    for name, tier in (stats.get("tiers") or {}).items():
        if "max_bytes" not in tier:  # a tenant is not told how full the house is
            continue
        evictions = _grown(tier, (was.get("tiers") or {}).get(name) or {}, "evictions")
        shown[name] = {
            **{key: tier[key] for key in ("store", "entries", "size_bytes", "max_bytes")},
            "fill": _share(tier["size_bytes"], tier["max_bytes"]),
            "evictions": evictions,
            "evictions_per_s": _rate(evictions, interval_s),
        }
    return shown


def _misses(stats: Json, was: Json) -> dict[str, int]:
    """Counts by reason, the most frequent first; what did not happen is left out."""
    before = was.get("miss_reasons") or {}
    grown = {
        reason: count - before.get(reason, 0)
        for reason, count in (stats.get("miss_reasons") or {}).items()
    }
    return dict(sorted((item for item in grown.items() if item[1] > 0), key=lambda one: -one[1]))


def _backends(now: Look) -> dict[str, dict[str, Any]]:
    ailing = now.ready.get("backends") or {}
    waiting = (now.ready.get("waiting_for") or {}).get("engine")
    shown = {}
    for name, said in (now.stats.get("backends") or {}).items():
        kv = said.get("kv") or {}
        starting = (
            waiting if said.get("error") in {"engine_starting", "engine_unavailable"} else None
        )
        shown[name] = {
            "state": starting or ailing.get(name, "up"),
            "error": said.get("error"),
            **_kv(kv),
        }
    return shown


def _kv(kv: Json) -> dict[str, Any]:
    blocks, sequences = kv.get("blocks") or {}, kv.get("sequences") or {}
    total, free = blocks.get("total", 0), blocks.get("free", 0)
    return {
        "kv_fill": _share(total - free, total),
        "kv_hit_rate": kv.get("hit_rate"),
        "kv_evictions": kv.get("evictions"),
        "running": sequences.get("running"),
        "waiting": sequences.get("waiting"),
    }


def _job(job: Json) -> dict[str, Any]:
    counts = job["counts"]
    ended = counts["done"] + counts["skipped"] + counts["failed"]
    return {
        "id": job["id"],
        "status": job["status"],
        "total": counts["total"],
        "ended": ended,
        "failed": counts["failed"],
    }


def _grown(now: Json, before: Json, name: str) -> int:
    return max(0, int(now.get(name, 0)) - int(before.get(name, 0)))


def _rate(count: float, interval_s: float | None) -> float | None:
    return None if interval_s is None else round(count / interval_s, 3)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
