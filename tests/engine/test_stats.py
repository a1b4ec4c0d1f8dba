"""What `GET /kv/stats` says beside the counts that `test_service` reads."""

from engine.stats import stats_of
from tests.kit.scripted_service import CHAT, chat, scripted


async def test_facts_stand_beside_counts() -> None:
    async with scripted() as one:
        await one.post(CHAT, chat())
        await one.post("/kv/retain", {**chat(), "pin": True})
        await one.post("/kv/invalidate", {"all": True})
        stats = stats_of(one.engine, {"model": "m", "kv_token_bytes": 10})
        assert (stats["model"], stats["kv_used_bytes"]) == ("m", 0)
        assert (stats["invalidated_blocks"], stats["evictions"], stats["events"]) == (7, 0, 14)
        assert stats["evicted_by"] == {}
        assert stats["prefill_tokens_per_s"] > 0
