"""Who goes first: warming in quiet moments, and a little beside users."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.traffic import LEAST_REST_S, LONGEST_REST_S, QUIET_S, REST, Traffic
from tests.kit.timer import Timer, turns


class Road:
    """A traffic on which warming drives, a second for each piece of work unless told otherwise."""

    def __init__(self, places: int = 2) -> None:
        self.timer = Timer()
        self.traffic = Traffic(places=places, clock=self.timer.monotonic, sleep=self.timer.sleep)
        self.begun: list[float] = []
        self.lasts_s = 1.0

    async def drive(self, times: int) -> None:
        for _ in range(times):
            async with self.traffic.turn():
                self.begun.append(self.timer.monotonic())
                await self.timer.sleep(self.lasts_s)

    @asynccontextmanager
    async def driving(self, *, drivers: int = 2, times: int = 3) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.drive(times)) for _ in range(drivers)]
        await turns()
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_alone_warming_takes_all_its_places_and_no_more() -> None:
    road = Road(places=2)
    async with road.driving(drivers=3, times=2):
        assert road.traffic.warming == 2
        await road.timer.go_on(10)
        assert road.begun == [0, 0, 1, 1, 2, 2]


async def test_while_users_are_in_the_air_it_takes_one_place_and_rests_four_times_as_long() -> None:
    road = Road()
    with road.traffic.of("interactive"):
        async with road.driving():
            assert road.traffic.warming == 1
            await road.timer.go_on(11)
            assert road.begun == [0.0, 1 + REST, 2 * (1 + REST)]


async def test_it_always_gets_on() -> None:
    road = Road()
    road.lasts_s = 1000.0
    with road.traffic.of("batch"):
        async with road.driving():
            await road.timer.go_on(3 * (1000 + LONGEST_REST_S + 1))
            assert len(road.begun) >= 3


async def test_short_work_rests_a_least_time() -> None:
    road = Road()
    road.lasts_s = 0.0
    with road.traffic.of("interactive"):
        async with road.driving(drivers=1):
            await road.timer.go_on(2)
            assert road.begun[1] >= LEAST_REST_S


async def test_a_gap_between_two_calls_of_a_user_is_no_quiet_moment() -> None:
    road = Road()
    with road.traffic.of("interactive"):
        pass
    assert not road.traffic.quiet
    road.timer.advance(QUIET_S / 2)
    assert not road.traffic.quiet
    with road.traffic.of("interactive"):
        assert not road.traffic.quiet
        road.timer.advance(10)
    road.timer.advance(QUIET_S)
    assert road.traffic.quiet


async def test_warming_is_no_user() -> None:
    road = Road()
    with road.traffic.of("warm"):
        assert road.traffic.quiet
    assert repr(road.traffic) == "<Traffic 0 users, 0 warming>"


async def test_who_fails_or_is_cancelled_gives_the_place_back() -> None:
    road = Road(places=1)
    for _ in range(3):
        async with road.driving(drivers=1, times=1):
            assert road.traffic.warming == 1
        assert road.traffic.warming == 0
