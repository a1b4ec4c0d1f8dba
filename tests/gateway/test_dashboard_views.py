"""What is beside the counters: asked for at its own pace, never in anybody's way, no prompt in it."""

import asyncio
from typing import Any

import pytest

from gateway import dashboard_views as module
from gateway.app import Gateway
from gateway.backends.openai import OpenAIBackend
from gateway.dashboard_views import Slow, kv_use
from gateway.errors import BackendFault
from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.traffic import Traffic
from gateway.warming_service import open_warming
from policies.rules import default_rules
from tests.kit.clock import Clock
from tests.kit.service import Service, serving

SECRET = "the answer is swordfish"


class Look:
    """The sections of a running gateway, under a clock of their own."""

    def __init__(self, service: Service) -> None:
        gateway: Gateway = service.gateway
        self.clock, self.tasks = Clock(), Tasks()
        rules = default_rules()
        traffic = Traffic(places=1, clock=self.clock.monotonic)
        warming = open_warming(
            gateway, rules, traffic, now=service.clock.now, clock=self.clock.monotonic
        )
        self.jobs = warming.jobs  # as another process has them
        self.slow = Slow(
            backends=gateway.router.backends,
            models={"up": ["/models/m"]},
            health=gateway.health,
            engines=None,
            jobs=self.jobs,
            contexts=gateway.contexts.held,
            conversations=gateway.conversations,
            rules=rules,
            tasks=self.tasks,
            now=service.clock.now,
            clock=self.clock.monotonic,
        )

    async def sections(self) -> dict[str, Any]:
        """What is known once all that was due has been looked at."""
        self.clock.advance(60)
        await self.slow.sections()
        await asyncio.gather(*self.tasks._running, return_exceptions=True)
        return await self.slow.sections()


async def test_each_section_says_what_is_held() -> None:
    async with serving() as service:
        wish = {"enabled": True, "cache_key": "talk", "user": "ann"}
        for _ in range(2):
            await service.chat(wish, messages=[{"role": "user", "content": SECRET}])
        context = {"base_prompt": SECRET, "allowed_users": ["ann"], "ttl": 100}
        await service.send("PUT", "/v1/cache/contexts/handbook", context)
        job = await service.send("POST", "/v1/cache/warm", {"questions": [SECRET]})
        await service.settled()
        look = Look(service)
        said = await look.sections()
        assert SECRET not in str(said)
        assert said["backends"]["data"] == [
            {
                "name": "up",
                "models": ["m"],
                "state": "up",
                "engine": None,
                "kv": None,
                "error": None,
            }
        ]
        (shown,) = said["contexts"]["data"]
        assert (shown["id"], shown["allowed_users"], shown["ttl_left_s"]) == ("handbook", 1, 100)
        (conversation,) = said["conversations"]["data"]
        assert (conversation["id"], conversation["hits"]) == ("talk", 1)
        (shown,) = said["jobs"]["data"]
        assert (shown["id"], shown["tenant"]) == (job.body["id"], "default")
        assert shown["counts"]["total"] == 1
        assert repr(look.slow) == "<Slow backends contexts conversations jobs>"


async def test_a_job_that_has_ended_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as service:
        job = await service.send("POST", "/v1/cache/warm", {"questions": ["One?"]})
        path = f"/v1/cache/warm/{job.body['id']}"
        await service.send("GET", path, headers={"Accept": "text/event-stream"})
        look = Look(service)
        assert (await look.sections())["jobs"]["data"][0]["status"] == "done"

        async def never(*_: object) -> None:
            raise AssertionError("read again")

        monkeypatch.setattr(look.jobs, "find", never)
        assert (await look.sections())["jobs"]["data"][0]["status"] == "done"


async def test_what_fails_keeps_its_last_numbers_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as service:
        look = Look(service)
        before = await look.sections()

        async def down(*_: object) -> None:
            raise StoreError("the store is down")

        async def broken(*_: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(look.jobs, "names", down)
        monkeypatch.setattr(look.slow._contexts, "names", broken)
        said = await look.sections()
        assert said["jobs"] == {**before["jobs"], "error": "the store is down"}
        assert said["contexts"]["error"] == "the gateway failed; its log has the reason"
        assert said["conversations"] == before["conversations"]


async def test_what_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.02)
    monkeypatch.setattr(module, "FIRST_S", 0.0)
    never = asyncio.Event()

    async def silent(*_: object) -> None:
        await never.wait()

    async with serving() as service:
        look = Look(service)
        monkeypatch.setattr(OpenAIBackend, "kv_stats", silent)
        monkeypatch.setattr(look.jobs, "names", silent)
        assert not {"jobs", "backends"} & (await look.slow.sections()).keys()
        said = await look.sections()
        assert said["jobs"] == {"data": [], "error": "it took too long"}
        assert said["backends"]["data"][0]["error"] == "backend_timeout"


async def test_a_backend_that_refuses_is_shown_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuses(_: OpenAIBackend) -> None:
        raise BackendFault("no", code="backend_unreachable")

    monkeypatch.setattr(OpenAIBackend, "kv_stats", refuses)
    async with serving() as service:
        (shown,) = (await Look(service).sections())["backends"]["data"]
        assert (shown["kv"], shown["error"]) == (None, "backend_unreachable")


def test_the_use_of_a_kv_cache_is_read_from_what_an_engine_says() -> None:
    said = {
        "blocks": {"total": 10, "free": 4, "block_tokens": 32},
        "sequences": {"running": 2, "waiting": 1},
        "kv_used_bytes": 4096,
        "hit_rate": 0.5,
        "evictions": 3,
        "tiers": {
            "hot": {"on": True, "bytes": 1, "max_bytes": 2},
            "warm": {"on": True, "bytes": 3, "max_bytes": 4},
            "cold": {"on": False},
            "prefill_tokens_per_s": 5.0,
        },
    }
    assert kv_use(said) == {
        "capacity_tokens": 320, "held_tokens": 192, "used_bytes": 4096, "hit_rate": 0.5,
        "evictions": 3, "running": 2, "waiting": 1, "below": {"warm": {"bytes": 3, "max_bytes": 4}},
    }  # fmt: skip


@pytest.mark.parametrize("said", [{}, {"blocks": 5}, {"blocks": {"total": "many"}}])
def test_what_an_engine_does_not_say_is_not_known(said: dict[str, Any]) -> None:
    assert kv_use(said).pop("below") == {}
    assert {name for name, value in kv_use(said).items() if value is not None} == {"below"}
