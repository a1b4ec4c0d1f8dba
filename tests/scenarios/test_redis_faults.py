"""The Redis server is killed, frozen, slow, full, started again: requests go on, hits come back.

A real server, a whole gateway. Time is scripted but for the store's own limit: where that must not
pass in a healthy moment it is long, where it must pass it is short.
"""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from gateway.store.guarded import LONGEST_BACKOFF_S, GuardedNews
from gateway.store.redis_client import connect
from gateway.store.redis_news import RedisNews
from gateway.store.tiers import READS_TO_RISE
from tests.kit import redis_server
from tests.kit.redis_server import RedisServer
from tests.kit.service import Answer, Service, serving
from tests.kit.slow_wire import slow_wire

Log = list[MutableMapping[str, Any]]
TIERS = {"cold": {"store": "redis"}}
NEVER_MS = 10_000
SOON_MS = 300
CACHED = {"enabled": True, "tier": "cold", "ttl": 3600}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server.running() as one:
        yield one


@pytest.fixture
def log() -> Iterator[Log]:
    with capture_logs() as lines:
        yield lines


@asynccontextmanager
async def gateway(url: str, *, timeout_ms: int = NEVER_MS, **more: Any) -> AsyncIterator[Service]:
    store = {"redis_url": url, "timeout_ms": timeout_ms}
    async with serving(store=store, tiers=TIERS, scripted_durations=True, **more) as service:
        yield service


async def ask(service: Service, text: str, **kv_cache: Any) -> Answer:
    """A request that must be answered, and all that follows from it."""
    messages = [{"role": "user", "content": text}]
    answer = await service.chat({**CACHED, **kv_cache}, messages=messages)
    assert answer.status == 200, answer.raw
    await service.settled()
    return answer


def hit(answer: Answer) -> bool:
    return answer.headers["X-Cache-Level"] == "response"


def without_store(answer: Answer) -> bool:
    return "detail=store-error" in answer.headers["Cache-Status"] and not hit(answer)


def said(log: Log) -> list[str]:
    return [line["event"] for line in log if line["event"].startswith("store ")]


async def come_back(service: Service) -> None:
    """Time for the next probe, and a request that lets it be made."""
    service.clock.advance(LONGEST_BACKOFF_S)
    await ask(service, "Is anybody there?")


async def stored(service: Service, text: str) -> None:
    """Ask until the answer comes from the store: where the limit is short, once may not be enough."""
    while not hit(await ask(service, text)):
        service.clock.advance(LONGEST_BACKOFF_S)


async def filled(client: Redis) -> None:
    """Use up all the room that the server has."""
    for size in (100_000, 10_000, 100):
        with suppress(OutOfMemoryError):
            for number in count():
                await client.set(f"filler:{size}:{number}", b"x" * size)


async def listening(*services: Service) -> None:
    """Wait until they hear each other."""
    for service in services:
        await news_of(service).subscribed.wait()


def news_of(service: Service) -> RedisNews:
    guarded = service.gateway.news
    assert isinstance(guarded, GuardedNews)
    assert isinstance(guarded._news, RedisNews)
    return guarded._news


async def test_a_server_that_is_killed_and_started_again(server: RedisServer, log: Log) -> None:
    async with gateway(server.url) as service:
        await ask(service, "a")
        assert hit(await ask(service, "a"))
        server.kill()
        for number in range(6):
            assert without_store(await ask(service, "a"))
            assert without_store(await ask(service, str(number)))
        assert said(log) == ["store down"]
        server.start()
        await come_back(service)
        assert said(log) == ["store down", "store back"]
        assert not hit(await ask(service, "a")), "it was started empty"
        assert hit(await ask(service, "a"))
        assert len(log) == 2, "nothing else was said, least of all for each request"


async def test_a_server_that_is_frozen_is_waited_for_once_and_then_no_more(
    server: RedisServer, log: Log
) -> None:
    async with slow_wire(server.socket) as wire, gateway(wire.url, timeout_ms=SOON_MS) as service:
        await stored(service, "a")
        log.clear()
        server.freeze()
        assert without_store(await ask(service, "a"))
        assert said(log) == ["store down"]
        before = wire.asked
        for _ in range(10):
            assert without_store(await ask(service, "a"))
        assert wire.asked == before, "nobody asked, so nobody waited"
        server.thaw()
        await come_back(service)
        await stored(service, "a")
        assert said(log)[:2] == ["store down", "store back"]


