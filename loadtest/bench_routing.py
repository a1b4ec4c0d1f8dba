"""Where prompts go when several engines serve one model, and what that does to their caches.

``python -m loadtest.bench_routing TRACE.jsonl.gz [--engines 8] [--tokens 3_000_000]``

Replays a trace over simulated engines, each with a prefix cache of its own. The measure is one pool
as large as all of them together. ``prefix`` is :mod:`policies.affinity`, the code that routes.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.traces import chains
from policies.affinity import Affinity
from policies.replay import Cache, Chain, Learned, LeastRecentlyUsed, replay

BLOCK_TOKENS: Final = 512
SEED: Final = 1
Choose = Callable[[Chain], int]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to choose: hits in per cent of look-ups, of one pool's; the busiest engine's work."""

    caches: str
    strategy: str
    hit_percent: float
    of_one_pool: float
    busiest_of_mean: float


def strategies(engines: int, capacity: int) -> dict[str, Choose]:
    """The ways to choose, each with a memory of its own."""
    dice, turn = random.Random(SEED), iter(range(10**9))
    names = [str(number) for number in range(engines)]
    affinity = Affinity(dict.fromkeys(names, capacity))

    def by_prefix(chain: Chain) -> int:
        choice = affinity.choose(chain, names)
        affinity.sent(choice.name, chain)
        return int(choice.name)

    return {
        "random": lambda _: dice.randrange(engines),
        "round robin": lambda _: next(turn) % engines,
        "prefix": by_prefix,
    }


def spread_over(
    prompts: Sequence[Chain], choose: Choose, engines: Sequence[Cache]
) -> tuple[float, float]:
    """Hits in per cent; the most computed blocks of an engine as a share of the mean."""
    computed, hits, lookups = [0] * len(engines), 0, 0
    for chain in prompts:
        number = choose(chain)
        found = engines[number].request(chain)
        hits, lookups = hits + found, lookups + len(chain)
        computed[number] += len(chain) - found
    return 100 * hits / lookups, max(computed) * len(engines) / sum(computed)


def compared(prompts: Sequence[Chain], *, engines: int, capacity: int) -> list[Row]:
    """Every way to choose, with engines that evict by use and by what they learned."""
    rows = []
    makers: dict[str, Callable[[int], Cache]] = {"LRU": LeastRecentlyUsed, "learned": Learned}
    for caches, make in makers.items():
        pool = 100 * replay(make(engines * capacity), prompts).hit_rate
        rows.append(Row(caches, "one pool", round(pool, 2), 1.0, 1.0))
        for strategy, choose in strategies(engines, capacity).items():
            hit, busiest = spread_over(prompts, choose, [make(capacity) for _ in range(engines)])
            rows.append(
                Row(caches, strategy, round(hit, 2), round(hit / pool, 4), round(busiest, 3))
            )
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_routing")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=3_000_000, help="that one engine's KV holds")
    wishes = parser.parse_args()
    capacity = wishes.tokens // BLOCK_TOKENS
    rows = compared(chains(wishes.trace), engines=wishes.engines, capacity=capacity)
    table = Table(title=f"{wishes.trace.name} over {wishes.engines} engines of {capacity} blocks")
    for name in ("caches", "strategy", "hit %", "of one pool", "busiest / mean"):
        table.add_column(name, justify="left" if name in {"caches", "strategy"} else "right")
    for row in rows:
        table.add_row(*(str(value) for value in asdict(row).values()))
    Console().print(table)
    content = {**report.facts("loadtest.bench_routing"), "rows": [asdict(row) for row in rows]}
    content["command"] = content["command"].replace(str(wishes.trace), wishes.trace.name)
    print(f"written to {report.write('routing', content)}")


if __name__ == "__main__":
    main()
