"""What the store in Redis promises beyond the contract of all stores; on a real server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.store.base import Selector, StoreError, StoreFull
from gateway.store.codec import encode
from gateway.store.redis import GRACE_S, PAGE, USES_PER_TELLING, RedisStore
from gateway.store.redis_client import connect
from tests.kit import redis_server
from tests.kit.entries import NOW, entry_of, key_of
from tests.kit.slow_wire import SlowWire, slow_wire

MIB = 2**20
ANY = Selector(None)
Make = Callable[..., RedisStore]


@pytest.fixture
async def client() -> AsyncIterator[Redis]:
    one = connect(redis_server.shared().url, limit_s=10)
    yield one
    await one.aclose()


@pytest.fixture
async def make(client: Redis) -> AsyncIterator[Make]:
    place = redis_server.namespace()
    made: list[RedisStore] = []

    def one(max_bytes: int = MIB, **more: Any) -> RedisStore:
        made.append(RedisStore("warm", client, max_bytes=max_bytes, namespace=place, **more))
        return made[-1]

    yield one
    for store in made:
        await store.remove(ANY)


@asynccontextmanager
async def behind_a_wire(max_bytes: int = MIB) -> AsyncIterator[tuple[RedisStore, SlowWire]]:
    """A store whose server's answers can be held back."""
    async with AsyncExitStack() as opened:
        wire = await opened.enter_async_context(slow_wire(redis_server.shared().socket))
        client = connect(wire.url, limit_s=10)
        opened.push_async_callback(client.aclose)
        store = RedisStore("warm", client, max_bytes=max_bytes, namespace=redis_server.namespace())
        yield store, wire
        wire.let_go()
        await store.remove(ANY)


def prefix_of(store: RedisStore) -> bytes:
    return store._prefix


async def test_a_look_up_is_one_round_trip_and_so_is_one_that_tells_of_uses() -> None:
    async with behind_a_wire() as (store, wire):
        await store.put(entry_of("a"), now=NOW)
        for _ in range(2 * USES_PER_TELLING + 3):
            before = wire.asked
            assert await store.get(key_of("a"), now=NOW) is not None
            assert await store.get(key_of("none"), now=NOW) is None
            assert wire.asked - before == 2


async def test_storing_and_removing_one_key_is_one_round_trip() -> None:
    async with behind_a_wire() as (store, wire):
        await store.put(entry_of("a"), now=NOW)
        await store.remove(Selector(None, key=key_of("a")))
        before = wire.asked
        await store.put(entry_of("a", tags=("x",)), now=NOW)
        await store.remove(Selector(None, key=key_of("a")))
        assert wire.asked - before == 2


async def test_an_answer_that_nobody_waits_for_any_more_is_never_anothers() -> None:
    async with behind_a_wire() as (store, wire):
        for name in "ab":
            await store.put(entry_of(name, name.encode() * 100), now=NOW)
        for _ in range(20):
            wire.hold()
            left = asyncio.ensure_future(store.get(key_of("a"), now=NOW))
            await wire.holding(1)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            wire.let_go()
            found = await store.get(key_of("b"), now=NOW)
            assert found is not None
            assert found.body == b"b" * 100


async def test_of_many_that_are_cancelled_at_any_point_none_mixes_up_the_others() -> None:
    names = [str(number) for number in range(40)]
    async with behind_a_wire() as (store, _):
        for name in names:
            await store.put(entry_of(name, name.encode() * 50), now=NOW)
        for turns in range(12):
            asked = {
                name: asyncio.ensure_future(store.get(key_of(name), now=NOW)) for name in names
            }
            for _ in range(turns):
                await asyncio.sleep(0)
            for name in names[::2]:
                asked[name].cancel()
            for name, task in asked.items():
                (found,) = await asyncio.gather(task, return_exceptions=True)
                if not isinstance(found, asyncio.CancelledError):
                    assert found == entry_of(name, name.encode() * 50)


