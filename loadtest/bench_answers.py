"""Which stored answers go first: the response store's order on made-up traffic.

``python -m loadtest.bench_answers [--requests 60000] [--seed 1] [--repeats 0.05]``

Nobody publishes traces of whole requests with their answers' sizes, so the traffic is made: frequent
questions by Zipf's law, and conversations of three to twelve turns of which the latest turn is asked
again now and then (``--repeats``), earlier ones never. How long answers are, and with that what they
cost, is log-normal. So the figures say what the order does with such traffic, not how yours is.
"""

import argparse
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from policies.eviction import EvictionOrder
from policies.replay import Lookup, with_foresight

SIZES: Final = (2**18, 2**20, 2**22)
QUESTIONS: Final = 3000
TALKS: Final = 400
OF_QUESTIONS: Final = 0.45
"""Share of requests that are frequent questions; the others belong to conversations."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its key, the one it goes on from, what its answer takes and costs."""

    at: float
    key: str
    before: str | None
    size: float
    cost_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One order with one size: hits, and seconds of computing that they save, in per cent."""

    order: str
    max_bytes: int
    hit_percent: float
    saved_percent: float | None


def traffic(requests: int, seed: int, *, repeats: float) -> Iterator[Asked]:
    """Requests in their order."""
    dice, at = random.Random(seed), 0.0
    often = [1 / (place + 1) ** 0.9 for place in range(QUESTIONS)]
    answers: dict[str, tuple[float, float]] = {}
    talks: list[list[int]] = []  # number, turn, turns
    begun = 0
    for _ in range(requests):
        at += dice.expovariate(5.0)
        before = None
        if dice.random() < OF_QUESTIONS:
            key = f"q{dice.choices(range(QUESTIONS), often)[0]}"
        else:
            if len(talks) < TALKS:
                talks.append([begun, 0, dice.randint(3, 12)])
                begun += 1
            talk = dice.choice(talks)
            if not talk[1] or dice.random() >= repeats:
                talk[1] += 1
            if talk[1] > talk[2]:
                talks.remove(talk)
            key = f"t{talk[0]}.{talk[1]}"
            before = f"t{talk[0]}.{talk[1] - 1}" if talk[1] > 1 else None
        if key not in answers:
            tokens = max(5, int(dice.lognormvariate(4.5, 1.0)))
            answers[key] = (1200.0 + 5 * tokens, 0.2 + 0.02 * tokens)
        yield Asked(at, key, before, *answers[key])


def in_order_of_worth(asked: Sequence[Asked], max_bytes: int, *, supersedes: bool) -> list[bool]:
    """Which requests are hits in a store with ``policies.eviction``, as the memory tier drives it."""
    order: EvictionOrder[str] = EvictionOrder()
    held: dict[str, float] = {}
    taken, hits = 0.0, []
    for one in asked:
        hits.append(one.key in held)
        if one.key in held:
            order.touch(one.key, now=one.at)
            continue
        if supersedes and one.before is not None:
            order.supersede(one.before)
        order.add(
            one.key, priority="medium", expires_at=inf, cost=one.cost_s, size=one.size, now=one.at
        )
        held[one.key] = one.size
        taken += one.size
        while taken > max_bytes:
            victim = order.pop(now=one.at)
            assert victim is not None, "what is held is in the order"
            taken -= held.pop(victim)
    return hits


def by_last_use(asked: Sequence[Asked], max_bytes: int) -> list[bool]:
    """The same with LRU."""
    held: OrderedDict[str, float] = OrderedDict()
    taken, hits = 0.0, []
    for one in asked:
        hits.append(one.key in held)
        taken += one.size - held.pop(one.key, 0.0)
        held[one.key] = one.size
        while taken > max_bytes:
            taken -= held.popitem(last=False)[1]
    return hits


def measured(asked: Sequence[Asked], sizes: Sequence[int]) -> list[Row]:
    """Every order with every size."""
    rows = []
    seen: set[str] = set()
    lookups = []
    for one in asked:
        lookups.append(Lookup(one.key, one.size, good=one.key in seen))
        seen.add(one.key)
    for max_bytes in sizes:
        found = {
            "LRU": by_last_use(asked, max_bytes),
            "by worth": in_order_of_worth(asked, max_bytes, supersedes=False),
            "kvgate": in_order_of_worth(asked, max_bytes, supersedes=True),
        }
        for order, hits in found.items():
            saved = sum(one.cost_s for one, hit in zip(asked, hits, strict=True) if hit)
            share = round(100 * saved / sum(one.cost_s for one in asked), 2)
            rows.append(Row(order, max_bytes, round(100 * sum(hits) / len(asked), 2), share))
        best = 100 * with_foresight(lookups, max_bytes).hit_rate
        rows.append(Row("foresight", max_bytes, round(best, 2), None))
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_answers")
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=float, default=0.05, help="of a turn, before the next")
    wishes = parser.parse_args()
    asked = list(traffic(wishes.requests, wishes.seed, repeats=wishes.repeats))
    rows = measured(asked, SIZES)
    table = Table(title=f"{len(asked):,} requests, {wishes.repeats:.0%} of turns repeated")
    for name in ("order", "bytes", "hits %", "seconds saved %"):
        table.add_column(name, justify="left" if name == "order" else "right")
    for row in rows:
        saved = "" if row.saved_percent is None else f"{row.saved_percent:.2f}"
        table.add_row(row.order, f"{row.max_bytes:,}", f"{row.hit_percent:.2f}", saved)
    Console().print(table)
    content = {**report.facts("loadtest.bench_answers"), "rows": [asdict(row) for row in rows]}
    print(f"written to {report.write('answers', content)}")


if __name__ == "__main__":
    main()
