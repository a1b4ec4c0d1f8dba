"""What an engine says of itself, with a number for everything that it may say."""

from typing import Any

TIER = {
    "on": True, "blocks": 10, "bytes": 1000, "max_bytes": 4000, "hits": 7, "misses": 3,
    "declined": 1, "reads": 6, "writes": 12, "evictions": 2, "invalidated": 1,
}  # fmt: skip
KV_STATS: dict[str, Any] = {
    "model": "smollm2-135m-instruct", "device": "cpu", "dtype": "float32", "kv_dtype": "float32",
    "mla": None, "kv_bytes": 1_000_000, "kv_token_bytes": 46_080, "prefix_cache": True,
    "blocks": {
        "total": 100, "free": 25, "cached": 60, "idle": 50, "in_use": 15, "pinned": 4,
        "block_tokens": 32,
    },
    "tokens": {"hit": 640, "miss": 360, "generated": 50, "rows": 410},
    "hit_rate": 0.64,
    "kv_used_bytes": 750_000,
    "latency": {
        "first_token": {"count": 4, "total_ms": 800.0, "p50_ms": 200.0, "p95_ms": 300.0},
        "inter_token": {"count": 46, "total_ms": 920.0, "p50_ms": 20.0, "p95_ms": 30.0},
    },
    "evictions": 9, "evicted_by": {"capacity": 6, "quota": 3}, "broken_pins": 1, "invalidated_blocks": 3,
    "missed": {"never_seen": 4, "diverged": 2}, "prefill_tokens_per_s": 1500.5,
    "verify": {"verified": 7, "mismatched": 1, "skipped": 2},
    "sequences": {"running": 2, "waiting": 1, "finished": 4, "preempted": 1},
    "steps": 120, "failed_steps": 1, "capacity_tokens": 8192,
    "tiers": {
        "hot": {"on": True, "blocks": 60, "bytes": 6000, "max_bytes": 10_000, "evictions": 9},
        "warm": TIER, "cold": {"on": False}, "prefill_tokens_per_s": None,
    },
    "speculation": {
        "most": 8, "prompt": {"drafted": 30, "accepted": 20}, "answers": {"drafted": 10, "accepted": 9},
        "answers_bytes": 2048, "answers_salts": 2,
    },
}  # fmt: skip