async def test_what_is_not_an_entry_is_a_miss_and_goes(make: Make, client: Redis) -> None:
    store = make()
    await store.put(entry_of("a"), now=NOW)
    place = prefix_of(store) + b"e:"
    whole = encode(entry_of("a", b"x" * 100))
    for foreign in (b"", b"\x80\x04pickle", whole[:-1], whole[:60] + b"?" + whole[61:], b"\x00"):
        await client.set(place + key_of("a"), foreign)
        assert await store.get(key_of("a"), now=NOW) is None
        assert await client.exists(place + key_of("a")) == 0
    assert await store.scan(ANY, after=None, limit=9) == []


async def test_another_keys_entry_is_a_miss(make: Make, client: Redis) -> None:
    store = make()
    await client.set(prefix_of(store) + b"e:" + key_of("a"), encode(entry_of("b")))
    assert await store.get(key_of("a"), now=NOW) is None


async def test_a_value_of_another_type_is_a_miss_and_gives_way(make: Make, client: Redis) -> None:
    store = make()
    place = prefix_of(store) + b"e:" + key_of("a")
    await client.eval("redis.call('LPUSH', KEYS[1], 'y')", 1, place)
    assert await store.get(key_of("a"), now=NOW) is None
    assert (await store.put(entry_of("a"), now=NOW)).kept
    assert await store.get(key_of("a"), now=NOW) is not None


async def test_the_server_lets_an_entry_go_some_time_after_its_last_use(
    make: Make, client: Redis
) -> None:
    store = make()
    entry = entry_of("a", ttl_s=100.0, stale_while_revalidate_s=7.0, stale_if_error_s=50.0)
    await store.put(entry, now=NOW + 10)
    left_ms = await client.pttl(prefix_of(store) + b"e:" + key_of("a"))
    assert 0 <= 1000 * (140 + GRACE_S) - left_ms < 60_000


async def test_what_the_server_let_go_is_forgotten_by_the_next_put(
    make: Make, client: Redis
) -> None:
    store = make()
    for name in ("a", "b"):
        await store.put(entry_of(name, tags=("x",), ttl_s=100), now=NOW)
    await client.delete(prefix_of(store) + b"e:" + key_of("a"))
    assert store.fill().entries == 2
    await store.put(entry_of("c"), now=NOW + 100 + GRACE_S)
    assert store.fill().entries == 2
    await store.remove(ANY)
    assert (store.fill().entries, store.fill().size_bytes) == (0, 0)


async def test_what_the_server_let_go_is_in_no_list(make: Make, client: Redis) -> None:
    store = make()
    for name in ("a", "b"):
        await store.put(entry_of(name, tags=("x",)), now=NOW)
    await client.delete(prefix_of(store) + b"e:" + key_of("a"))
    found = await store.scan(Selector("t", tag="x"), after=None, limit=9)
    assert [meta.key for meta in found] == [key_of("b")]
    assert store.fill().entries == 1


async def test_nothing_is_left_behind_by_what_is_removed(make: Make, client: Redis) -> None:
    store = make()
    everything: dict[str, Any] = {
        "tags": ("x", "y"),
        "cache_key": "v1:ns:1",
        "user": "u",
        "context": "c",
    }
    for name in "ab":
        await store.put(entry_of(name, batch_id="b", **everything), now=NOW)
    await store.remove(ANY)
    left = {key async for key in client.scan_iter(prefix_of(store) + b"*")}
    assert left <= {prefix_of(store) + name for name in (b"t", b"c", b"c:")}


async def test_what_is_used_and_costly_stays_longer(make: Make) -> None:
    body = b"x" * 10_000
    store = make(50_000)
    await store.put(entry_of("cheap", body, cost_s=1.0), now=NOW)
    await store.put(entry_of("costly", body, cost_s=3.0), now=NOW)
    await store.put(entry_of("used", body, cost_s=1.0), now=NOW)
    await store.put(entry_of("other", body, cost_s=2.5), now=NOW)
    for _ in range(USES_PER_TELLING + 1):
        await store.get(key_of("used"), now=NOW)
    gone = []
    for number in range(3):
        stored = await store.put(entry_of(str(number), body, cost_s=10.0 + number), now=NOW)
        gone += [meta.key for meta in stored.gone]
    assert gone == [key_of("cheap"), key_of("other"), key_of("costly")]


