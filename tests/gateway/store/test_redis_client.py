"""The client sends a command once, waits a bounded time, and says whose failure it was."""

import pytest

from gateway.store.base import StoreError, StoreFull
from gateway.store.redis_client import Script, connect, failing_as_store
from tests.kit import redis_server
from tests.kit.slow_wire import slow_wire

ECHO = Script.of("return {KEYS[1], ARGV[1]}")


async def test_a_script_is_sent_as_text_once_and_by_its_digest_from_then_on() -> None:
    with redis_server.running() as server:
        client = connect(server.url, limit_s=10)
        for _ in range(3):
            assert await ECHO.run(client, b"k", 1.5) == [b"k", b"1.5"]
        stats = await client.info("commandstats")
        assert stats["cmdstat_eval"]["calls"] == 1
        assert stats["cmdstat_evalsha"]["calls"] == 3
        await client.aclose()


async def test_a_server_that_does_not_answer_is_given_up_and_not_asked_twice() -> None:
    async with slow_wire(redis_server.shared().socket) as wire:
        client = connect(wire.url, limit_s=0.05)
        await client.exists("k")
        before = wire.asked
        wire.hold()
        with pytest.raises(StoreError, match="redis: TimeoutError"), failing_as_store():
            await client.exists("k")
        assert wire.asked - before == 1
        await client.aclose()


async def test_a_connection_takes_one_exchange_of_its_own_at_most() -> None:
    async with slow_wire(redis_server.shared().socket) as wire:
        client = connect(wire.url, limit_s=10)
        await client.exists("k")
        assert wire.asked == 1
        await client.aclose()


async def test_a_server_that_only_reads_is_one_that_takes_nothing() -> None:
    with redis_server.running() as server:
        client = connect(server.url, limit_s=10)
        await client.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreFull), failing_as_store():
            await client.set("k", b"v")
        await client.aclose()


def test_what_is_no_failure_of_the_server_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), failing_as_store():
        _ = 1 / 0
