"""The real server of the tests, and the wire in front of it, do what tests ask of them."""

import asyncio

import pytest

from gateway.store.base import StoreError
from gateway.store.redis_client import connect, failing_as_store
from tests.kit import redis_server
from tests.kit.slow_wire import slow_wire


async def test_a_server_that_was_killed_starts_again_empty_under_the_same_address() -> None:
    with redis_server.running() as server:
        client = connect(server.url, limit_s=10)
        await client.set("k", b"v")
        server.kill()
        with pytest.raises(StoreError), failing_as_store():
            await client.get("k")
        server.start()
        assert await client.get("k") is None
        await client.aclose()


async def test_a_frozen_server_answers_when_it_is_thawed() -> None:
    with redis_server.running() as server:
        client = connect(server.url, limit_s=10)
        await client.set("k", b"v")
        server.freeze()
        asked = asyncio.ensure_future(client.get("k"))
        done, _ = await asyncio.wait([asked], timeout=0.05)
        assert not done
        server.thaw()
        assert await asked == b"v"
        await client.aclose()


async def test_the_wire_counts_what_is_asked_and_holds_answers_back() -> None:
    async with slow_wire(redis_server.shared().socket) as wire:
        client = connect(wire.url, limit_s=10)
        await client.exists("k")
        before = wire.asked
        wire.hold()
        asked = asyncio.ensure_future(client.exists("k"))
        await wire.holding(1)
        assert not asked.done()
        assert wire.asked - before == 1
        wire.let_go()
        assert await asked == 0
        await client.aclose()


async def test_a_wire_to_nowhere_ends_its_connections() -> None:
    with redis_server.running() as server:
        server.kill()
        async with slow_wire(server.socket) as wire:
            client = connect(wire.url, limit_s=10)
            with pytest.raises(StoreError), failing_as_store():
                await client.get("k")
            await client.aclose()
