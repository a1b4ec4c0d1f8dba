"""What leases and records promise, whatever they are kept in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.store.disk import open_database
from gateway.store.redis_client import connect
from gateway.store.redis_sharing import RedisLeases, RedisRecords
from gateway.store.sharing import Leases, Records
from gateway.store.sharing_disk import DiskLeases, DiskRecords
from gateway.store.sharing_memory import MemoryLeases, MemoryRecords
from tests.kit import redis_server
from tests.kit.clock import Clock


@dataclass(frozen=True)
class Shared:
    """What several processes see of one place: the first of each belongs to "this" process.

    ``pass_s`` lets so many seconds pass for it. A place in memory has one process only.
    """

    leases: Sequence[Leases]
    records: Sequence[Records]
    pass_s: Callable[[float], Awaitable[None]]


Open = Callable[[Path], AbstractAsyncContextManager[Shared]]


@asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Shared]:
    clock = Clock()
    yield Shared([MemoryLeases(now=clock.now)], [MemoryRecords()], passing(clock))


def passing(clock: Clock) -> Callable[[float], Awaitable[None]]:
    async def pass_s(seconds: float) -> None:
        clock.advance(seconds)

    return pass_s


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[Shared]:
    place = redis_server.namespace()
    clients = [connect(redis_server.shared().url, limit_s=10) for _ in range(2)]
    yield Shared(
        [
            RedisLeases(client, token=str(number), namespace=place)
            for number, client in enumerate(clients)
        ],
        [RedisRecords(client, namespace=place) for client in clients],
        asyncio.sleep,  # the time is the server's, and it has only the real one
    )
    for client in clients:
        await client.aclose()


@asynccontextmanager
async def disk(folder: Path) -> AsyncIterator[Shared]:
    clock = Clock()
    mine, others = open_database(folder, "sharing"), open_database(folder, "sharing")
    yield Shared(
        [
            DiskLeases(mine, holder="1", now=clock.now),
            DiskLeases(others, holder="2", now=clock.now),
        ],
        [DiskRecords(mine), DiskRecords(others)],
        passing(clock),
    )
    await mine.close()
    await others.close()


SHARING: dict[str, Open] = {
    # An empty place; the folder is its own.
    "memory": memory,
    "disk": disk,
    "redis": redis,
}
OF_SEVERAL: list[str] = [kind for kind in SHARING if kind != "memory"]


@pytest.fixture(params=list(SHARING))
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    async with SHARING[request.param](tmp_path) as one:
        yield one


@pytest.fixture(params=OF_SEVERAL)
async def several(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    async with SHARING[request.param](tmp_path) as one:
        yield one


async def test_a_lease_is_held_until_it_is_released(shared: Shared) -> None:
    leases = shared.leases[0]
    assert not await leases.held(b"k")
    assert await leases.take(b"k", ttl_s=60)
    assert await leases.held(b"k")
    assert not await leases.held(b"other")
    await leases.release(b"k")
    assert not await leases.held(b"k")
    await leases.release(b"k")


async def test_a_lease_that_is_not_renewed_ends_by_itself(shared: Shared) -> None:
    leases = shared.leases[0]
    assert await leases.take(b"k", ttl_s=0.2)
    await shared.pass_s(0.3)
    assert not await leases.held(b"k")
    assert await leases.take(b"k", ttl_s=60)


async def test_the_holder_may_take_again_and_so_holds_longer(shared: Shared) -> None:
    leases = shared.leases[0]
    assert await leases.take(b"k", ttl_s=0.2)
    assert await leases.take(b"k", ttl_s=60)
    await shared.pass_s(0.3)
    assert await leases.held(b"k")


async def test_a_lease_has_one_holder_among_processes(several: Shared) -> None:
    mine, other = several.leases
    assert await mine.take(b"k", ttl_s=60)
    assert not await other.take(b"k", ttl_s=60)
    assert await other.held(b"k")
    await other.release(b"k")
    assert await mine.held(b"k")
    await mine.release(b"k")
    assert await other.take(b"k", ttl_s=60)
    assert not await mine.take(b"k", ttl_s=60)


async def test_what_a_dead_holder_left_is_taken_by_another(several: Shared) -> None:
    mine, other = several.leases
    assert await mine.take(b"k", ttl_s=0.2)
    await several.pass_s(0.3)
    assert await other.take(b"k", ttl_s=60)
    await mine.release(b"k")  # it comes back late and must not end what is another's now
    assert await other.held(b"k")
    assert not await mine.take(b"k", ttl_s=60)


async def test_of_many_takers_at_once_one_wins(several: Shared) -> None:
    for key in (bytes([number]) for number in range(10)):
        won = await asyncio.gather(*(one.take(key, ttl_s=60) for one in several.leases))
        assert sum(won) == 1


async def test_a_record_is_read_as_it_was_written(shared: Shared) -> None:
    records = shared.records[0]
    assert await records.read("context", "t", "manual") is None
    await records.write("context", "t", "manual", b"\x00one")
    assert await records.read("context", "t", "manual") == b"\x00one"
    await records.write("context", "t", "manual", b"")
    assert await records.read("context", "t", "manual") == b""


async def test_a_record_is_created_once(shared: Shared) -> None:
    records = shared.records[0]
    assert await records.create("context", "t", "manual", b"one")
    assert not await records.create("context", "t", "manual", b"two")
    assert not await records.create("context", "t", "manual", b"one")
    assert await records.read("context", "t", "manual") == b"one"


async def test_an_erased_record_is_gone_with_its_counters(shared: Shared) -> None:
    records = shared.records[0]
    await records.write("context", "t", "manual", b"one")
    await records.count("context", "t", "manual", {"uses": 2})
    assert await records.erase("context", "t", "manual")
    assert not await records.erase("context", "t", "manual")
    assert await records.read("context", "t", "manual") is None
    assert await records.count("context", "t", "manual", {}) == {}


async def test_kind_tenant_and_name_keep_records_apart(shared: Shared) -> None:
    records = shared.records[0]
    places = [
        ("a", "b", "c"),
        ("a", "b:c", ""),
        ("a", "", "b:c"),
        ("a:b", "c", ""),
        ("a", "B", "c"),
    ]
    for number, place in enumerate(places):
        assert await records.create(*place, str(number).encode())
        await records.count(*place, {"n": number})
    for number, place in enumerate(places):
        assert await records.read(*place) == str(number).encode()
        assert await records.count(*place, {}) == {"n": number}


@pytest.mark.parametrize("odd", ["", "*", "é\n", "a:b", "%", "'", "\x00", "\N{SNOWMAN}", "x" * 512])
async def test_odd_tenants_and_names_are_names(shared: Shared, odd: str) -> None:
    records = shared.records[0]
    await records.write("context", odd, odd, b"one")
    await records.write("context", odd, "other", b"two")
    assert await records.read("context", odd, odd) == b"one"
    assert await records.count("context", odd, odd, {odd: 1}) == {odd: 1}
    assert await records.names("context", odd) == sorted([(odd, odd), (odd, "other")])
    assert await records.erase("context", odd, odd)
    assert await records.names("context", None) == [(odd, "other")]


async def test_names_are_sorted_and_of_one_kind_and_tenant(shared: Shared) -> None:
    records = shared.records[0]
    for tenant, name in [("b", "2"), ("a", "9"), ("b", "1"), ("bb", "0")]:
        await records.write("context", tenant, name, b"")
    await records.write("job", "b", "3", b"")
    assert await records.names("context", "b") == [("b", "1"), ("b", "2")]
    assert await records.names("context", None) == [
        ("a", "9"), ("b", "1"), ("b", "2"), ("bb", "0"),
    ]  # fmt: skip
    assert await records.names("other", None) == []


async def test_counters_add_up(shared: Shared) -> None:
    records = shared.records[0]
    assert await records.count("context", "t", "manual", {"alice": 1}) == {"alice": 1}
    assert await records.count("context", "t", "manual", {"alice": 2, "bob": 0.5}) == {
        "alice": 3,
        "bob": 0.5,
    }
    assert await records.count("context", "t", "manual", {}) == {"alice": 3, "bob": 0.5}


async def test_counters_without_a_document_do_not_make_one(shared: Shared) -> None:
    records = shared.records[0]
    await records.count("context", "t", "manual", {"alice": 1})
    assert await records.read("context", "t", "manual") is None
    assert await records.names("context", None) == []


async def test_processes_see_one_truth(several: Shared) -> None:
    mine, other = several.records
    await mine.write("context", "t", "manual", b"one")
    assert await other.read("context", "t", "manual") == b"one"
    assert not await other.create("context", "t", "manual", b"two")
    await asyncio.gather(
        *(one.count("context", "t", "manual", {"n": 1}) for one in (mine, other) for _ in range(20))
    )
    assert await mine.count("context", "t", "manual", {}) == {"n": 40}
    assert await other.erase("context", "t", "manual")
    assert await mine.names("context", "t") == []
