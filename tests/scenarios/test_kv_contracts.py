"""The gateway's plan and the engine's KV, from end to end: what is wanted, what holds, what is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit.engine_here import BLOCK, EngineHere, engine_here
from tests.kit.service import Answer, Service, serving
from tests.kit.tiny_model import TinyLlama

OPS, ANN, BOB, EVE = (f"kv-{name}-8b1f40c2e7d95a36" for name in ("ops", "ann", "bob", "eve"))
TENANTS: list[dict[str, Any]] = [
    {"name": "acme", "api_keys": [OPS], "admin": True},
    {"name": "acme", "api_keys": [ANN], "user": "ann"},
    {"name": "acme", "api_keys": [BOB], "user": "bob"},
    {"name": "other", "api_keys": [EVE], "user": "eve"},
]
BASE = {"role": "system", "content": "You review code with care and patience, line by line. " * 3}
SECRET = "My password is swordfish, and this is what I would like to know about it, please."
OPEN = {"enabled": True, "scope": "tenant"}
BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * BLOCK  # keys and values, layers, heads, their size, float32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def company(model: Path, **options: Any) -> AsyncIterator[tuple[Service, EngineHere]]:
    async with (
        engine_here(model, **options) as engine,
        serving(backends=[engine.backend], tenants=TENANTS) as service,
    ):
        yield service, engine


async def ask(
    service: Service, text: str, *, key: str = ANN, kv_cache: Any = OPEN, **more: Any
) -> Answer:
    messages = more.pop("messages", [{"role": "user", "content": text}])
    answer = await service.chat(
        {**kv_cache, "reuse": False},  # the answer is computed each time; its prompt's KV is reused
        key=key,
        messages=messages,
        max_tokens=4,
        temperature=0,
        logprobs=True,
        **more,
    )
    assert answer.status == 200, answer.raw
    return answer


def hits(answer: Answer) -> int:
    found = answer.body["usage"]["prompt_cache_hit_tokens"]
    assert isinstance(found, int)
    return found


def said(answer: Answer) -> Any:
    """The answer with every bit that its probabilities show."""
    return answer.body["choices"][0]


async def test_a_receipt_reaches_who_wants_an_explanation_and_nobody_else(model: Path) -> None:
    async with company(model) as (service, _):
        plain = await ask(service, "How long is a piece of string, roughly?")
        assert "kv_receipt" not in plain.body
        debug = {**OPEN, "debug": True}
        again = await ask(service, "How long is a piece of string, roughly?", kv_cache=debug)
        receipt = again.body["kv_receipt"]
        assert receipt["hot"] == hits(again) > 0
        assert receipt["hot"] + receipt["computed"] == again.body["usage"]["prompt_tokens"]
        assert receipt["saved_ms"] > 0
        assert "missed" not in receipt
        other = await ask(service, "How long is a piece of rope, then?", kv_cache=debug)
        missed = other.body["kv_receipt"]["missed"]
        assert missed["reason"] == "diverged"
        assert missed["at_token"] > hits(other)
        streamed = await ask(
            service,
            "How long is a piece of rope, then?",
            kv_cache=debug,
            stream=True,
            stream_options={"include_usage": True},
        )
        *chunks, last = streamed.chunks
        assert last["kv_receipt"]["hot"] > 0
        assert not any("kv_receipt" in chunk for chunk in chunks)
        stored = await service.chat(
            debug,
            key=ANN,
            messages=[{"role": "user", "content": "How long is a piece of rope, then?"}],
            max_tokens=4,
            temperature=0,
            logprobs=True,
        )
        assert stored.headers["X-Cache-Level"] == "response"
        assert "kv_receipt" not in stored.body


async def test_evicted_expired_invalidated_and_other_scopes_are_told_apart(model: Path) -> None:
    async with company(model, kv_memory=12 * BLOCK_BYTES) as (service, engine):
        assert (await engine.stats())["kv_bytes"] == 12 * BLOCK_BYTES
        debug = {**OPEN, "debug": True}

        async def why(text: str, **kv_cache: Any) -> Any:
            answer = await ask(service, text, kv_cache={**debug, **kv_cache})
            return answer.body["kv_receipt"].get("missed")

        first = "a" * 64
        assert (await why(first))["reason"] == "never_seen"
        elsewhere = await why(first, scope="user")
        assert elsewhere["reason"] == "other_salt"
        for letter in "bcd":
            await why(letter * 64)
        evicted = await why(first)
        assert (evicted["reason"], evicted["cause"]) == ("evicted", "capacity")
        assert evicted["ago_s"] >= 0
        await engine.kv("invalidate", all=True)
        assert (await why(first))["reason"] == "invalidated"
        assert (await why("hi"))["reason"] in {"below_one_block", "diverged"}
        counted = (await engine.stats())["missed"]
        assert counted["evicted"] >= 1
        assert counted["other_salt"] == 1


async def test_what_the_plan_wants_of_the_kv_is_what_the_engine_says_holds(model: Path) -> None:
    async with company(model) as (service, engine):
        question = [{"role": "user", "content": "What holds of this prompt by now, and how long?"}]
        await service.chat(
            {"enabled": True}, key=ANN, messages=question, max_tokens=2, headers={
                "X-Cache-Priority": "high", "X-Cache-TTL": "900", "X-Cache-Tier": "hot",
            },
        )  # fmt: skip
        entries = await engine.service.engine.ask(
            lambda scheduler: list(scheduler.index._entries.values())
        )
        salts = sorted({entry.salt for entry in entries})
        assert len(salts) == 1
        kept = await engine.kv("retain", messages=question, salt=salts[0])
        (run,) = kept["runs"]
        assert (run["priority"], run["floor"], run["pinned"]) == ("high", "warm", False)
        assert 800 < run["ttl_left_s"] <= 900
        pinned = await engine.kv("retain", messages=question, salt=salts[0], pin=True)
        assert pinned["pinned_tokens"] == kept["held_tokens"] > 0
        assert (await engine.stats())["blocks"]["pinned"] * BLOCK == pinned["pinned_tokens"]


async def test_a_context_is_kept_once_and_what_its_users_ask_is_their_own(model: Path) -> None:
    """A probe for another's question finds the base and not one block more."""
    async with company(model) as (service, engine):
        made = await service.send(
            "PUT",
            "/v1/cache/contexts/team",
            {"base_messages": [BASE], "allowed_users": ["ann", "bob"]},
            key=OPS,
        )
        assert made.status == 201, made.raw
        base_blocks = (await engine.stats())["blocks"]["cached"]
        base_tokens = base_blocks * BLOCK
        assert base_blocks >= 4
        named = {"enabled": True, "shared_context": "team"}

        first = await ask(service, SECRET, key=ANN, kv_cache=named)
        assert hits(first) == base_tokens
        own = (await engine.stats())["blocks"]["cached"] - base_blocks
        assert own >= 2
        probe = await ask(service, SECRET, key=BOB, kv_cache={**named, "debug": True})
        assert hits(probe) == base_tokens
        missed = probe.body["kv_receipt"]["missed"]
        assert missed == {"reason": "never_seen", "at_token": base_tokens}
        again = await ask(service, SECRET, key=ANN, kv_cache=named)
        assert hits(again) > base_tokens
        cached = (await engine.stats())["blocks"]["cached"]
        assert cached == base_blocks + 2 * own, "the base once, each question for each user"

        whole = [BASE, {"role": "user", "content": SECRET}]
        cold = await ask(service, "", messages=whole, kv_cache={"enabled": False}, key=EVE)
        assert hits(cold) == 0, "another tenant finds nothing"
        outside = await ask(service, "", messages=whole, kv_cache={**OPEN, "scope": "user"})
        assert hits(outside) == 0, "nor does a member that does not ask under it"
        assert said(first) == said(probe) == said(again) == said(cold) == said(outside)
        refused = await service.chat(named, key=EVE, messages=whole)
        assert refused.status == 404
        await service.send("DELETE", "/v1/cache/contexts/team", key=OPS)
        stats = await engine.stats()
        assert stats["invalidated_blocks"] == cached


