"""An engine without tensors that has tiers below its pool: scripted KV, real files, work done at once or later.

The store of blocks is the slots of a `ScriptedRunner`, which checks every history it reads: one wrong,
stale or foreign block that comes up from a tier fails the step that uses it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.engine import Engine
from engine.kv.blob import Bytes, fingerprint_of
from engine.kv.blocks import BlockPool
from engine.kv.disk import BlockFile, Geometry
from engine.kv.prefix import PrefixIndex
from engine.kv.stock import Disk, Memory
from engine.kv.tiers import Tiers
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.scheduler import Limits, Scheduler
from tests.kit.clock import Clock
from tests.kit.scripted_runner import END, ScriptedRunner

FINGERPRINT = fingerprint_of(["scripted"])


class ScriptedStore:
    """The slots of a scripted runner as blocks of bytes."""

    def __init__(self, runner: ScriptedRunner) -> None:
        self._runner = runner
        self.exported: list[int] = []
        self.imported: list[int] = []

    @property
    def block_bytes(self) -> int:
        return self._runner.block_tokens * 8

    def export_block(self, block: int, /) -> Bytes:
        self.exported.append(block)
        return b"".join(
            struct.pack("<Q", slot or 0) for slot in self._runner.slots[self._span(block)]
        )

    def import_block(self, block: int, blob: Bytes, /) -> None:
        self.imported.append(block)
        self._runner.slots[self._span(block)] = [one for (one,) in struct.iter_unpack("<Q", blob)]

    def _span(self, block: int) -> slice:
        start = block * self._runner.block_tokens
        return slice(start, start + self._runner.block_tokens)


@dataclass
class Later:
    """Work that is done when the test says so."""

    waiting: deque[Callable[[], None]] = field(default_factory=deque)
    at_once: bool = True

    def __call__(self, work: Callable[[], None]) -> None:
        if self.at_once:
            work()
        else:
            self.waiting.append(work)

    def do(self, count: int | None = None) -> None:
        for _ in range(len(self.waiting) if count is None else count):
            self.waiting.popleft()()


class Tiered:
    """A scripted engine with the tiers that are asked for. Both of its clocks are `clock`."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        blocks: int = 8,
        block_tokens: int = 4,
        warm_blocks: int = 0,
        cold_blocks: int = 64,
        queue_blocks: int = 64,
        chunk_tokens: int = 16,
        fingerprint: bytes = FINGERPRINT,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.reads, self.writes = Later(), Later()
        self.runner = ScriptedRunner(blocks=blocks, block_tokens=block_tokens)
        self.store = ScriptedStore(self.runner)
        self.index = PrefixIndex(BlockPool(blocks), block_tokens=block_tokens)
        cold = None
        if folder is not None:
            geometry = Geometry(fingerprint, block_tokens, self.store.block_bytes)
            room = cold_blocks * (geometry.slot_bytes + 128)
            file = BlockFile(folder, geometry, max_bytes=room)
            cold = Disk(file, run=self.writes, queue_blocks=queue_blocks, now=self.clock.now())
        below: Any = ("cold",) if cold else ()
        self.cold = cold
        self.warm = (
            Memory(warm_blocks, fingerprint=fingerprint, tiers_below=below) if warm_blocks else None
        )
        self.tiers = Tiers(
            self.index,
            self.store,
            fingerprint=fingerprint,
            block_bytes=self.store.block_bytes,
            clock=self.clock.monotonic,
            wall=self.clock.now,
            warm=self.warm,
            cold=cold,
            read=self.reads,
        )
        self.scheduler = Scheduler(
            self.index,
            Limits(chunk_tokens=chunk_tokens, max_sequences=8, max_model_len=10_000),
            end_tokens=frozenset({END}),
            tiers=self.tiers,
        )
        self.engine: Engine[list[int]] = Engine(
            self.scheduler, self.runner, self.runner, clock=self.clock.monotonic
        )
        self._asked = 0

    def add(self, prompt: list[int], *, max_tokens: int = 1, **more: Any) -> Any:
        self._asked += 1
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        request = GenerationRequest(
            id=f"r{self._asked}", prompt=tuple(prompt), sampling=sampling, **more
        )
        return self.scheduler.add(request, now=self.clock.monotonic())

    def run(self) -> list[TokenEvent]:
        """Steps until nobody is left."""
        events: list[TokenEvent] = []
        for _ in range(10_000):
            if not self.scheduler.busy:
                return events
            events += self.engine.step()
            self.check()
        raise AssertionError("it does not end")

    def ask(self, prompt: list[int], **more: Any) -> tuple[list[int], Any]:
        """What a request is answered, and its sequence."""
        sequence = self.add(prompt, **more)
        return [event.token for event in self.run() if event.token is not None], sequence

    def settle(self) -> None:
        """As when nothing runs for a while: all that is worth it is written ahead."""
        while self.tiers.idle(now=self.clock.monotonic()) or self.writes.waiting:
            self.writes.do()
        self.tiers.begin_step(now=self.clock.monotonic())

    def push_out(self, *, seed: int = 7) -> None:
        """Fill the pool with something else."""
        room = self.index.pool.total_blocks * self.index.block_tokens - 1
        self.ask([seed * 1000 + n for n in range(room)], salt="filler", ttl_s=0.0)

    def check(self) -> None:
        self.scheduler.check_integrity()
        for stock in (self.warm, self.cold):
            if stock is not None:
                stock.shelf.check_integrity()

    def close(self) -> None:
        """As a process that ends: nothing more is written."""
        if self.cold is not None:
            self.cold.file.close()
