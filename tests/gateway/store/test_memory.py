"""What is particular to entries in memory; the contract is in tests/contracts."""

import asyncio
import sys
from collections.abc import Awaitable

import pytest

from gateway.store import memory
from gateway.store.base import Selector
from gateway.store.memory import OVERHEAD_BYTES, PORTION, MemoryStore, footprint
from tests.kit.entries import NOW, entry_of, key_of


async def test_an_entry_is_charged_with_more_than_its_body() -> None:
    store = MemoryStore("hot", max_bytes=10_000)
    entry = entry_of("a", b"x" * 100)
    await store.put(entry, now=NOW)
    assert store.fill().size_bytes == footprint(entry) == 100 + OVERHEAD_BYTES


def test_the_overhead_covers_what_an_entry_holds() -> None:
    meta = entry_of("a", b"", cache_key="faq:12", tags=("x",)).meta
    parts = [meta, meta.key, meta.scope, meta.cache_key, meta.stored_at, meta.ttl_s, meta.tags]
    assert sum(map(sys.getsizeof, parts)) < OVERHEAD_BYTES


async def test_many_small_entries_do_not_get_in_for_free() -> None:
    store = MemoryStore("hot", max_bytes=10 * OVERHEAD_BYTES)
    for number in range(100):
        await store.put(entry_of(str(number), b""), now=NOW)
    assert store.fill().entries == 10
    assert store.fill().evictions == 90


async def test_what_is_used_stays_longer() -> None:
    store = MemoryStore("hot", max_bytes=3 * (OVERHEAD_BYTES + 10))
    for name in "abc":
        await store.put(entry_of(name, b"x" * 10), now=NOW)
    for _ in range(3):
        await store.get(key_of("a"), now=NOW + 1)
    stored = await store.put(entry_of("d", b"x" * 10), now=NOW + 2)
    assert stored.kept
    assert key_of("a") not in {meta.key for meta in stored.gone}


async def test_an_entry_that_may_be_served_stale_is_not_yet_expired_to_eviction() -> None:
    store = MemoryStore("hot", max_bytes=2 * (OVERHEAD_BYTES + 10))
    await store.put(entry_of("stale", b"x" * 10, stale_if_error_s=500.0, priority="high"), now=NOW)
    await store.put(entry_of("fresh", b"x" * 10, priority="low", ttl_s=1000.0), now=NOW)
    stored = await store.put(entry_of("new", b"x" * 10, ttl_s=1000.0), now=NOW + 200)
    assert [meta.key for meta in stored.gone] == [key_of("fresh")]


async def test_its_state_can_be_read_off() -> None:
    store = MemoryStore("hot", max_bytes=10_000)
    await store.put(entry_of("a", b"x" * 100), now=NOW)
    assert repr(store) == "<MemoryStore hot: 1 entries, 1300/10000 bytes, 0 evicted>"
    await store.close()
    assert store.fill().entries == 0


def shared(most: int, *, max_bytes: int = 100_000) -> MemoryStore:
    return MemoryStore("warm", max_bytes=max_bytes, shares={"greedy": most})


async def test_a_tenant_with_a_share_pushes_out_its_own_entries_only() -> None:
    store, one = shared(3000), footprint(entry_of("x", b"x" * 300, tenant="greedy"))
    for number in range(20):
        await store.put(entry_of(f"t{number}", b"x" * 300), now=NOW)
    for number in range(20):
        stored = await store.put(
            entry_of(f"g{number}", b"x" * 300, tenant="greedy", cost_s=1.0 + number), now=NOW
        )
        assert stored.kept
        assert {meta.scope.tenant for meta in stored.gone} <= {"greedy"}
    assert len(await store.scan(Selector("t"), after=None, limit=100)) == 20
    left = await store.scan(Selector("greedy"), after=None, limit=100)
    assert len(left) == 3000 // one
    assert key_of("g19") in {meta.key for meta in left}


async def test_what_is_larger_than_a_tenants_share_is_not_kept() -> None:
    store = shared(2000)
    assert not (await store.put(entry_of("g", b"x" * 2000, tenant="greedy"), now=NOW)).kept
    assert (await store.put(entry_of("t", b"x" * 2000), now=NOW)).kept


