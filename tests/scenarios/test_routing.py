"""Several upstreams with one model, and a queue before one that takes few calls at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, Seen, well_behaved
from tests.kit.service import Answer, Service, serving

LONG = "All about herons, which stand in the shallow water. " * 60
KEYS = {"acme": "key-of-acme-which-is-long", "other": "key-of-other-which-is-long"}


@dataclass
class Pair:
    """A gateway before two upstreams."""

    service: Service
    two: ScriptedUpstream

    @property
    def calls(self) -> tuple[int, int]:
        return self.service.upstream.calls, self.two.calls


@asynccontextmanager
async def pair(**config: Any) -> AsyncIterator[Pair]:
    async with ScriptedUpstream() as one, ScriptedUpstream() as two:
        backends = [
            {"name": name, "base_url": upstream.url, "models": ["m"]}
            for name, upstream in (("one", one), ("two", two))
        ]
        async with serving(backends=backends, **config) as service:
            yield Pair(replace(service, upstream=one), two)


def said(number: int, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": f"{number}: {LONG}"}]
    for turn in range(turns):
        messages.append({"role": "assistant", "content": "So it is."})
        messages.append({"role": "user", "content": f"And then, {turn}?"})
    return messages


async def test_a_conversation_stays_with_the_upstream_that_knows_it() -> None:
    async with pair() as it:
        for turns in range(3):
            for number in (0, 1, 2, 3)[:: -1 if turns % 2 else 1]:
                await it.service.chat(messages=said(number, turns))
        lines = it.service.lines
    homes: dict[str, set[str]] = {}
    for seen, name in [(seen, "one") for seen in it.service.upstream.seen] + [
        (seen, "two") for seen in it.two.seen
    ]:
        homes.setdefault(seen.body["messages"][0]["content"][:2], set()).add(name)
    assert all(len(names) == 1 for names in homes.values())
    assert it.calls == (6, 6)
    assert sorted(line["backend"] for line in lines) == ["one"] * 6 + ["two"] * 6


async def test_what_the_store_answers_asks_nobody_and_counts_for_nobody() -> None:
    async with pair(routing={"strategy": "round_robin"}) as it:
        await it.service.chat({"enabled": True})
        for _ in range(3):
            answer = await it.service.chat({"enabled": True})
            assert answer.headers["X-Cache-Level"] == "response"
        await it.service.chat({"enabled": True}, temperature=0.5)
    assert it.calls == (1, 1)


@pytest.mark.parametrize("strategy", ["round_robin", "least_busy"])
async def test_other_strategies_spread_equal_prompts(strategy: str) -> None:
    async with pair(routing={"strategy": strategy}) as it:
        for _ in range(4):
            await it.service.chat(messages=said(0, 0))
    assert it.calls == (2, 2)


async def test_both_stand_in_the_statistics() -> None:
    async with pair() as it:
        stats = (await it.service.send("GET", "/v1/cache/stats")).body
    assert list(stats["backends"]) == ["one", "two"]


@asynccontextmanager
async def crowded(gate: Gate, *, max_waiting: int = 1) -> AsyncIterator[Service]:
    """A gateway before an upstream that takes one call at once; one may wait of each tenant."""
    upstream = ScriptedUpstream()

    def gated(seen: Seen) -> Reply:
        reply = well_behaved(seen)
        return replace(reply, steps=(gate, *reply.steps))

    upstream.otherwise = gated
    tenants = [{"name": name, "api_keys": [key]} for name, key in KEYS.items()]
    async with serving(
        upstream=upstream, max_concurrency=1, max_waiting=max_waiting, tenants=tenants
    ) as it:
        yield it


async def waiting(service: Service, count: int) -> None:
    """Until so many calls wait for a place."""
    (backend,) = service.gateway.router.backends
    lanes: Any = getattr(backend, "_lanes", None)
    while f"{count} waiting" not in repr(lanes):  # noqa: ASYNC110 - turns of the loop, not time
        await asyncio.sleep(0)


def ask(service: Service, text: str, tenant: str = "acme", **wish: Any) -> "asyncio.Task[Answer]":
    messages = [{"role": "user", "content": text}]
    kv_cache = {"enabled": True, **wish} if wish else None
    return asyncio.create_task(service.chat(kv_cache, messages=messages, key=KEYS[tenant]))


async def test_over_the_bound_a_tenant_is_told_to_come_back_and_another_is_not() -> None:
    gate = Gate()
    async with crowded(gate) as service:
        tasks = [ask(service, "computed")]
        await service.upstream.called(1)
        tasks.append(ask(service, "waits"))
        await waiting(service, 1)
        refused = await ask(service, "too many")
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.error["type"] == "rate_limit_error"
        assert int(refused.headers["Retry-After"]) >= 1
        tasks.append(ask(service, "of another", "other"))
        await waiting(service, 2)
        gate.open()
        assert [(await task).status for task in tasks] == [200, 200, 200]
        assert service.upstream.calls == 3


async def test_a_person_who_asks_what_a_batch_waits_for_does_not_wait_behind_the_batch() -> None:
    gate = Gate()
    async with crowded(gate, max_waiting=9) as service:
        first = ask(service, "computed")
        await service.upstream.called(1)
        batch = [ask(service, f"batch {n}", batch_mode=True) for n in range(3)]
        await waiting(service, 3)
        joined = ask(service, "batch 2", batch_mode=False)
        await service.readers(4)
        await waiting(service, 3)  # its place is asked for once, in the more urgent lane
        gate.open()
        told = await asyncio.gather(first, joined, *batch)
        assert {answer.status for answer in told} == {200}
        order = [seen.body["messages"][-1]["content"] for seen in service.upstream.seen]
        assert order == ["computed", "batch 2", "batch 0", "batch 1"]
        assert told[1].headers["Cache-Status"].count("collapsed") == 0
        assert "collapsed" in told[-1].headers["Cache-Status"]


async def test_a_client_that_goes_away_while_it_waits_leaves_its_place() -> None:
    gate = Gate()
    async with crowded(gate) as service:
        first = ask(service, "computed")
        await service.upstream.called(1)
        gone = ask(service, "goes away")
        await waiting(service, 1)
        gone.cancel()
        await waiting(service, 0)
        stays = ask(service, "stays")
        await waiting(service, 1)
        gate.open()
        assert ((await first).status, (await stays).status) == (200, 200)
        assert service.upstream.calls == 2
