"""``POST /v1/cache/explain``: what it foretells is what happens, and asking changes nothing."""

import asyncio
from typing import Any

import orjson
import pytest

from gateway.recall import Recall
from policies.plan import Plan
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, error_reply
from tests.kit.service import QUESTION, Answer, Service, serving

ALICE, BOB = "kv-alice-3f1c7a90b2d84e65", "kv-bob-3f1c7a90b2d84e65"
WISH = {"enabled": True, "cache_key": "faq:one"}


async def explained(
    service: Service, kv_cache: Any = WISH, *, query: str = "", **more: Any
) -> Answer:
    key, headers = more.pop("key", None), more.pop("headers", None)
    body = {"model": "m", "messages": QUESTION, "kv_cache": kv_cache, **more}
    return await service.send("POST", f"/v1/cache/explain{query}", body, key=key, headers=headers)


async def counted(service: Service) -> tuple[Any, bytes, Any]:
    """Everything that counts something; not the entries' ages."""
    await service.settled()
    stats = (await service.send("GET", "/v1/cache/stats")).body
    conversations = (await service.send("GET", "/v1/cache/conversations")).body
    return stats, (await service.send("GET", "/metrics")).raw, conversations


async def test_what_it_says_of_a_call_is_what_happens() -> None:
    async with serving() as service:
        for verdict, level in (("computes", "none"), ("hit", "response")):
            told = (await explained(service)).body
            real = await service.chat(WISH)
            await service.settled()
            assert told["verdict"] == verdict
            assert real.headers["X-Cache-Level"] == level
            assert told["plan"]["key"] == real.headers["X-Cache-Key"]
            assert told["plan"]["tier"] == real.headers["X-Cache-Tier"] == "hot"


async def test_the_reasons_are_those_of_the_debug_line() -> None:
    async with serving() as service:
        headers = {"X-Cache-TTL": "60", "X-Cache-Strange": "1"}
        told = (await explained(service, headers=headers)).body
        real = await service.chat({**WISH, "debug": True}, headers=headers)
        debug = orjson.loads(real.headers["X-Cache-Debug"])
        assert [list(reason.values()) for reason in told["plan"]["reasons"]] == debug["decisions"]
        assert told["plan"]["unknown"] == debug["unknown"] == ["X-Cache-Strange"]
        assert (told["plan"]["ttl_s"], told["plan"]["store"]) == (60.0, True)
        assert real.headers["X-Cache-Miss-Reason"] == told["response"]["miss_reason"] == "cold"


async def test_asking_changes_no_counter_and_reads_no_entry() -> None:
    async with serving() as service:
        await service.chat(WISH)
        before = await counted(service)
        for kv_cache in (WISH, {"enabled": True}, False, {"enabled": True, "reuse": False}):
            assert (await explained(service, kv_cache)).status == 200
        assert await counted(service) == before
        assert service.upstream.calls == 1
        key = (await service.send("GET", "/v1/cache/entries")).body["data"][0]["key"]
        entry = await service.send("GET", f"/v1/cache/entries/{key}?response=false")
        assert entry.body["hits"] == 0


async def test_a_stale_answer_and_an_expired_one_are_told_apart() -> None:
    async with serving() as service:
        await service.chat({**WISH, "ttl": 100})
        told: Any = None
        for seconds, state, verdict in (
            (99, "fresh", "hit"),
            (11, "stale", "stale"),
            (40, "stale", "computes"),
            (400, "expired", "computes"),
        ):
            service.clock.advance(seconds)
            told = (await explained(service)).body
            assert (told["response"]["state"], told["verdict"]) == (state, verdict)
            assert told["response"]["served"] == (verdict != "computes")
        assert told["response"]["miss_reason"] == "expired"


async def test_a_miss_names_the_first_difference() -> None:
    async with serving() as service:
        await service.chat(WISH)
        other = [{"role": "user", "content": "What is arsked?"}]
        told = (await explained(service, messages=other)).body
        assert told["response"]["miss_reason"] == "fingerprint"
        assert told["response"]["difference"] == {
            "field": "messages[0].content", "message": 0, "character": 9,
        }  # fmt: skip


