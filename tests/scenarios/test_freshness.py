"""How long an answer is good, what stands in for it, and what is remembered of a failure."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.chunks import Whole
from gateway.errors import BackendFault, ClientFault
from gateway.pipeline import Flown, Kept
from gateway.store.base import Entry, Selector, Store, Stored
from gateway.store.disk import DiskStore, open_database
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.redis_client import connect
from tests.kit import redis_server
from tests.kit.bench import HOT, RULES, Bench, read, text_of
from tests.kit.scripted_backend import (
    Gate,
    Script,
    body_of,
    completed,
    delta,
    failed,
    opening,
    whole_answer,
)


async def test_past_its_time_an_answer_is_computed_anew() -> None:
    bench = Bench(whole_answer("old"), whole_answer("new"))
    await bench.ask()
    bench.clock.advance(1801)
    outcome, body = await bench.ask()
    assert (outcome.level, outcome.miss_reason, outcome.forwarded) == ("none", "expired", "stale")
    assert text_of(body) == "new"


async def test_max_age_asks_for_a_younger_answer() -> None:
    bench = Bench(whole_answer("old"), whole_answer("new"))
    await bench.ask()
    bench.clock.advance(60)
    outcome, body = await bench.ask(headers={"Cache-Control": "max-age=30"})
    assert (outcome.level, text_of(body)) == ("none", "new")
    outcome, body = await bench.ask()
    assert (outcome.age_s, text_of(body)) == (0, "new")


async def test_a_stale_answer_is_served_while_one_flight_computes_it_anew() -> None:
    gate = Gate()
    bench = Bench(whole_answer("old"), [gate, *whole_answer("new")])
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(310)
    for _ in range(3):
        answer = await bench.start(kv_cache=HOT)
        assert isinstance(answer, Kept)
        assert (answer.outcome.stale, answer.outcome.level) == (True, "response")
        assert answer.outcome.ttl_left_s == -10
        assert text_of(await read(answer)) == "old"
        await gate.reached()
    assert bench.runs == 2
    gate.open()
    await bench.settled()
    outcome, body = await bench.ask(kv_cache=HOT)
    assert (outcome.stale, outcome.age_s, text_of(body), bench.runs) == (False, 0, "new", 2)


async def test_a_renewal_that_fails_leaves_the_old_answer_in_place() -> None:
    bench = Bench(whole_answer("old"), [failed(503)], [ValueError("a defect")], whole_answer("new"))
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(310)
    for _ in range(3):
        outcome, body = await bench.ask(kv_cache=HOT)
        assert (outcome.stale, text_of(body)) == (True, "old")
    outcome, body = await bench.ask(kv_cache=HOT)
    assert (outcome.stale, text_of(body)) == (False, "new")


async def test_a_client_that_must_not_store_starts_no_renewal() -> None:
    bench = Bench()
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(310)
    outcome, _ = await bench.ask(kv_cache=HOT, headers={"Cache-Control": "no-store"})
    assert outcome.stale
    assert bench.runs == 1


@pytest.mark.parametrize("ending", [failed(500), failed(503), failed(429)])
async def test_a_stale_answer_stands_in_for_a_failing_backend(ending: Any) -> None:
    bench = Bench(whole_answer("old"), [ending])
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(400)
    outcome, body = await bench.ask(kv_cache=HOT)
    assert (outcome.stale, outcome.hit, text_of(body)) == (True, True, "old")
    assert bench.runs == 2
    assert len(bench.flights) == 0


async def test_a_stale_answer_does_not_hide_the_clients_own_mistake() -> None:
    bench = Bench(whole_answer("old"), [failed(400)])
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(400)
    error = await bench.fails(kv_cache=HOT)
    assert (error.status, isinstance(error, ClientFault)) == (400, True)


async def test_too_old_an_answer_stands_in_for_nothing() -> None:
    bench = Bench(whole_answer("old"), [failed(503)])
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(601)
    error = await bench.fails(kv_cache=HOT)
    assert (error.status, isinstance(error, BackendFault)) == (503, True)


async def test_an_answer_that_is_read_shortly_before_its_end_is_renewed_ahead() -> None:
    bench = Bench(whole_answer("old"), whole_answer("new"))
    await bench.ask()
    bench.clock.advance(1799.5)
    bench.draw = 0.9  # -log(0.1) of a cost of 1 s is more than the half second left
    outcome, body = await bench.ask()
    assert (outcome.level, outcome.stale, text_of(body)) == ("response", False, "old")
    assert bench.runs == 2
    bench.draw = 0.0
    outcome, body = await bench.ask()
    assert (outcome.age_s, text_of(body)) == (0, "new")


async def test_a_clock_set_back_makes_no_answer_older_than_it_is_and_none_immortal() -> None:
    bench = Bench(whole_answer("old"), whole_answer("new"))
    await bench.ask()
    bench.clock.set(bench.clock.now() - 100)
    outcome, _ = await bench.ask()
    assert (outcome.age_s, outcome.level) == (0, "response")
    bench.clock.set(bench.clock.now() - 86_400)
    outcome, body = await bench.ask()
    assert text_of(body) == "new"


@pytest.mark.parametrize("place", ["memory", "disk", "redis"])
@pytest.mark.parametrize("another_process", [False, True])
async def test_a_clock_set_back_never_revives_what_was_seen_expired(
    place: str, another_process: bool, tmp_path: Path
) -> None:
    async with store_in(place, tmp_path) as store:
        bench = Bench(whole_answer("old"), [failed(500)], store=store)
        await bench.ask(kv_cache={"enabled": True, "tier": "warm", "ttl": 100})
        bench.clock.advance(150)
        assert (await bench.fails(kv_cache=True)).status == 500
        bench.clock.set(bench.clock.now() - 140)
        if another_process:
            clock, bench = bench.clock, Bench([failed(500)], store=store)
            bench.clock.set(clock.now())
        assert (await bench.fails(kv_cache=True)).status == 500


async def test_a_clock_set_back_makes_nothing_fresh_that_was_seen_stale() -> None:
    bench = Bench(whole_answer("old"), [failed(500)])
    await bench.ask(kv_cache={"enabled": True, "tier": "hot", "ttl": 100})
    bench.clock.advance(110)
    outcome, _ = await bench.ask(kv_cache=HOT)
    assert outcome.stale
    bench.clock.set(bench.clock.now() - 100)
    assert (await bench.fails(kv_cache=HOT)).status == 500


async def test_a_young_enough_answer_that_one_client_finds_too_old_stays_for_the_others() -> None:
    bench = Bench(whole_answer("old"), [failed(500)])
    await bench.ask()
    bench.clock.advance(60)
    await bench.fails(headers={"Cache-Control": "max-age=30"})
    outcome, _ = await bench.ask()
    assert outcome.level == "response"


@asynccontextmanager
async def store_in(place: str, folder: Path) -> AsyncIterator[Store]:
    if place == "memory":
        yield MemoryStore("warm", max_bytes=2**20)
    elif place == "disk":
        database = open_database(folder)
        yield DiskStore("warm", database, max_bytes=2**20)
        await database.close()
    else:
        client = connect(redis_server.shared().url, limit_s=10)
        yield RedisStore("warm", client, max_bytes=2**20, namespace=redis_server.namespace())
        await client.aclose()


async def test_jitter_shortens_what_is_stored() -> None:
    bench = Bench(rules=replace(RULES, jitter=0.1))
    bench.draw = 0.5
    await bench.ask()
    outcome, _ = await bench.ask()
    assert outcome.ttl_left_s == 1800 * 0.95


# ---- refusals and failures


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_deterministic_refusal_is_remembered_for_a_while(status: int) -> None:
    body = {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}
    bench = Bench([failed(status, body=body)], whole_answer())
    error = await bench.fails()
    assert (error.status, error.body()) == (status, body)
    outcome, kept = await bench.ask()
    assert (outcome.level, outcome.status, outcome.hit, kept) == ("negative", status, True, body)
    assert bench.runs == 1
    bench.clock.advance(61)
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("none", 2)


@pytest.mark.parametrize("status", [401, 403, 408, 409, 429, 500, 502, 503, 504])
async def test_any_other_failure_is_not(status: int) -> None:
    bench = Bench([failed(status)], whole_answer())
    assert (await bench.fails()).status == status
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("none", 2)


async def test_a_remembered_refusal_does_not_take_the_place_of_a_good_answer() -> None:
    bench = Bench(whole_answer(), [failed(404)])
    await bench.ask()
    await bench.fails(kv_cache={"enabled": True, "reuse": False})
    outcome, _ = await bench.ask()
    assert outcome.level == "response"


async def test_a_failure_after_the_opening_is_told_and_not_stored() -> None:
    bench = Bench([opening(), delta("Hel"), failed(502)], whole_answer())
    answer = await bench.start(stream=True)
    assert isinstance(answer, Flown)
    async with answer.reader as pieces:
        assert [piece async for piece in pieces] == [delta("Hel"), failed(502)]
    await bench.settled()
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("none", 2)


@pytest.mark.parametrize(
    "script",
    [
        [opening(), Whole(body_of(choices=[])), completed()],
        [opening(), Whole({}), completed()],
        [opening(), Whole(body_of(choices=[{"index": 0, "message": {}}])), completed()],
        [opening(), delta("Hel"), completed()],
    ],
)
async def test_half_an_answer_is_passed_on_but_not_stored(script: Script) -> None:
    bench = Bench(script, whole_answer())
    await bench.ask()
    outcome, _ = await bench.ask()
    assert (outcome.level, bench.runs) == ("none", 2)


async def test_an_answer_over_the_limit_is_not_stored() -> None:
    limits = replace(RULES.limits, max_entry_bytes=1000)
    bench = Bench(whole_answer("x" * 2000), rules=replace(RULES, limits=limits))
    _, body = await bench.ask()
    assert len(text_of(body)) == 2000
    await bench.ask()
    assert bench.runs == 2


async def test_a_defect_of_a_backend_reaches_its_readers_and_frees_the_key() -> None:
    bench = Bench([ValueError("a defect")], whole_answer())
    with pytest.raises(ValueError, match="a defect"):
        await bench.start()
    await bench.settled()
    assert len(bench.flights) == 0
    await bench.ask()


@pytest.mark.parametrize("script", [[completed()], [delta("x")]])
async def test_a_backend_that_breaks_its_contract_leaves_no_reader_behind(script: Script) -> None:
    bench = Bench((*script, Gate()))
    with pytest.raises(AssertionError):
        await bench.start()
    await bench.tasks.close()
    await bench.settled()
    assert len(bench.flights) == 0


async def test_a_refused_renewal_leaves_the_good_answer_alone() -> None:
    refused: Script = [failed(404, fault="client", code="model_loading")]
    bench = Bench(whole_answer("old"), refused, refused)
    await bench.ask(kv_cache=HOT)
    bench.clock.advance(310)
    outcome, _ = await bench.ask(kv_cache=HOT)
    assert (outcome.stale, bench.runs) == (True, 2)
    outcome, body = await bench.ask(kv_cache=HOT)
    assert (outcome.level, text_of(body)) == ("response", "old")


async def test_what_was_cleared_while_it_was_computed_is_not_stored() -> None:
    gate = Gate()
    bench = Bench([gate, *whole_answer("old")], whole_answer("new"))
    wish = {"enabled": True, "cache_key": "doc"}
    asking = asyncio.create_task(bench.ask(kv_cache=wish))
    await gate.reached()
    assert await bench.pipeline.clear(Selector("default", cache_key="doc")) == []
    gate.open()
    assert text_of((await asking)[1]) == "old"
    outcome, body = await bench.ask(kv_cache=wish)
    assert (outcome.level, text_of(body)) == ("none", "new")
    outcome, _ = await bench.ask(kv_cache=wish)
    assert outcome.level == "response"


async def test_what_was_cleared_while_it_was_put_away_does_not_stay() -> None:
    bench = Bench()
    put, cleared = bench.store.put, Selector("default")

    async def clear_and_put(entry: Entry, *, now: float) -> Stored:
        await bench.pipeline.clear(cleared)
        return await put(entry, now=now)

    bench.store.put = clear_and_put  # type: ignore[method-assign]  # the moment in question
    await bench.ask()
    assert await bench.store.scan(cleared, after=None, limit=9) == []
