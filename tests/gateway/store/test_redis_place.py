"""One server, one client, one guard for all that lies there."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.guarded import FIRST_BACKOFF_S
from gateway.store.redis_place import RedisPlace
from tests.kit import redis_server
from tests.kit.clock import Clock
from tests.kit.entries import NOW, entry_of, key_of


async def test_tiers_leases_and_records_fail_and_come_back_together() -> None:
    clock, tasks = Clock(), Tasks()
    with redis_server.running() as server, capture_logs() as log:
        place = RedisPlace(
            server.url, limit_s=10, clock=clock.monotonic, draw=lambda: 0.0, tasks=tasks
        )
        warm = place.tier("warm", max_bytes=100_000, shares={})
        cold = place.tier("cold", max_bytes=100_000, shares={})
        await warm.put(entry_of("a"), now=NOW)
        assert await cold.get(key_of("a"), now=NOW) is None
        assert await place.leases.take(b"k", ttl_s=60)
        server.kill()
        with pytest.raises(StoreError, match="redis: ConnectionError"):
            await warm.get(key_of("a"), now=NOW)
        for call in (cold.get(key_of("a"), now=NOW), place.records.read("kind", "t", "n")):
            with pytest.raises(StoreError, match="redis does not answer"):
                await call
        await asyncio.gather(*tasks._running)
        server.start()
        clock.advance(FIRST_BACKOFF_S)
        with pytest.raises(StoreError, match="redis does not answer"):
            await place.leases.held(b"k")
        await asyncio.gather(*tasks._running)
        assert not await place.leases.held(b"k")
        assert [line["event"] for line in log] == ["store down", "store back"]
        assert repr(place).startswith(
            "<RedisPlace kvgate: <Guard of redis: answers <Circuit closed"
        )
        await place.close()
        await tasks.close()
