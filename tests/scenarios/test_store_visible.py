"""A store that fails is seen, named in words, and comes back: at the start and later."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.store.guarded import LONGEST_BACKOFF_S
from gateway.store.redis_client import connect
from tests.kit import redis_server
from tests.kit.redis_server import RedisServer
from tests.kit.service import Service, serving

Log = list[MutableMapping[str, Any]]
TIERS = {"cold": {"store": "redis"}}
CACHED = {"enabled": True, "tier": "cold", "ttl": 3600}


@pytest.fixture
def log() -> Iterator[Log]:
    with capture_logs() as lines:
        yield lines


def with_store(url: str, timeout_ms: int = 2000) -> Any:
    store = {"redis_url": url, "timeout_ms": timeout_ms}
    return serving(store=store, tiers=TIERS, scripted_durations=True)


async def ready(service: Service) -> Any:
    answer = await service.send("GET", "/readyz")
    assert answer.status == 200  # what a backend can answer is answered
    return answer.body


async def gauge(service: Service) -> float:
    page = (await service.send("GET", "/metrics")).raw.decode()
    (line,) = (one for one in page.splitlines() if one.startswith('kvgate_store_up{store="redis"}'))
    return float(line.rsplit(" ", 1)[1])


def told(log: Log) -> list[str]:
    return [line["event"] for line in log if line["event"].startswith("store ")]


async def hits(service: Service) -> bool:
    await service.chat(CACHED)
    await service.settled()
    return (await service.chat(CACHED)).headers["X-Cache-Level"] == "response"


@pytest.mark.parametrize(
    ("options", "query", "words"),
    [
        (("--requirepass", "right"), "?password=wrong", "the user or the password"),
        (("--requirepass", "right"), "", "the user or the password"),
        (("--cluster-enabled", "yes"), "", "Redis Cluster"),
    ],
)
async def test_a_store_that_cannot_be_used_is_named_at_the_start(
    log: Log, options: tuple[str, ...], query: str, words: str
) -> None:
    with redis_server.running(*options) as server:
        async with with_store(server.url + query) as service:
            assert told(log) == ["store down"]
            body = await ready(service)
            assert body["status"] == "degraded"
            assert words in body["stores"]["redis"]
            assert await gauge(service) == 0.0
            assert not await hits(service)
            assert told(log) == ["store down"]


async def test_a_store_that_goes_and_comes_back_is_told_once_each(log: Log) -> None:
    with redis_server.running() as server:
        async with with_store(server.url) as service:
            assert await ready(service) == {"status": "ready", "waiting_for": {}}
            assert await gauge(service) == 1.0
            server.kill()
            await service.chat(CACHED)
            await service.settled()
            assert (await ready(service))["status"] == "degraded"
            server.start()
            service.clock.advance(LONGEST_BACKOFF_S)
            await ready(service)  # no request is needed: who asks lets it be probed
            await service.settled()
            assert await ready(service) == {"status": "ready", "waiting_for": {}}
            assert await gauge(service) == 1.0
            assert told(log) == ["store down", "store back"]
            assert await hits(service)


async def limited(server: RedisServer, *commands: str) -> str:
    """The address for a user who may use our keys and channels alone, and these commands."""
    admin = connect(server.url, limit_s=10)
    await admin.acl_setuser(
        "gateway",
        enabled=True,
        passwords=["+pw"],
        keys=["kvgate:*"],
        channels=["kvgate:*"],
        commands=commands,
    )
    await admin.aclose()
    return f"{server.url}?username=gateway&password=pw"


async def test_a_user_who_is_limited_to_our_keys_has_a_cache_that_comes_back(log: Log) -> None:
    with redis_server.running() as server:
        rights = ("+@all", "-@dangerous", "-@admin")
        async with with_store(await limited(server, *rights)) as service:
            assert await ready(service) == {"status": "ready", "waiting_for": {}}
            assert await hits(service)
            cleared = await service.send("POST", "/v1/cache/invalidate", {"all": True})
            assert (cleared.status, cleared.body["entries"]) == (200, 1)
            server.kill()
            await service.chat(CACHED)
            await service.settled()
            server.start()
            await limited(server, *rights)
            service.clock.advance(LONGEST_BACKOFF_S)
            await ready(service)
            await service.settled()
            assert await hits(service)
            assert told(log) == ["store down", "store back"]


async def test_a_user_who_may_not_write_is_named(log: Log) -> None:
    with redis_server.running() as server:
        url = await limited(server, "+@all", "-set")
        async with with_store(url) as service:
            for _ in range(4):
                assert not await hits(service)
                await service.settled()
            body = await ready(service)
            assert body["status"] == "degraded"
            assert "takes nothing" in body["stores"]["redis"]
            assert "store takes nothing" in told(log)
