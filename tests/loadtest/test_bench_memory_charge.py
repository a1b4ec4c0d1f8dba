"""Stored answers take what they are charged, by the allocations that stay."""

import asyncio
import gc
import tracemalloc

import pytest

from gateway.store.memory import MemoryStore
from loadtest.bench_memory_charge import Growth, fill, measured


@pytest.mark.parametrize(("kib", "count"), [(0.5, 1000), (5.0, 300), (50.0, 60)])
def test_what_stays_allocated_is_what_is_charged(kib: float, count: int) -> None:
    store = MemoryStore("hot", max_bytes=2**30)
    asyncio.run(fill(store, 1, kib))
    gc.collect()
    tracemalloc.start()
    try:
        before, charged = tracemalloc.get_traced_memory()[0], store.fill().size_bytes
        asyncio.run(fill(store, count, kib))
        gc.collect()
        grew = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert Growth(store.fill().size_bytes - charged, grew).ratio == pytest.approx(1.0, abs=0.15)


def test_the_benchmark_measures_both() -> None:
    growth = measured(5.0, 200)
    assert growth.charged > 200 * 5 * 1024
    assert growth.resident >= 0