async def test_a_share_counts_what_is_there_and_not_what_was() -> None:
    store = shared(5000)
    for round_ in range(3):
        for number in range(3):
            entry = entry_of(f"g{number}", b"x" * (300 + round_), tenant="greedy")
            assert (await store.put(entry, now=NOW)).kept
    await store.remove(Selector("greedy", key=key_of("g0")))
    assert (await store.put(entry_of("g9", b"x" * 300, tenant="greedy"), now=NOW)).gone == []
    await store.close()
    assert (await store.put(entry_of("g1", b"x" * 3000, tenant="greedy"), now=NOW)).gone == []


async def test_a_full_store_takes_from_a_tenant_with_a_share_too() -> None:
    store = shared(5000, max_bytes=5000)
    await store.put(entry_of("g", b"x" * 1500, tenant="greedy", priority="low"), now=NOW)
    stored = await store.put(entry_of("t", b"x" * 3000, priority="high"), now=NOW)
    assert [meta.key for meta in stored.gone] == [key_of("g")]
    again = await store.put(entry_of("h", b"x" * 3000, tenant="greedy", priority="low"), now=NOW)
    assert not again.kept
    assert again.gone == []


async def test_what_is_still_good_is_handed_out_whole_and_what_expired_is_not() -> None:
    store = MemoryStore("hot", max_bytes=2 * footprint(entry_of("a", b"x" * 900)))
    await store.put(entry_of("old", b"x" * 900, ttl_s=1.0), now=NOW)
    await store.put(entry_of("good", b"y" * 900, ttl_s=100.0), now=NOW)
    for name in ("a", "b"):
        await store.put(entry_of(name, b"x" * 900, cost_s=9.0, ttl_s=100.0), now=NOW + 2)
    first = await store.put(entry_of("c", b"x" * 900, cost_s=99.0, ttl_s=100.0), now=NOW + 2)
    assert [entry.meta.key for entry in first.sinking] == [key_of("a")]
    assert first.evicted == []


async def turns_during(work: Awaitable[object]) -> int:
    """How many turns others had while ``work`` was done."""
    turns, done = 0, asyncio.ensure_future(work)
    while not done.done():
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_others_have_their_turn_while_many_entries_are_looked_through() -> None:
    store = MemoryStore("hot", max_bytes=10**9)
    for number in range(3 * PORTION):
        await store.put(entry_of(str(number)), now=NOW)
    for selector in (Selector("other"), Selector("t")):
        assert await turns_during(store.scan(selector, after=None, limit=1)) >= 3
        assert await turns_during(store.remove(selector)) >= 3
    assert store.fill().entries == 0


async def test_removing_a_single_key_never_lets_others_between() -> None:
    store = MemoryStore("hot", max_bytes=10**6)
    await store.put(entry_of("a"), now=NOW)
    with pytest.raises(StopIteration):
        store.remove(Selector(None, key=key_of("a"))).send(None)
    assert store.fill().entries == 0


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_a_page_is_in_order_however_many_turns_it_took(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PORTION", 3)
    store = MemoryStore("hot", max_bytes=10**6)
    for number in range(20):
        await store.put(entry_of(str(number), tags=("even",) * (number % 2 == 0)), now=NOW)
    even = sorted(key_of(str(number)) for number in range(0, 20, 2))
    for start, after in ((0, None), (4, even[3]), (10, even[-1])):
        page = await store.scan(Selector("t", tag="even"), after=after, limit=limit)
        assert [meta.key for meta in page] == even[start : start + limit]


async def test_what_goes_while_others_have_their_turn_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "PORTION", 1)
    store = MemoryStore("hot", max_bytes=10**6)
    for name in "ab":
        await store.put(entry_of(name), now=NOW)
    removal = asyncio.ensure_future(store.remove(Selector("t")))
    await asyncio.sleep(0)
    await store.remove(Selector(None, key=key_of("b")))
    assert [meta.key for meta in await removal] == [key_of("a")]
