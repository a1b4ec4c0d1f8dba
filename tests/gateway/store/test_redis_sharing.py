"""Leases and records in Redis, beyond what tests/contracts/test_sharing.py asks of all."""

import pytest

from gateway.store.base import StoreError
from gateway.store.redis_client import connect
from gateway.store.redis_sharing import RedisLeases, RedisRecords
from tests.kit import redis_server


async def test_a_lease_dies_with_its_holder_and_not_before() -> None:
    client = connect(redis_server.shared().url, limit_s=10)
    place = redis_server.namespace()
    leases = RedisLeases(client, token="me", namespace=place)
    assert await leases.take(b"k", ttl_s=60)
    assert 59_000 < await client.pttl(f"{place}:lease:k") <= 60_000
    assert await leases.take(b"k", ttl_s=120)
    assert 119_000 < await client.pttl(f"{place}:lease:k") <= 120_000
    assert repr(leases) == "<RedisLeases of me>"
    await client.aclose()


async def test_nothing_is_left_of_records_that_are_erased() -> None:
    client = connect(redis_server.shared().url, limit_s=10)
    place = redis_server.namespace()
    records = RedisRecords(client, namespace=place)
    await records.write("context", "t", "a", b"1")
    await records.create("context", "t", "b", b"1")
    await records.count("context", "t", "a", {"uses": 1})
    for name in "ab":
        assert await records.erase("context", "t", name)
    assert [key async for key in client.scan_iter(f"{place}:*")] == []
    await client.aclose()


async def test_a_server_that_is_not_there_is_the_stores_failure() -> None:
    client = connect("redis://127.0.0.1:1", limit_s=10)
    leases, records = RedisLeases(client, token="me"), RedisRecords(client)
    for call in (
        leases.take(b"k", ttl_s=1),
        leases.release(b"k"),
        leases.held(b"k"),
        records.read("kind", "t", "n"),
        records.write("kind", "t", "n", b""),
        records.create("kind", "t", "n", b""),
        records.erase("kind", "t", "n"),
        records.names("kind", None),
        records.names("kind", "t"),
        records.count("kind", "t", "n", {"x": 1}),
    ):
        with pytest.raises(StoreError):
            await call
    await client.aclose()
