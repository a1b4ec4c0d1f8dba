"""Writes that land late: what was cleared or replaced meanwhile never comes back.

Two pipelines share a file on disk or a Redis server, as two workers or two machines do.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.flights import Tasks
from gateway.store.bars import MOST_BARS
from gateway.store.base import Entry, Selector, Store, Stored, StoreError
from gateway.store.disk import DiskStore, open_database
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.redis_client import connect
from policies.keys import Principal
from tests.kit import redis_server
from tests.kit.bench import Bench, read, text_of
from tests.kit.scripted_backend import Gate, whole_answer

Another = Callable[[], Store]
"""The same place, as another process has it open."""
WARM = {"enabled": True, "tier": "warm", "cache_key": "doc"}
ANEW = {**WARM, "reuse": False}
YOUNG = {"Cache-Control": "max-age=0"}
TENANT = "default"


@pytest.fixture(params=["memory", "disk", "redis"])
async def another(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Another]:
    """A place in memory is always the same one: that of a single process."""
    here, namespace = MemoryStore("warm", max_bytes=2**20), redis_server.namespace()
    async with AsyncExitStack() as opened:

        def on_disk() -> Store:
            database = open_database(tmp_path)
            opened.push_async_callback(database.close)
            return DiskStore("warm", database, max_bytes=2**20)

        def in_redis() -> Store:
            client = connect(redis_server.shared().url, limit_s=10)
            store = RedisStore("warm", client, max_bytes=2**20, namespace=namespace)
            opened.push_async_callback(store.close)
            return store

        yield {"memory": lambda: here, "disk": on_disk, "redis": in_redis}[request.param]


class LateWrite:
    """The next write to a store passes the time limit of its caller, and lands when it is let."""

    def __init__(self, store: Store) -> None:
        self._put, self._tasks = store.put, Tasks()
        self._gate, self._done = Gate(), asyncio.Event()
        self.landed: list[Stored] = []
        store.put = self._too_late  # type: ignore[method-assign]  # the moment in question

    async def _too_late(self, entry: Entry, *, now: float) -> Stored:
        self._tasks.start(self._land(entry, now), name="a late write")
        raise StoreError("no answer in time")

    async def _land(self, entry: Entry, now: float) -> None:
        await self._gate.pass_through()
        self.landed.append(await self._put(entry, now=now))
        self._done.set()

    async def lands(self) -> None:
        await self._gate.reached()
        self._gate.open()
        await self._done.wait()


@pytest.mark.parametrize(
    "cleared",
    [
        Selector(TENANT),
        Selector(None),
        Selector(TENANT, cache_key="doc"),
        Selector(TENANT, prefix="d"),
        Selector(TENANT, tag="x"),
        Selector(TENANT, model="m"),
    ],
)
async def test_an_answer_that_lands_after_an_invalidation_elsewhere_does_not_come_back(
    another: Another, cleared: Selector
) -> None:
    ours = another()
    one, two = Bench(whole_answer("old"), store=ours), Bench(whole_answer("new"), store=another())
    late = LateWrite(ours)
    await one.ask(kv_cache={**WARM, "tags": ["x"]})
    await two.pipeline.clear(cleared)
    await late.lands()
    assert [stored.barred for stored in late.landed] == [True]
    outcome, body = await two.ask(kv_cache={**WARM, "tags": ["x"]})
    assert (outcome.level, text_of(body)) == ("none", "new")
    outcome, body = await two.ask(kv_cache={**WARM, "tags": ["x"]})
    assert (outcome.level, text_of(body)) == ("response", "new")


async def test_an_answer_that_lands_after_an_invalidation_of_something_else_is_kept(
    another: Another,
) -> None:
    ours = another()
    one, two = Bench(whole_answer("old"), store=ours), Bench(store=another())
    late = LateWrite(ours)
    await one.ask(kv_cache=WARM)
    await two.pipeline.clear(Selector(TENANT, tag="x"))
    await late.lands()
    outcome, body = await two.ask(kv_cache=WARM)
    assert (outcome.level, text_of(body)) == ("response", "old")


@pytest.mark.parametrize("older", [WARM, ANEW])
@pytest.mark.parametrize(
    ("kv_cache", "headers"),
    [(ANEW, {}), (WARM, {"Cache-Control": "no-cache"}), (WARM, YOUNG)],
)
async def test_an_older_flight_that_ends_later_never_takes_the_place_of_what_replaced_it(
    another: Another, kv_cache: dict[str, object], headers: dict[str, str], older: dict[str, object]
) -> None:
    gate = Gate()
    one = Bench([gate, *whole_answer("old")], store=another())
    two = Bench(whole_answer("new"), store=another())
    flying = asyncio.create_task(one.ask(kv_cache=older))
    await gate.reached()
    _, body = await two.ask(kv_cache=kv_cache, headers=headers)
    assert text_of(body) == "new"
    gate.open()
    assert text_of((await flying)[1]) == "old"
    for bench in (one, two):
        outcome, body = await bench.ask(kv_cache=WARM)
        assert (outcome.level, text_of(body)) == ("response", "new")


async def test_of_two_that_replace_the_same_the_one_that_began_last_stays(
    another: Another,
) -> None:
    gates = Gate(), Gate()
    benches = [
        Bench([gate, *whole_answer(text)], store=another())
        for gate, text in zip(gates, ("first", "second"), strict=True)
    ]
    flying = []
    for bench, gate in zip(benches, gates, strict=True):
        flying.append(asyncio.create_task(bench.ask(kv_cache=ANEW)))
        await gate.reached()
    for gate, task in zip(gates, flying, strict=True):  # in the order in which they began
        gate.open()
        await task
    _, body = await benches[0].ask(kv_cache=WARM)
    assert text_of(body) == "second"


async def test_a_call_that_asks_for_no_age_joins_no_flight_that_began_before_it() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer("old")], whole_answer("new"))
    flying = asyncio.create_task(bench.ask(kv_cache=WARM))
    await gate.reached()
    bench.clock.advance(5)
    young = await bench.start(kv_cache=WARM, headers=YOUNG)
    assert (young.outcome.collapsed, text_of(await read(young))) == (False, "new")
    gate.open()
    assert text_of((await flying)[1]) == "old"
    outcome, body = await bench.ask(kv_cache=WARM)
    assert (outcome.level, text_of(body)) == ("response", "new")


async def turns() -> None:
    """Let all that can be done without waiting be done."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_call_joins_a_flight_that_is_as_young_as_it_asks_for() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer("old")], whole_answer("new"))
    flying = asyncio.create_task(bench.ask(kv_cache=WARM))
    await gate.reached()
    bench.clock.advance(5)
    young = bench.start(kv_cache=WARM, headers={"Cache-Control": "max-age=60"})
    joined = asyncio.create_task(young)
    await turns()
    gate.open()
    assert text_of(await read(await joined)) == text_of((await flying)[1]) == "old"
    assert bench.runs == 1


async def test_invalidations_of_one_tenant_keep_no_answer_of_another_out_of_the_store(
    another: Another,
) -> None:
    gate = Gate()
    one, two = Bench([gate, *whole_answer("b's")], store=another()), Bench(store=another())
    tenant_b = Principal("b", trusted=True, admin=False)
    flying = asyncio.create_task(one.ask(kv_cache=WARM, principal=tenant_b))
    await gate.reached()
    for number in range(MOST_BARS + 1):
        await two.pipeline.clear(Selector("a", cache_key=str(number)))
    gate.open()
    await flying
    outcome, _ = await two.ask(kv_cache=WARM, principal=tenant_b)
    assert outcome.level == "response"


async def test_every_process_counts_the_entries_of_a_shared_tier(another: Another) -> None:
    mine, theirs = another(), another()
    bench = Bench(store=theirs)
    for text in "abc":
        await bench.ask(text, kv_cache=WARM)
    await mine.refresh()
    assert mine.fill().entries == 3
    await bench.pipeline.clear(Selector(TENANT))
    await mine.refresh()
    assert mine.fill().entries == 0
