"""Places at a backend: bounded, in the order of lanes, and none is ever lost."""

import asyncio
import random
from typing import get_args

import pytest

from gateway.backends.lanes import ORDER, Lanes
from policies.plan import Lane


class Crowd:
    """Tasks that want a place, and who has held one so far."""

    def __init__(self, most: int) -> None:
        self.lanes = Lanes(most)
        self.inside: list[str] = []
        self.most_inside = 0
        self.let_in: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str, lane: Lane = "interactive") -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        task = asyncio.create_task(self._stay(name, lane))
        await asyncio.sleep(0)
        return task

    async def _stay(self, name: str, lane: Lane) -> None:
        async with self.lanes.place(lane):
            self.inside.append(name)
            self.let_in.append(name)
            self.most_inside = max(self.most_inside, len(self.inside))
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)

    async def leaves(self, name: str) -> None:
        self._leave[name].set()
        for _ in range(3):
            await asyncio.sleep(0)


def test_every_lane_has_its_place_in_the_order() -> None:
    assert set(ORDER) == set(get_args(Lane))


async def test_no_more_than_the_bound_are_inside() -> None:
    crowd = Crowd(2)
    for name in "abc":
        await crowd.come(name)
    assert crowd.inside == ["a", "b"]
    assert repr(crowd.lanes) == "<Lanes 0 free, 1 waiting>"
    await crowd.leaves("a")
    assert crowd.inside == ["b", "c"]
    for name in "bc":
        await crowd.leaves(name)
    assert repr(crowd.lanes) == "<Lanes 2 free, 0 waiting>"


async def test_people_go_before_batches_and_batches_before_warming() -> None:
    crowd = Crowd(1)
    await crowd.come("first")
    await crowd.come("warm", "warm")
    await crowd.come("batch 1", "batch")
    await crowd.come("batch 2", "batch")
    await crowd.come("person")
    for name in ("first", "person", "batch 1", "batch 2", "warm"):
        assert crowd.inside == [name]
        await crowd.leaves(name)


async def test_who_goes_away_while_waiting_leaves_the_queue() -> None:
    crowd = Crowd(1)
    await crowd.come("a")
    gone, _ = await crowd.come("b"), await crowd.come("c")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await crowd.leaves("a")
    assert crowd.inside == ["c"]


async def test_who_is_cancelled_in_the_moment_of_being_let_in_hands_the_place_on() -> None:
    crowd = Crowd(1)
    await crowd.come("a")
    let_in = await crowd.come("b")
    await crowd.come("c")
    crowd.lanes._give()  # as by somebody who leaves
    let_in.cancel()
    with pytest.raises(asyncio.CancelledError):
        await let_in
    await asyncio.sleep(0)
    assert crowd.let_in == ["a", "c"]


async def test_who_is_cancelled_and_not_yet_awake_is_passed_over() -> None:
    crowd = Crowd(1)
    await crowd.come("a")
    gone = await crowd.come("b")
    await crowd.come("c")
    gone.cancel()
    crowd.lanes._give()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert crowd.let_in == ["a", "c"]


async def test_no_place_is_lost_whatever_happens() -> None:
    dice, crowd = random.Random(7), Crowd(3)
    tasks: dict[str, asyncio.Task[None]] = {}
    for number in range(400):
        name = str(number)
        tasks[name] = await crowd.come(name, dice.choice(ORDER))
        other = dice.choice(list(tasks))
        if dice.random() < 0.5:
            tasks[other].cancel()
        else:
            await crowd.leaves(other)
    for name in tasks:
        await crowd.leaves(name)
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert crowd.most_inside == 3
    assert repr(crowd.lanes) == "<Lanes 3 free, 0 waiting>"