async def test_what_was_used_long_ago_is_overtaken(make: Make) -> None:
    body = b"x" * 10_000
    store = make(25_000)
    await store.put(entry_of("old", body, cost_s=5.0), now=NOW)
    await store.put(entry_of("0", body, cost_s=2.0), now=NOW)
    for number in range(1, 9):
        stored = await store.put(entry_of(str(number), body, cost_s=2.0), now=NOW)
        if key_of("old") in {meta.key for meta in stored.gone}:
            return
    pytest.fail("it outlived everything")


async def test_a_tenants_share_is_a_limit_of_its_own(make: Make) -> None:
    body = b"x" * 10_000
    store = make(MIB, shares={"small": 25_000})
    for number in range(3):
        await store.put(entry_of(f"big{number}", body, tenant="big"), now=NOW)
        await store.put(entry_of(f"small{number}", body, tenant="small"), now=NOW)
    assert len(await store.scan(Selector("big"), after=None, limit=9)) == 3
    assert len(await store.scan(Selector("small"), after=None, limit=9)) == 2
    assert not (await store.put(entry_of("x", b"x" * 25_000, tenant="small"), now=NOW)).kept
    assert (await store.put(entry_of("x", b"x" * 25_000, tenant="big"), now=NOW)).kept


async def test_it_takes_what_it_says_it_takes() -> None:
    with redis_server.running() as server:
        client = connect(server.url, limit_s=10)
        store = RedisStore("warm", client, max_bytes=8 * MIB)
        await store.put(entry_of("first"), now=NOW)
        before = (await client.info("memory"))["used_memory"]
        for number in range(3000):
            facts: dict[str, Any] = (
                {"tags": ("x",)} if number % 2 else {"cache_key": f"v1:ns:{number}"}
            )
            body = bytes(number % 251 for _ in range(300 + number % 7000))
            await store.put(entry_of(str(number), body, **facts), now=NOW)
        fill = store.fill()
        assert fill.evictions > 0
        assert fill.size_bytes > 0.98 * fill.max_bytes
        taken = (await client.info("memory"))["used_memory"] - before
        assert 0.9 < taken / fill.size_bytes < 1.1
        await store.close()


