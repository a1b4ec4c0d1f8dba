"""Savings over the wire: hand-computed sums against a scripted upstream and a scripted clock."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, chat_body
from tests.kit.service import Answer, Service, serving

PRICES = {
    "default": {"miss_per_mtok": 1.0, "hit_per_mtok": 0.1, "output_per_mtok": 10.0},
    "dear": {"miss_per_mtok": 100.0, "hit_per_mtok": 10.0, "output_per_mtok": 1000.0},
}
# each answer: 1000 prompt tokens, of them 400 reused where the script says so, and 100 more
ANSWER = (1000 * 1.0 + 100 * 10.0) / 1e6
REUSE = 400 * (1.0 - 0.1) / 1e6
WITH_REUSE = (600 * 1.0 + 400 * 0.1 + 100 * 10.0) / 1e6
ALICE, BOB, ROOT = (f"kv-{name}-3f1c7a90b2d84e65" for name in ("alice", "bob", "root"))
TENANTS = [
    {"name": "a", "api_keys": [ALICE]},
    {"name": "b", "api_keys": [BOB]},
    {"name": "ops", "api_keys": [ROOT], "admin": True},
]
HOT = {"enabled": True, "tier": "hot"}
Asking = asyncio.Task[Answer]


def reply(gate: Gate, *, reused: int = 0, model: str = "m") -> Reply:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
    body = {**chat_body({"model": model}), "usage": usage}
    return Reply((gate, json.dumps(body).encode()))


class Story:
    """A service whose upstream takes as long as the story says."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def computed(
        self, seconds: float, text: str, wish: Any = HOT, *, reused: int = 0, **how: Any
    ) -> Answer:
        """A call that the upstream answers after ``seconds``."""
        gate = Gate()
        self.service.upstream.replies.append(reply(gate, reused=reused))
        asking = asyncio.create_task(self._ask(text, wish, **how))
        await gate.reached()
        self.service.clock.advance(seconds)
        gate.open()
        answer = await asking
        assert answer.status == 200
        await self.service.settled()
        return answer

    async def kept(self, text: str, wish: Any = HOT, **how: Any) -> Answer:
        """A call that the store answers."""
        answer = await self._ask(text, wish, **how)
        assert answer.headers["X-Cache-Level"] == "response"
        return answer

    async def _ask(self, text: str, wish: Any, **how: Any) -> Answer:
        return await self.service.chat(wish, messages=[{"role": "user", "content": text}], **how)

    async def stats(self, key: str | None = None) -> Any:
        answer = await self.service.send("GET", "/v1/cache/stats", key=key)
        assert answer.status == 200
        return answer.body


@asynccontextmanager
async def story(**config: Any) -> AsyncIterator[Story]:
    async with serving(
        upstream=ScriptedUpstream(),
        prices=PRICES,
        freshness={"jitter": 0.0},
        models=("m", "dear"),
        scripted_durations=True,
        **config,
    ) as service:
        yield Story(service)


async def test_a_stored_answer_saves_the_measured_time_and_the_price_of_its_original() -> None:
    async with story() as told:
        await told.computed(2.0, "one")
        await told.computed(3.0, "two")
        for _ in range(3):
            await told.kept("one")
        await told.kept("two")
        savings = (await told.stats())["savings"]
        assert savings["response"] == {
            "calls": 4,
            "tokens": 4 * 1100,
            "seconds": 3 * 2.0 + 3.0,
            "money": pytest.approx(4 * ANSWER),
        }
        assert savings["net"] == {
            "tokens": 4 * 1100,
            "seconds": 9.0,
            "money": pytest.approx(4 * ANSWER),
        }


async def test_prices_are_the_models_own() -> None:
    async with story() as told:
        await told.computed(2.0, "one", model="dear")
        await told.kept("one", model="dear")
        stats = await told.stats()
        assert stats["models"]["dear"]["money_saved"] == pytest.approx(100 * ANSWER)
        assert stats["savings"]["net"]["money"] == pytest.approx(100 * ANSWER)


async def test_a_reused_prefix_is_counted_apart_and_claims_no_time() -> None:
    async with story() as told:
        await told.computed(2.0, "one", wish=None, reused=400)
        await told.computed(2.0, "two", wish=HOT, reused=400)
        await told.kept("two")
        stats = await told.stats()
        prefix = stats["savings"]["prefix"]
        assert (prefix["calls"], prefix["tokens"]) == (2, 800)
        assert prefix["money"] == pytest.approx(2 * REUSE)
        assert prefix["seconds"] is None
        assert prefix["seconds_note"].startswith("not claimed")
        assert stats["savings"]["response"]["calls"] == 1
        assert stats["levels"]["prefix"]["tokens_saved"] == 800
        assert stats["seconds_saved"] == 2.0