async def test_a_wire_that_became_slow_is_waited_for_once_and_then_no_more(
    server: RedisServer, log: Log
) -> None:
    async with slow_wire(server.socket) as wire, gateway(wire.url, timeout_ms=SOON_MS) as service:
        await stored(service, "a")
        await stored(service, "b")
        log.clear()
        wire.hold()
        assert without_store(await ask(service, "a"))
        before = wire.asked
        for _ in range(10):
            assert without_store(await ask(service, "b"))
        assert wire.asked == before
        wire.let_go()
        await come_back(service)
        await stored(service, "a")
        await stored(service, "b")
        assert said(log)[:2] == ["store down", "store back"]


async def test_one_request_waits_for_a_stuck_server_once_whatever_it_wants_of_it(
    server: RedisServer, log: Log
) -> None:
    everywhere = {tier: {"store": "redis"} for tier in ("hot", "warm", "cold")}
    store = {"redis_url": "", "timeout_ms": SOON_MS}
    async with slow_wire(server.socket) as wire:
        store["redis_url"] = wire.url
        async with serving(store=store, tiers=everywhere, scripted_durations=True) as service:
            await stored(service, "a")
            wire.hold()
            before = wire.asked
            answer = await service.chat(CACHED, messages=[{"role": "user", "content": "new"}])
            assert answer.status == 200
            # One look-up in the first tier; the rest are the probes behind it.
            assert without_store(answer)
            assert wire.asked - before <= 1 + 2
            wire.let_go()
            await service.settled()


async def test_a_full_server_gives_what_it_has_and_is_not_asked_to_take_more(log: Log) -> None:
    with redis_server.running("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        async with gateway(server.url) as service:
            await ask(service, "a")
            client = connect(server.url, limit_s=10)
            await filled(client)
            for number in range(8):
                assert not hit(await ask(service, str(number)))
            assert hit(await ask(service, "a"))
            assert said(log) == ["store takes nothing"]
            await client.flushdb()
            await client.aclose()
            service.clock.advance(LONGEST_BACKOFF_S)
            await ask(service, "b")
            assert hit(await ask(service, "b"))
            assert said(log) == ["store takes nothing", "store takes entries again"]


async def test_an_invalidation_that_cannot_be_done_is_not_said_to_be(
    server: RedisServer, log: Log
) -> None:
    async with gateway(server.url) as service:
        await ask(service, "a", tags=["x"])
        server.kill()
        answer = await service.send("POST", "/v1/cache/invalidate", {"tag": "x"})
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable")


async def test_a_gateway_that_starts_before_its_server_uses_it_once_it_is_there(
    server: RedisServer, log: Log
) -> None:
    server.kill()
    async with gateway(server.url) as service:
        assert without_store(await ask(service, "a"))
        server.start()
        await come_back(service)
        await ask(service, "a")
        assert hit(await ask(service, "a"))


async def test_what_one_gateway_stores_another_finds_and_clears(server: RedisServer) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        await listening(one, other)
        await ask(one, "a", tags=["x"])
        assert hit(await ask(other, "a"))
        cleared = await other.send("POST", "/v1/cache/invalidate", {"tag": "x"})
        assert cleared.status == 200
        assert not hit(await ask(one, "a", tags=["x"]))


async def test_what_is_cleared_goes_from_the_memory_of_the_other_gateway_too(
    server: RedisServer,
) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        await listening(one, other)
        for service in (one, other):
            for text, tags in (("a", ["x"]), ("b", [])):
                for _ in range(2 * READS_TO_RISE):  # from cold to hot, where it was not at once
                    await ask(service, text, tier="hot", tags=tags)
                assert (await ask(service, text, tier="hot")).headers["X-Cache-Tier"] == "hot"
        cleared = await one.send("POST", "/v1/cache/invalidate", {"tag": "x"})
        assert cleared.status == 200
        assert not hit(await ask(other, "a", tier="hot"))
        assert hit(await ask(other, "b", tier="hot"))


async def test_a_gateway_that_may_have_missed_a_clearing_forgets_what_it_has_in_memory(
    server: RedisServer, log: Log
) -> None:
    async with gateway(server.url) as one, gateway(server.url) as other:
        await listening(one, other)
        await one.send("POST", "/v1/cache/invalidate", {"tag": "none"})
        await ask(other, "a", tier="hot")
        assert hit(await ask(other, "a", tier="hot"))
        news = news_of(other)
        news.subscribed.clear()
        server.kill()
        server.start()
        await news.subscribed.wait()
        assert not hit(await ask(other, "a", tier="hot"))