async def test_a_full_server_takes_nothing_and_gives_what_it_has() -> None:
    with redis_server.running("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        client = connect(server.url, limit_s=10)
        store = RedisStore("warm", client, max_bytes=100 * MIB)
        stored = 0
        with suppress(StoreFull):
            while True:
                await store.put(entry_of(str(stored), b"x" * 100_000, tags=("x",)), now=NOW)
                stored += 1
        assert stored > 3
        for _ in range(USES_PER_TELLING + 2):
            assert await store.get(key_of("0"), now=NOW) is not None
        assert len(await store.scan(ANY, after=None, limit=999)) == stored
        assert len(await store.remove(Selector("t", tag="x"))) == stored
        assert (store.fill().entries, store.fill().size_bytes) == (0, 0)
        assert (await store.put(entry_of("again"), now=NOW)).kept
        await store.close()


async def test_a_server_that_forgot_the_scripts_is_told_again(make: Make, client: Redis) -> None:
    store = make()
    await store.put(entry_of("a"), now=NOW)
    await client.script_flush()
    await store.put(entry_of("b"), now=NOW)
    assert store.fill().entries == 2


async def test_a_server_that_lost_everything_starts_from_nothing(make: Make, client: Redis) -> None:
    store = make(30_000)
    body = b"x" * 10_000
    await store.put(entry_of("a", body), now=NOW)
    await store.put(entry_of("b", body), now=NOW)
    # What a policy other than noeviction may drop: the records, while all else stays.
    await client.delete(prefix_of(store) + b"m")
    for number in range(5):
        assert (await store.put(entry_of(str(number), body), now=NOW)).kept
    assert store.fill().entries == 2


async def test_an_entry_whose_record_is_lost_goes_and_stops_no_invalidation(
    make: Make, client: Redis
) -> None:
    store = make()
    for name in "abc":
        await store.put(entry_of(name, tags=("x",)), now=NOW)
    await client.hdel(prefix_of(store) + b"m", key_of("a"))
    assert await store.scan(Selector("t", key=key_of("a")), after=None, limit=1) == []
    assert await store.get(key_of("a"), now=NOW) is None
    await client.hdel(prefix_of(store) + b"m", key_of("b"))
    gone = await store.remove(Selector("t", tag="x"))
    assert [meta.key for meta in gone] == [key_of("c")]
    for name in "abc":
        assert await store.get(key_of(name), now=NOW) is None
    assert await store.scan(Selector("t", tag="x"), after=None, limit=9) == []
    indexes = [key async for key in client.scan_iter(prefix_of(store) + b"i:*")]
    assert not [key for key in indexes if await client.zscore(key, key_of("b"))]


async def test_more_entries_than_a_page_are_found_and_removed(make: Make, client: Redis) -> None:
    store = make(100 * MIB)
    count = PAGE + 3
    for number in range(count):
        await store.put(entry_of(str(number), cache_key=f"k:{number % 2}:x"), now=NOW)
    assert len(await store.scan(Selector("t", prefix="k:1"), after=None, limit=count)) == count // 2
    assert len(await store.remove(Selector("t", namespace="1"))) == count // 2
    assert len(await store.remove(ANY)) == count - count // 2


async def test_two_gateways_see_the_same(make: Make) -> None:
    one, other = make(), make()
    await one.put(entry_of("a", tags=("x",)), now=NOW)
    assert await other.get(key_of("a"), now=NOW) is not None
    assert len(await other.remove(Selector("t", tag="x"))) == 1
    assert await one.get(key_of("a"), now=NOW) is None
    assert repr(other) == f"<RedisStore warm: 0 entries, 0/{MIB} bytes, 0 evicted>"


async def test_a_server_that_is_not_there_is_the_stores_failure() -> None:
    client = connect("redis://127.0.0.1:1", limit_s=10)
    store = RedisStore("warm", client, max_bytes=MIB)
    for call in (
        store.get(key_of("a"), now=NOW),
        store.put(entry_of("a"), now=NOW),
        store.remove(ANY),
        store.scan(ANY, after=None, limit=1),
    ):
        with pytest.raises(StoreError, match="redis: ConnectionError"):
            await call
    await store.close()


@pytest.mark.parametrize(
    "damage", [b"", b"\xc1", b"no msgpack", b"\x93\x01\x02\x03", b"\x96\x01\x07\x01\x01\xa0\xa0"]
)
async def test_a_damaged_record_ends_no_invalidation_and_its_entry_is_a_miss(
    make: Make, client: Redis, damage: bytes
) -> None:
    store = make()
    for name in "abc":
        await store.put(entry_of(name, tags=("x",)), now=NOW)
    await client.hset(prefix_of(store) + b"m", key_of("b"), damage)
    gone = await store.remove(Selector("t", tag="x"))
    assert {meta.key for meta in gone} == {key_of("a"), key_of("c")}
    assert await store.get(key_of("b"), now=NOW) is None
    assert await store.scan(ANY, after=None, limit=9) == []
    assert store.fill().entries == 0
    assert (await store.put(entry_of("b", tags=("x",)), now=NOW)).kept
    assert len(await store.remove(Selector("t", tag="x"))) == 1


async def test_an_entry_whose_head_is_damaged_does_not_survive_an_invalidation(
    make: Make, client: Redis
) -> None:
    store = make()
    await store.put(entry_of("a", tags=("x",)), now=NOW)
    hurt = (
        "local r = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1])) r[6] = 'not a head'"
        " redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(r))"
    )
    await client.eval(hurt, 1, prefix_of(store) + b"m", key_of("a"))
    await store.remove(Selector("t", tag="x"))
    assert await store.get(key_of("a"), now=NOW) is None