async def test_who_reads_along_saves_tokens_and_no_time() -> None:
    async with story() as told:
        gate = Gate()
        told.service.upstream.replies.append(reply(gate, reused=400))
        asking = [asyncio.create_task(told._ask("one", HOT)) for _ in range(3)]
        await told.service.readers(3)
        await gate.reached()
        told.service.clock.advance(5.0)
        gate.open()
        await asyncio.gather(*asking)
        savings = (await told.stats())["savings"]
        assert (savings["collapsed"]["calls"], savings["collapsed"]["tokens"]) == (2, 2200)
        assert savings["collapsed"]["money"] == pytest.approx(2 * WITH_REUSE)
        assert savings["collapsed"]["seconds"] is None
        assert (savings["prefix"]["calls"], savings["prefix"]["tokens"]) == (1, 400)
        assert savings["net"]["seconds"] == 0
        assert savings["net"]["money"] == pytest.approx(2 * WITH_REUSE + REUSE)


async def test_warming_is_spent_and_no_traffic() -> None:
    async with story() as told:
        await told.computed(4.0, "one", {**HOT, "preload": True}, reused=400)
        await told.kept("one")
        await told.kept("one", {**HOT, "preload": True})  # there already: nothing is spent
        stats = await told.stats()
        assert stats["requests"] == 1
        assert stats["savings"]["spent"]["warming"] == {
            "calls": 1,
            "tokens": 700,
            "seconds": 4.0,
            "money": pytest.approx(WITH_REUSE),
        }
        net = stats["savings"]["net"]
        assert (net["tokens"], net["seconds"]) == (1100 - 700, 0.0)
        assert net["money"] == pytest.approx(ANSWER - WITH_REUSE)


async def test_a_renewal_is_spent_and_its_answer_saves_its_own_time_from_then_on() -> None:
    async with story() as told:
        await told.computed(2.0, "one")
        told.service.clock.advance(310)
        gate = Gate()
        told.service.upstream.replies.append(reply(gate))
        stale = await told.kept("one")
        assert stale.headers["X-Cache-Stale"] == "true"
        await gate.reached()
        told.service.clock.advance(7.0)
        gate.open()
        await told.service.settled()
        await told.kept("one")
        savings = (await told.stats())["savings"]
        assert savings["response"]["seconds"] == 2.0 + 7.0
        renewal = savings["spent"]["revalidation"]
        assert (renewal["calls"], renewal["tokens"], renewal["seconds"]) == (1, 1100, 7.0)
        assert renewal["money"] == pytest.approx(ANSWER)
        assert savings["net"]["seconds"] == 2.0
        assert savings["net"]["money"] == pytest.approx(2 * ANSWER - ANSWER)


async def test_a_renewal_that_failed_or_a_refusal_saves_nothing() -> None:
    async with story() as told:
        await told.computed(2.0, "one")
        told.service.clock.advance(310)
        told.service.upstream.replies.append(Reply((b"{}",), 503))
        await told.kept("one")
        await told.service.settled()
        told.service.upstream.replies.append(Reply((b"{}",), 400))
        for _ in range(2):
            assert (await told._ask("bad", HOT)).status == 400
        savings = (await told.stats())["savings"]
        assert savings["spent"]["revalidation"]["calls"] == 0
        assert (savings["response"]["calls"], savings["net"]["seconds"]) == (1, 2.0)


async def test_sums_by_level_tier_model_and_tenant_all_add_up_to_the_whole() -> None:
    async with story(tenants=TENANTS) as told:
        for key, model, tier in ((ALICE, "m", "hot"), (ALICE, "dear", "warm"), (BOB, "m", "cold")):
            wish = {"enabled": True, "tier": tier}
            await told.computed(2.0, "one", wish, key=key, model=model)
            await told.kept("one", wish, key=key, model=model)
            await told.computed(1.0, "plain", None, reused=400, key=key, model=model)
        stats = await told.stats(ROOT)
        for name in ("requests", "hits", "tokens_saved", "seconds_saved", "money_saved"):
            for table in ("levels", "models", "tenants"):
                parts = [one[name] for one in stats[table].values()]
                assert sum(parts) == pytest.approx(stats[name]), (table, name)
        assert stats["requests"] == 9
        assert {tier: one["hits"] for tier, one in stats["tiers"].items()} == {
            "hot": 1, "warm": 1, "cold": 1,
        }  # fmt: skip
        assert stats["tenants"]["a"]["hit_rate"] == pytest.approx(4 / 6, abs=1e-4)


async def test_a_tenant_sees_its_own_savings_and_nobody_elses() -> None:
    async with story(tenants=TENANTS) as told:
        await told.computed(2.0, "one", key=ALICE)
        await told.kept("one", key=ALICE)
        await told.computed(4.0, "two", {**HOT, "preload": True}, key=BOB)
        alice, bob = await told.stats(ALICE), await told.stats(BOB)
        assert (alice["tenant"], alice["savings"]["net"]["seconds"]) == ("a", 2.0)
        assert alice["savings"]["spent"]["warming"]["calls"] == 0
        assert alice["levels"].keys() == {"none", "response"}
        assert alice["models"].keys() == {"m"}
        assert (bob["requests"], bob["savings"]["net"]["seconds"]) == (0, -4.0)
        whole = (await told.stats(ROOT))["savings"]
        assert whole["net"]["seconds"] == 2.0 - 4.0
