"""What is particular to entries in memory; the contract is in tests/contracts."""

import sys

from gateway.store.memory import OVERHEAD_BYTES, MemoryStore, footprint
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
    assert key_of("a") not in {meta.key for meta in stored.evicted}


async def test_an_entry_that_may_be_served_stale_is_not_yet_expired_to_eviction() -> None:
    store = MemoryStore("hot", max_bytes=2 * (OVERHEAD_BYTES + 10))
    await store.put(entry_of("stale", b"x" * 10, stale_if_error_s=500.0, priority="high"), now=NOW)
    await store.put(entry_of("fresh", b"x" * 10, priority="low", ttl_s=1000.0), now=NOW)
    stored = await store.put(entry_of("new", b"x" * 10, ttl_s=1000.0), now=NOW + 200)
    assert [meta.key for meta in stored.evicted] == [key_of("fresh")]


async def test_its_state_can_be_read_off() -> None:
    store = MemoryStore("hot", max_bytes=10_000)
    await store.put(entry_of("a", b"x" * 100), now=NOW)
    assert repr(store) == "<MemoryStore hot: 1 entries, 1300/10000 bytes, 0 evicted>"
    await store.close()
    assert store.fill().entries == 0
