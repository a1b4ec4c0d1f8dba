"""The simulation of several engines counts right."""

import gzip
from pathlib import Path

import pytest

from loadtest.bench_routing import compared, spread_over
from loadtest.traces import TraceError, chains
from policies.replay import LeastRecentlyUsed

TURNS = [[1, 10, 11], [1, 20, 21], [1, 10, 11, 12], [1, 20, 21, 22]]


def test_hits_and_the_busiest_engine_are_counted() -> None:
    engines = [LeastRecentlyUsed(10), LeastRecentlyUsed(10)]
    hit, busiest = spread_over(TURNS, lambda chain: int(10 not in chain), engines)
    assert hit == pytest.approx(100 * 6 / 14)
    assert busiest == 1.0
    hit, busiest = spread_over(TURNS, lambda _: 0, [LeastRecentlyUsed(10), LeastRecentlyUsed(10)])
    assert hit == pytest.approx(100 * 7 / 14)
    assert busiest == 2.0


def test_by_prefix_finds_more_than_by_chance() -> None:
    prompts = [
        [1, *range(talk * 100, talk * 100 + turn)] for turn in range(2, 9) for talk in range(1, 30)
    ]
    rows = {(row.caches, row.strategy): row for row in compared(prompts, engines=4, capacity=200)}
    for caches in ("LRU", "learned"):
        assert rows[caches, "prefix"].of_one_pool > 0.9
        assert rows[caches, "prefix"].hit_percent > rows[caches, "random"].hit_percent
        assert rows[caches, "prefix"].busiest_of_mean < 1.5


def test_a_trace_is_read_plain_or_gzipped_and_a_bad_line_is_named(tmp_path: Path) -> None:
    line = '{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [1, 2]}\n'
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text(line)
    packed.write_bytes(gzip.compress(line.encode()))
    assert chains(plain) == chains(packed) == [[1, 2]]
    plain.write_text(line + '{"timestamp": 1}\n')
    with pytest.raises(TraceError, match=r"a\.jsonl:2"):
        chains(plain)
