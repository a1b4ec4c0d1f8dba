"""Foreseeing: the store that fails, the engine that knows, the backends in their order."""

from typing import Any

from gateway.store.base import StoreError
from gateway.store.tiers import Tiers
from tests.kit.fake_kv import fake_kv_engine
from tests.kit.service import QUESTION, serving

ASKED = {"model": "m", "messages": QUESTION, "kv_cache": {"enabled": True}}
EXPLAIN = "/v1/cache/explain"
MISSED = {"reason": "diverged", "at_token": 32}
KNOWN = {
    "backend": "eng", "tokens": 40, "hit_tokens": 32, "tiers": {"hot": 32}, "missed": MISSED,
}  # fmt: skip


async def test_a_store_that_fails_is_told(monkeypatch: Any) -> None:
    async def scan(*_: Any, **__: Any) -> Any:
        raise StoreError("down")

    async with serving() as service:
        monkeypatch.setattr(Tiers, "scan", scan)
        told = (await service.send("POST", EXPLAIN, ASKED)).body
        assert (told["response"]["state"], told["verdict"]) == ("store_error", "computes")


async def test_the_engine_says_what_it_would_reuse() -> None:
    async with fake_kv_engine(tokens=40, hit_tokens=32) as engine:
        wish = {"name": "eng", "base_url": engine.url, "models": ["m"], "dialect": "kvgate"}
        async with serving(backends=[wish]) as service:
            told = (await service.send("POST", EXPLAIN, ASKED)).body
            assert told["kv"] == KNOWN
            (lookup,) = engine.asked
            assert lookup["messages"] == QUESTION
            assert len(lookup["salt"]) == 64
            no_store = {"Cache-Control": "no-store"}
            told = (await service.send("POST", EXPLAIN, ASKED, headers=no_store)).body
            assert (told["kv"], told["plan"]["reuse_prefix"]) == (None, False)
            engine.status = 500
            assert (await service.send("POST", EXPLAIN, ASKED)).body["kv"] is None


async def test_backends_are_named_in_the_order_of_asking_and_their_turn_is_not_taken() -> None:
    wishes = [
        {"name": name, "base_url": "http://127.0.0.1:9/v1", "models": [model]}
        for name, model in (("one", "m"), ("two", "m"), ("spare", "other"))
    ]
    async with serving(
        backends=wishes, routing={"strategy": "round_robin"}, fallbacks={"m": ["other"]}
    ) as service:
        told: Any = None
        for _ in range(3):
            told = (await service.send("POST", EXPLAIN, ASKED)).body
            assert [place["backend"] for place in told["backends"]] == ["one", "two", "spare"]
            assert [place["model"] for place in told["backends"]] == ["m", "m", "other"]
            assert {place["state"] for place in told["backends"]} == {"up"}
        assert told["kv"] is None


async def test_an_entry_tells_what_made_it_and_what_the_engine_has_of_its_prompt() -> None:
    async with fake_kv_engine(tokens=40, hit_tokens=32) as engine:
        wish = {"name": "eng", "base_url": engine.url, "models": ["m"], "dialect": "kvgate"}
        async with serving(backends=[wish]) as service:
            for _ in range(3):
                await service.chat({"enabled": True, "tier": "hot"})
                await service.settled()
            key = (await service.send("GET", "/v1/cache/entries")).body["data"][0]["key"]
            path = f"/v1/cache/entries/{key}?response=false"
            told = (await service.send("GET", path)).body
            assert (told["hits"], told["kv"]) == (2, None)
            assert {"field": "tier", "value": "hot", "because": "body kv_cache.tier"} in told[
                "made_by"
            ]["reasons"]
            told = (await service.send("GET", f"{path}&kv=true")).body
            assert told["kv"] == KNOWN
            assert engine.asked[-1]["messages"] == QUESTION
            await service.chat({"enabled": True, "cache_key": "half", "context_aware": False})
            page = await service.send("GET", "/v1/cache/entries?prefix=half")
            half = page.body["data"][0]["key"]
            told = (await service.send("GET", f"/v1/cache/entries/{half}?kv=true")).body
            assert told["kv"] is None
