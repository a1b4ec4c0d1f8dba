"""The clock on which one can sleep."""

import asyncio

from tests.kit.timer import Timer, turns


async def test_sleepers_wake_in_their_turn() -> None:
    timer, woken = Timer(), list[tuple[str, float]]()

    async def sleeper(name: str, *naps: float) -> None:
        for nap in naps:
            await timer.sleep(nap)
            woken.append((name, timer.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("a", 3.0))
        group.create_task(sleeper("b", 1.0, 1.0))
        await turns()
        assert timer.sleepers == [1.0, 3.0]
        await timer.go_on(2.5)
        assert woken == [("b", 1.0), ("b", 2.0)]
        assert timer.monotonic() == 2.5
        await timer.go_on(1.0)
    assert woken[-1] == ("a", 3.0)
