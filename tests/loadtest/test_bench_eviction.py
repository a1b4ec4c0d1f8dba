"""The comparison of orders of eviction compares what it says."""

import random
from itertools import pairwise

from loadtest.bench_eviction import ORDERS, measured, table

SIZES = (10, 40, 1000)


def turns() -> list[list[int]]:
    """Thirty conversations of a few turns each, in turn, and prompts that never come back."""
    dice, prompts, fresh = random.Random(1), [], iter(range(10**6, 10**7))
    talks = [[talk] for talk in range(30)]
    for _ in range(400):
        talk = dice.choice(talks)
        talk.append(next(fresh))
        if len(talk) > 6:
            del talk[1:]
        prompts += [[*talk], [next(fresh), next(fresh)]]
    return prompts


def test_every_order_is_measured_with_every_size_and_none_beats_the_optimum() -> None:
    prompts = turns()
    rows = measured("turns", prompts, SIZES)
    hit = {(row.order, row.blocks): row.hit_percent for row in rows}
    assert hit.keys() == {(order, blocks) for order in ORDERS for blocks in SIZES}
    for order in ORDERS:
        assert hit[order, 40] <= hit["Belady", 40]
        assert all(hit[order, one] <= hit[order, two] for one, two in pairwise(SIZES)), order
    assert len({hit[order, 40] for order in ORDERS}) > 3
    shown = table("turns", rows, SIZES)
    assert [column.header for column in shown.columns][1:] == [
        "10 blocks",
        "40 blocks",
        "1,000 blocks",
    ]
    assert shown.row_count == len(ORDERS)