async def test_a_system_prompt_that_goes_on_keeps_its_rest_to_its_user(model: Path) -> None:
    """The call's first message begins with the base and goes on: only the base is the context's."""
    async with company(model) as (service, engine):
        body = {"base_messages": [BASE], "allowed_users": ["ann", "bob"]}
        await service.send("PUT", "/v1/cache/contexts/team", body, key=OPS)
        base_tokens = (await engine.stats())["blocks"]["cached"] * BLOCK
        longer = {**BASE, "content": BASE["content"] + SECRET * 2}
        whole = [longer, {"role": "user", "content": "Go on."}]
        named = {"enabled": True, "shared_context": "team"}
        first = await ask(service, "", messages=whole, key=ANN, kv_cache=named)
        assert base_tokens - BLOCK <= hits(first) <= base_tokens
        probe = await ask(service, "", messages=whole, key=BOB, kv_cache=named)
        assert hits(probe) == hits(first)
        again = await ask(service, "", messages=whole, key=ANN, kv_cache=named)
        assert hits(again) > base_tokens
        assert said(first) == said(probe) == said(again)


async def test_what_a_conversation_has_left_behind_goes_before_anything_else(model: Path) -> None:
    """A client that drops its oldest messages: the long beginning of turn 1 is nobody's any more."""
    async with company(model, kv_memory=28 * BLOCK_BYTES) as (service, engine):
        talk = {**OPEN, "cache_key": "talk-7"}
        old = [{"role": "user", "content": "o" * 90}, {"role": "assistant", "content": "p" * 40}]
        asked = {"role": "user", "content": "What did I want to know, and why?"}
        await ask(service, "x" * 70, key=EVE, kv_cache=OPEN)  # the longest unused
        await ask(service, "", messages=[BASE, *old, asked], kv_cache=talk)
        then = [BASE, asked, {"role": "assistant", "content": "This."}, {**asked, "content": "Oh?"}]
        await ask(service, "", messages=then, kv_cache=talk)
        before = await engine.stats()
        await ask(service, "y" * 60, kv_cache=OPEN)
        stats = await engine.stats()
        assert stats["evicted_by"]["superseded"] > before["evicted_by"].get("superseded", 0)
        assert "capacity" not in stats["evicted_by"]
        assert hits(await ask(service, "x" * 70, key=EVE, kv_cache=OPEN)) > 0
        assert hits(await ask(service, "", messages=then, kv_cache=talk)) > 100