async def test_a_call_in_the_air_and_one_that_wants_no_computing() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(Reply((gate,)))) as service:
        only = {"Cache-Control": "only-if-cached"}
        assert (await explained(service, headers=only)).body["verdict"] == "refused"
        assert (await service.chat(WISH, headers=only)).status == 504
        flying = asyncio.create_task(service.chat(WISH))
        await gate.reached()
        told = (await explained(service)).body
        assert (told["verdict"], told["response"]["in_flight"]) == ("joins", True)
        flying.cancel()


async def test_a_remembered_refusal_is_told() -> None:
    async with serving(upstream=ScriptedUpstream(error_reply(400, "no"))) as service:
        await service.chat(WISH)
        await service.settled()
        told = (await explained(service)).body
        assert (told["verdict"], told["response"]["status"]) == ("negative", 400)


async def test_what_the_call_would_be_refused_for_is_said_as_the_call_is_told() -> None:
    async with serving() as service:
        wishes: list[dict[str, Any]] = [
            {"kv_cache": {"ttl": "soon"}},
            {"kv_cache": True, "model": "gone"},
            {"kv_cache": {"enabled": True, "shared_context": "nowhere"}},
            {"kv_cache": True, "messages": []},
        ]
        for wish in wishes:
            told = await explained(service, **wish)
            real = await service.chat(**wish)
            assert (told.status, told.body) == (real.status, real.body)
            assert told.status >= 400
        refused = await explained(service, query="?endpoint=chats")
        assert (refused.status, refused.error["param"]) == (400, "endpoint")


async def test_a_tenant_is_told_of_its_own() -> None:
    tenants = [{"name": "a", "api_keys": [ALICE]}, {"name": "b", "api_keys": [BOB]}]
    async with serving(tenants=tenants) as service:
        await service.chat(WISH, key=ALICE)
        assert (await explained(service, key=ALICE)).body["verdict"] == "hit"
        told = (await explained(service, key=BOB)).body
        assert (told["verdict"], told["response"]["miss_reason"]) == ("computes", "cold")
        assert (await explained(service)).status == 401


async def test_a_context_that_the_call_would_make_is_not_made() -> None:
    async with serving() as service:
        messages = [{"role": "system", "content": "You review."}, *QUESTION]
        headers = {"X-Cache-Shared": "true", "X-Cache-ID": "team"}
        told = (await explained(service, True, headers=headers, messages=messages)).body
        assert (told["plan"]["scope"], told["plan"]["context"]) == ("shared", "team")
        assert (await service.send("GET", "/v1/cache/contexts")).body["data"] == []
        await service.chat(True, headers=headers, messages=messages)
        await service.settled()
        before = (await service.send("GET", "/v1/cache/contexts/team")).body
        told = (await explained(service, True, headers=headers, messages=messages)).body
        assert told["verdict"] == "hit"
        await service.settled()
        assert (await service.send("GET", "/v1/cache/contexts/team")).body == before
        none = {**headers, "X-Cache-ID": "other", "X-Cache-TTL": "0"}
        told = (await explained(service, True, headers=none, messages=messages)).body
        assert (told["plan"]["enabled"], told["plan"]["scope"]) == (False, "tenant")


@pytest.mark.parametrize(
    ("asked", "verdict", "states"),
    [
        (["a", "b"], "hit", {"fresh": 2}),
        (["a", "c", "a"], "partial", {"fresh": 1, "absent": 1}),
        (["c"], "computes", {"absent": 1}),
    ],
)
async def test_of_a_list_of_inputs_each_is_looked_up(
    asked: list[str], verdict: str, states: dict[str, int]
) -> None:
    async with serving() as service:
        body = {"model": "m", "input": ["a", "b"], "kv_cache": True}
        assert (await service.send("POST", "/v1/embeddings", body)).status == 200
        await service.settled()
        told = (await service.send("POST", "/v1/cache/explain", {**body, "input": asked})).body
        assert (told["verdict"], told["inputs"]["states"]) == (verdict, states)
        assert told["inputs"]["different"] == len(set(asked))


async def test_inputs_of_a_list_are_not_compared_with_what_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[Plan] = []

    def nearest(_: Recall, plan: Plan) -> None:
        compared.append(plan)

    monkeypatch.setattr(Recall, "nearest", nearest)
    async with serving() as service:
        body = {"model": "m", "input": [f"{number}" for number in range(50)], "kv_cache": True}
        told = (await service.send("POST", "/v1/cache/explain", body)).body
    assert told["inputs"] == {"different": 50, "states": {"absent": 50}}
    assert len(compared) == 1  # the list as a whole, which says why
