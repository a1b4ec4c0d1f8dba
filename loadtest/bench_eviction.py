"""Hit rates of orders of eviction on traces of prompts.

``python -m loadtest.bench_eviction TRACE.jsonl.gz... [--blocks 1000,3000,5859,10000]``

``kvgate`` is ``policies.reuse.ReuseOrder``, driven as the engine drives it; the others are measures:
those of ``loadtest.eviction_baselines``, and Belady's optimum, which knows the future. A block of a
prompt is a hit when it and all before it are there; answers are not cached.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.eviction_baselines import (
    AdaptiveReplacement,
    FirstIn,
    LeastFrequentlyUsed,
    S3Fifo,
)
from loadtest.traces import chains
from policies.replay import Cache, Chain, Learned, LeastRecentlyUsed, Optimal, replay

BLOCKS: Final = (1000, 3000, 5859, 10_000)
"""5,859 blocks of 512 tokens are the 3 million tokens of Mooncake's own figure (FAST'25, fig. 9)."""
Make = Callable[[int, Sequence[Chain]], Cache]
ORDERS: Final[dict[str, Make]] = {
    "FIFO": lambda blocks, _: FirstIn(blocks),
    "LRU": lambda blocks, _: LeastRecentlyUsed(blocks),
    "LFU": lambda blocks, _: LeastFrequentlyUsed(blocks),
    "LFU, remembers": lambda blocks, _: LeastFrequentlyUsed(blocks, remembers=True),
    "ARC": lambda blocks, _: AdaptiveReplacement(blocks),
    "S3-FIFO": lambda blocks, _: S3Fifo(blocks),
    "kvgate": lambda blocks, _: Learned(blocks),
    "Belady": Optimal,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One order with one size on one trace; hits in per cent of look-ups."""

    trace: str
    order: str
    blocks: int
    hit_percent: float
    evictions: int
    seconds: float


def measured(trace: str, prompts: Sequence[Chain], sizes: Sequence[int]) -> list[Row]:
    """Every order with every size."""
    rows = []
    for order, make in ORDERS.items():
        for blocks in sizes:
            began = time.perf_counter()
            score = replay(make(blocks, prompts), prompts)
            seconds = round(time.perf_counter() - began, 2)
            percent = round(100 * score.hit_rate, 2)
            rows.append(Row(trace, order, blocks, percent, score.evictions, seconds))
    return rows


def table(trace: str, rows: Sequence[Row], sizes: Sequence[int]) -> Table:
    """Orders down, sizes across."""
    shown = Table(title=f"{trace}: hits in per cent of block look-ups", title_justify="left")
    shown.add_column("order")
    for blocks in sizes:
        shown.add_column(f"{blocks:,} blocks", justify="right")
    by_place = {(row.order, row.blocks): row.hit_percent for row in rows if row.trace == trace}
    for order in ORDERS:
        shown.add_row(order, *(f"{by_place[order, blocks]:.2f}" for blocks in sizes))
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_eviction")
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--blocks", type=_sizes, default=BLOCKS, help="sizes, as 1000,3000")
    wishes = parser.parse_args()
    rows: list[Row] = []
    for trace in wishes.traces:
        rows += measured(trace.name, chains(trace), wishes.blocks)
        Console().print(table(trace.name, rows, wishes.blocks))
    content = {**report.facts("loadtest.bench_eviction"), "rows": [asdict(row) for row in rows]}
    for trace in wishes.traces:
        content["command"] = content["command"].replace(str(trace), trace.name)
    print(f"written to {report.write('eviction', content)}")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


if __name__ == "__main__":
    main()
