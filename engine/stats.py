"""The state of an engine as plain JSON: what `GET /kv/stats` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.engine import Engine


def stats_of(engine: Engine[Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Counters since the start, and what is held now; `facts` are what was known at the start.

    May be called from any thread: it reads counts that the engine's thread writes.
    """
    counts, scheduler = engine.stats(), engine.scheduler
    index, pool = scheduler.index.stats(), scheduler.index.pool
    prompt_tokens = index.hit_tokens + index.miss_tokens
    held_tokens = (pool.total_blocks - pool.free_blocks) * scheduler.index.block_tokens
    return {
        **facts,
        "blocks": {
            "total": pool.total_blocks,
            "free": pool.free_blocks,
            "cached": index.blocks,
            "idle": index.idle_blocks,
            "in_use": pool.held_blocks,
            "pinned": index.pinned_blocks,
            "block_tokens": scheduler.index.block_tokens,
        },
        "tokens": {
            "hit": index.hit_tokens,
            "miss": index.miss_tokens,
            "generated": counts.generated_tokens,
            "rows": counts.rows,
        },
        "hit_rate": round(index.hit_tokens / prompt_tokens, 4) if prompt_tokens else 0.0,
        "missed": dict(scheduler.index.keeper.missed),
        # of the blocks that hold something; the pool itself (kv_bytes) is taken at the start
        "kv_used_bytes": held_tokens * int(facts.get("kv_token_bytes", 0)),
        "latency": engine.latency.as_json(),
        "prefill_tokens_per_s": engine.prefill_rate.tokens_per_s,
        "speculation": scheduler.speculation.as_json(),
        "tiers": engine.tier_stats(),
        "evictions": index.evicted_blocks,
        "evicted_by": index.evicted_by,
        "broken_pins": index.broken_pins,
        "invalidated_blocks": index.invalidated_blocks,
        "events": scheduler.index.keeper.events.last,
        "sequences": {
            "running": counts.running,
            "waiting": counts.waiting,
            "finished": counts.finished,
            "preempted": counts.preemptions,
        },
        "steps": counts.steps,
        "failed_steps": counts.failed_steps,
        "capacity_tokens": scheduler.capacity_tokens,
    }