async def test_what_went_to_disk_is_looked_up_and_told(model: Path, tmp_path: Path) -> None:
    disk: dict[str, Any] = {"kv_disk_path": str(tmp_path), "kv_disk_max": 1 << 24}
    async with engine_here(model, kv_memory=12 * BLOCK_BYTES, **disk) as engine:
        question = "q" * 64
        prompt = {"messages": [{"role": "user", "content": question}]}
        hot = (await engine.chat(question)) and await engine.kv("lookup", **prompt)
        assert hot["tiers"]["hot"] == hot["hit_tokens"] > 0
        for letter in "abcd":
            await engine.chat(letter * 64)
        went = await engine.kv("lookup", **prompt)
        assert went["tiers"]["cold"] > 0
        kept = await engine.kv("retain", **prompt)
        held = kept["held_tokens"] + kept["below_tokens"]["cold"]
        assert held >= went["hit_tokens"] - BLOCK  # it is asked without the answer's opening
        receipt = (await engine.chat(question))["kv_receipt"]
        # it depends on this machine which way was cheaper
        assert receipt["cold"] > 0 or receipt["missed"]["reason"] == "declined"
        assert bool(receipt["cold"]) == bool(receipt["moved_bytes"])
        async with engine.session.get(f"{engine.url}/kv/events?limit=10000") as response:
            told = await response.json()
        assert {"stored", "evicted", "moved"} <= {event["kind"] for event in told["events"]}
        assert (await engine.kv("invalidate", **prompt))["tokens"] >= went["hit_tokens"]
        assert (await engine.kv("lookup", **prompt))["hit_tokens"] == 0


async def test_a_tenant_over_its_quota_costs_itself_and_nobody_else(model: Path) -> None:
    quota = 2 * BLOCK_BYTES
    tenants: list[Any] = [{**TENANTS[0], "kv_max_bytes": quota}, *TENANTS[1:]]
    async with (
        engine_here(model) as engine,
        serving(backends=[engine.backend], tenants=tenants) as service,
    ):
        await ask(service, "z" * 64, key=EVE)
        others = (await engine.stats())["blocks"]["cached"]
        for letter in "abc":
            await ask(service, letter * 64, key=ANN)
        stats = await engine.stats()
        assert stats["blocks"]["cached"] == others + 2
        assert set(stats["evicted_by"]) <= {"quota"}
        assert hits(await ask(service, "z" * 64, key=EVE)) > 0
