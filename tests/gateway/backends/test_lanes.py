"""Places at a backend: bounded, in the order of lanes, and none is ever lost."""

import asyncio
import random
from typing import Any, get_args

import pytest

from gateway.backends.lanes import ORDER, Lanes
from gateway.errors import BackendFault
from policies.plan import Lane


class Crowd:
    """Tasks that want a place, and who has held one so far."""

    def __init__(self, most: int, **kwargs: Any) -> None:
        self.now_s = 0.0
        self.lanes = Lanes(most, clock=lambda: self.now_s, **kwargs)
        self.inside: list[str] = []
        self.most_inside = 0
        self.let_in: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}

    async def come(
        self, name: str, lane: Lane = "interactive", tenant: str = "acme"
    ) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        task = asyncio.create_task(self._stay(name, lane, tenant))
        await asyncio.sleep(0)
        return task

    async def _stay(self, name: str, lane: Lane, tenant: str) -> None:
        async with self.lanes.place(lane, tenant):
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


async def test_within_a_lane_tenants_take_turns() -> None:
    crowd = Crowd(1)
    await crowd.come("first")
    for number in range(3):
        await crowd.come(f"crowd {number}", tenant="big")
    await crowd.come("single", tenant="small")
    await crowd.come("batch", "batch", tenant="third")
    await crowd.come("again", tenant="small")
    for name in ("first", "crowd 0", "single", "crowd 1", "again", "crowd 2", "batch"):
        assert crowd.inside == [name]
        await crowd.leaves(name)


async def test_a_tenant_whose_queue_in_a_lane_is_full_is_told_when_to_come_back() -> None:
    crowd = Crowd(1, most_waiting=2)
    await crowd.come("first")
    for name in "ab":
        await crowd.come(name)
    with pytest.raises(BackendFault) as caught:
        await (await crowd.come("c"))
    refusal = caught.value
    assert (refusal.status, refusal.code, refusal.retry_after_s) == (429, "queue_full", 1.0)
    await crowd.come("other", tenant="other")  # another's crowd is nobody's refusal
    await crowd.come("batch", "batch")  # and the lanes do not count for each other
    assert repr(crowd.lanes) == "<Lanes 0 free, 4 waiting>"
    crowd.now_s = 100.0
    await crowd.leaves("first")
    await crowd.come("d")
    with pytest.raises(BackendFault) as caught:
        await (await crowd.come("e"))
    assert caught.value.retry_after_s == 40.0  # two wait; calls have taken 20 s of late


async def test_who_has_left_the_queue_makes_room_in_it() -> None:
    crowd = Crowd(1, most_waiting=1)
    await crowd.come("first")
    gone = await crowd.come("gone")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert repr(crowd.lanes) == "<Lanes 0 free, 0 waiting>"
    await crowd.come("next")
    await crowd.leaves("first")
    assert crowd.inside == ["next"]


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
        tasks[name] = await crowd.come(name, dice.choice(ORDER), dice.choice("xyz"))
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
