"""Frames: one for all who look, changes only, none while nobody looks."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from gateway.dashboard import LONGEST_FRAME_S, SHARE, Dashboard
from gateway.history import COARSE_S
from gateway.numbers import Numbers
from gateway.tally import Statistics
from policies.outcome import Outcome
from tests.kit.clock import Clock

MISS = Outcome(key="k", tier="hot", miss_reason="cold")


@dataclass
class Slow:
    """Sections of its own."""

    said: dict[str, Any] = field(default_factory=lambda: {"jobs": {"data": []}})
    asked: int = 0

    async def sections(self) -> dict[str, Any]:
        self.asked += 1
        return dict(self.said)


class Stage:
    """A dashboard under a clock that moves when it sleeps, or when adding up `costs_s`."""

    def __init__(self, workers: int) -> None:
        self.clock, self.slow, self.statistics = Clock(1000.0), Slow(), Statistics()
        self.slept: list[float] = []
        self.costs_s = 0.0
        self.fails = False
        self.turn = asyncio.Event()
        self.dashboard = Dashboard(
            numbers=self.numbers,
            slow=self.slow,
            now=self.clock.now,
            used=self.ticking,
            workers=workers,
            sleep=self.sleep,
        )

    def ticking(self) -> float:
        self.clock.advance(self.costs_s)
        return self.clock.monotonic()

    async def numbers(self) -> Numbers:
        if self.fails:
            raise RuntimeError("a defect")
        return Numbers(self.statistics)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)
        await self.turn.wait()
        self.turn.clear()

    def miss(self) -> None:
        self.statistics.group(("chat", "none", 200, "hot", "m", "t", "cold")).add(
            MISS, seconds=0.1, seconds_saved=0.0, money=0.0
        )


@asynccontextmanager
async def staged(workers: int = 1) -> AsyncIterator[Stage]:
    stage = Stage(workers)
    running = asyncio.get_running_loop().create_task(stage.dashboard.run())
    try:
        yield stage
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def next_of(frames: AsyncGenerator[bytes, None]) -> tuple[str, Any]:
    async with asyncio.timeout(10):
        frame = await anext(frames)
    name, data = frame.decode().removesuffix("\n\n").split("\ndata: ")
    return name.removeprefix("event: "), orjson.loads(data)


async def test_who_comes_gets_everything_and_then_what_changes() -> None:
    async with staged() as stage:
        stage.miss()
        frames = stage.dashboard.frames()
        name, whole = await next_of(frames)
        assert name == "whole"
        assert whole["sections"]["stats"]["requests"] == 1
        assert whole["sections"]["jobs"] == {"data": []}
        assert sum(counts[4] for _, counts in whole["rows"]) == 1
        stage.miss()
        stage.turn.set()
        name, changes = await next_of(frames)
        assert name == "changes"
        assert changes["sections"].keys() == {"stats"}
        assert changes["sections"]["stats"]["miss_reasons"] == {"cold": 2}
        assert [counts[4] for _, counts in changes["rows"]] == [1]
        stage.turn.set()
        name, changes = await next_of(frames)
        assert (name, changes["sections"]) == ("changes", {})
        await frames.aclose()


async def test_all_who_look_share_one_frame_and_who_missed_one_gets_everything() -> None:
    async with staged() as stage:
        quick, slow = stage.dashboard.frames(), stage.dashboard.frames()
        await next_of(quick)
        await next_of(slow)
        for _ in range(3):
            stage.turn.set()
            name, _ = await next_of(quick)
            assert name == "changes"
        assert stage.dashboard.viewers == 2
        assert stage.slow.asked == 4
        name, whole = await next_of(slow)
        assert name == "whole"
        assert len(whole["rows"]) == len(stage.dashboard._history.rows())
        assert repr(stage.dashboard).startswith("<Dashboard 2 viewers, frame 4, ")
        await quick.aclose()
        await slow.aclose()
        assert stage.dashboard.viewers == 0


async def test_while_nobody_looks_no_frame_is_made() -> None:
    async with staged() as stage:
        frames = stage.dashboard.frames()
        await next_of(frames)
        await frames.aclose()
        asked = stage.slow.asked
        stage.turn.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.slow.asked == asked
        assert len(stage.dashboard._history.rows()) >= 2  # a row for who comes later
        assert COARSE_S not in stage.slept  # that wait ends when somebody comes


async def test_frames_that_cost_much_are_made_less_often() -> None:
    async with staged() as stage:
        frames = stage.dashboard.frames()
        await next_of(frames)
        assert stage.slept == [1.0]
        stage.costs_s = 0.004
        stage.turn.set()
        await next_of(frames)
        assert stage.slept[-1] == pytest.approx(0.004 / SHARE)
        stage.costs_s = 5.0
        stage.turn.set()
        await next_of(frames)
        while len(stage.slept) < 3:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        assert stage.slept[-1] == LONGEST_FRAME_S
        assert stage.dashboard.spent_s > 5.0
        await frames.aclose()


async def test_of_several_workers_frames_are_as_many_seconds_apart() -> None:
    async with staged(workers=4) as stage:
        frames = stage.dashboard.frames()
        await next_of(frames)
        assert stage.slept == [4.0]
        await frames.aclose()


async def test_a_defect_costs_a_frame_and_no_more() -> None:
    async with staged() as stage:
        frames = stage.dashboard.frames()
        await next_of(frames)
        stage.fails = True
        stage.turn.set()
        while len(stage.slept) < 2:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        stage.fails = False
        stage.turn.set()
        assert (await next_of(frames))[0] == "changes"
        await frames.aclose()


async def test_at_the_end_nobody_is_kept_waiting() -> None:
    async with staged() as stage:
        frames = stage.dashboard.frames()
        await next_of(frames)
        stage.dashboard.close()
        assert [frame async for frame in frames] == []
