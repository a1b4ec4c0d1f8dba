"""Tiers with the engine's real threads: who waits for whom, and who must not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from engine.engine import Engine
from engine.kv.blocks import BlockPool
from engine.kv.opening import open_tiers
from engine.kv.prefix import PrefixIndex
from engine.request import GenerationRequest, SamplingParams
from engine.scheduler import Limits, Schedule, Scheduler
from tests.kit.scripted_runner import END, ScriptedRunner, solo
from tests.kit.tiered import FINGERPRINT, ScriptedStore

BLOCKS, P = 8, 4
PROMPT = tuple(range(1, 18))


class Threaded:
    """A scripted engine that runs, with a tier on disk."""

    def __init__(self, folder: Path) -> None:
        self.runner = ScriptedRunner(blocks=BLOCKS, block_tokens=P)
        store = ScriptedStore(self.runner)
        self.index = PrefixIndex(BlockPool(BLOCKS), block_tokens=P)
        self.tiers = open_tiers(
            self.index,
            store,
            fingerprint=FINGERPRINT,
            block_bytes=store.block_bytes,
            warm_bytes=0,
            disk_path=str(folder),
            disk_bytes=1 << 20,
            clock=time.monotonic,
            wall=time.time,
        )
        assert self.tiers.cold is not None
        self.cold = self.tiers.cold
        limits = Limits(chunk_tokens=16, max_sequences=4, max_model_len=1000)
        self.scheduler = Scheduler(
            self.index, limits, end_tokens=frozenset({END}), tiers=self.tiers
        )
        self.schedules = 0
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._counted  # type: ignore[method-assign]  # to count them
        self.engine: Engine[list[int]] = Engine(self.scheduler, self.runner, self.runner)

    def _counted(self, *, now: float) -> Schedule:
        self.schedules += 1
        return self._schedule(now=now)

    async def ask(self, prompt: tuple[int, ...], **more: Any) -> tuple[list[int], int]:
        """Tokens of the answer, and how many of the prompt came from disk."""
        self.asked = getattr(self, "asked", 0) + 1
        sampling = SamplingParams(temperature=0.0, max_tokens=more.pop("max_tokens", 2))
        request = GenerationRequest(id=f"r{self.asked}", prompt=prompt, sampling=sampling, **more)
        tokens, receipt = [], None
        async for event in self.engine.generate(request):
            receipt = receipt or event.receipt
            if event.token is not None:
                tokens.append(event.token)
        assert receipt is not None
        return tokens, receipt.cold

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the threads work until it is so."""
        async with asyncio.timeout(60):
            while not true():  # noqa: ASYNC110 - other threads make it so
                await asyncio.sleep(0.005)

    async def pushed_out(self) -> None:
        await self.until(lambda: len(self.cold.shelf) >= 4 and not self.cold._writing)
        await self.ask(tuple(range(500, 530)), ttl_s=0.0, salt="filler")


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[Threaded, None]:
    one = Threaded(folder)
    one.engine.start()
    try:
        yield one
    finally:
        await asyncio.to_thread(one.engine.close)


async def test_an_idle_engine_writes_ahead_and_reads_back_what_was_evicted(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        assert await one.ask(PROMPT) == (solo(PROMPT, 2), 0)
        await one.pushed_out()
        assert await one.ask(PROMPT) == (solo(PROMPT, 2), 16)


async def test_what_was_in_the_pool_when_it_was_closed_is_found_by_the_next(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await one.ask(PROMPT)
    async with running(tmp_path) as two:
        assert await two.ask(PROMPT) == (solo(PROMPT, 2), 16)


async def test_a_slow_read_stops_nobody_else_and_turns_no_wheels(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await one.ask(PROMPT)
        await one.pushed_out()
        go, really = threading.Event(), one.cold.file.read

        def slow(slot: int, payload: bytearray) -> bytes:
            assert go.wait(60)
            return really(slot, payload)

        one.cold.file.read = slow  # type: ignore[method-assign]  # waits for the test
        reader = asyncio.create_task(one.ask(PROMPT))
        await one.until(lambda: one.scheduler.waiting == 1)
        other = (700, 701)
        assert await one.ask(other, max_tokens=5) == (solo(other, 5), 0)
        assert not reader.done()
        schedules = one.schedules
        await asyncio.sleep(0.1)
        assert one.schedules <= schedules + 2, "it sleeps until the reads are there"
        go.set()
        assert await reader == (solo(PROMPT, 2), 16)


async def test_what_the_tiers_do_while_nothing_runs_keeps_nobody_from_asking(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as one:
        go, begun, really = threading.Event(), threading.Event(), one.tiers.idle

        def slow(*, now: float) -> bool:
            begun.set()
            return go.wait(10) and really(now=now)

        one.tiers.idle = slow  # type: ignore[method-assign]  # waits for the test
        first = asyncio.create_task(one.ask(PROMPT))
        await one.until(begun.is_set)
        second = asyncio.create_task(one.ask(PROMPT))
        beats = 0
        async with asyncio.timeout(10):
            while not one.engine._inbox and beats < 100:
                await asyncio.sleep(0.001)
                beats += 1
        assert one.engine._inbox, "asked, while the engine's thread was at its tiers"
        go.set()
        assert (await first)[0] == (await second)[0] == solo(PROMPT, 2)


async def test_it_may_be_closed_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await one.ask(PROMPT)
        await asyncio.to_thread(one.engine.close)


async def test_after_a_failure_nothing_more_is_written(tmp_path: Path) -> None:
    one = Threaded(tmp_path)
    failed: list[str] = []
    one.engine = Engine(one.scheduler, one.runner, one.runner, on_fatal=failed.append)
    one.engine.start()
    one.tiers.idle = lambda *, now: False  # type: ignore[method-assign]  # nothing is written ahead
    await one.ask(PROMPT)

    def breaks(*, now: float) -> Schedule:
        raise RuntimeError("lost")

    one.scheduler.schedule = breaks  # type: ignore[method-assign]  # as a fault of the engine would
    with suppress(AssertionError):
        await one.ask((1, 2))
    await asyncio.to_thread(one.engine.close)
    assert failed == ["RuntimeError: lost"]
    after = Threaded(tmp_path)
    assert len(after.cold.shelf) < 4
    after.tiers.close(now=0.0, until=0.0)
