"""Engines on one tiny model, stepped by hand, and what became of their requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import kernels
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import make_service
from engine.native.library import Library
from engine.native.runner import NativeRunner
from engine.request import GenerationRequest, TokenEvent
from engine.runner import Runner
from tests.kit.tiny_model import TinyLlama

P = 32
Said = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""A token, its log-probability, the most likely ones."""


@dataclass(frozen=True)
class Lab:
    """One tiny model on disk; engines of any pool size on it. The dtype `native` is the native kernels'."""

    folder: Path
    dtype: str
    library: Library | None = None

    def engine(self, blocks: int, **options: Any) -> Engine[Tensor]:
        block_bytes = 2 * 2 * 2 * 16 * P * (4 if self.dtype == "float32" else 2)
        asked = {"max_sequences": 4, "chunk_tokens": 64, **options}
        config = EngineConfig(
            model=str(self.folder),
            dtype="auto" if self.dtype == "native" else self.dtype,
            kernels="native" if self.dtype == "native" else "auto",
            block_tokens=P,
            kv_memory=blocks * block_bytes,
            threads=1,
            **asked,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "library", lambda: self.library)
            made = make_service(config, wall_clock=lambda: 0.0, on_fatal=pytest.fail)
        assert made.engine.scheduler.index.pool.total_blocks == blocks
        return made.engine


def lab_of(request: pytest.FixtureRequest, folder: Path) -> Lab:
    """A lab in `folder` for a fixture with a parameter: float32, bfloat16 or native."""
    if request.param != "native":
        return Lab(TinyLlama().write(folder), request.param)
    tiny = TinyLlama(heads=2, kv_heads=1)  # blocks of the same bytes
    return Lab(tiny.write(folder), "native", request.getfixturevalue("native"))


@dataclass
class Run:
    """An engine and what it said; its scheduler is checked after every step."""

    engine: Engine[Tensor]
    said: dict[str, list[Said]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)

    def add(self, *requests: GenerationRequest) -> None:
        for request in requests:
            self.said[request.id] = []
            self.engine.scheduler.add(request)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._take(self.engine.step())

    def abort(self, name: str) -> None:
        gone = self.engine.scheduler.abort(name, now=0.0)
        self._take([gone] if gone else [])

    def drain(self) -> None:
        while self.engine.scheduler.busy:
            self.step()

    def _take(self, events: Iterable[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.ends, "an event after the end"
            if event.token is not None:
                self.said[event.request_id].append((event.token, event.logprob, event.top))
            if event.finish is not None:
                self.ends[event.request_id] = event.finish
        self.engine.scheduler.check_integrity()

    def kept(self) -> dict[bytes, Tensor]:
        """Keys and values of every published block, by its key; its bytes."""
        runner = self.engine.runner
        assert isinstance(runner, Runner | NativeRunner)
        entries = self.engine.scheduler.index._entries
        return {
            key: torch.frombuffer(
                bytearray(runner.cache.export_block(entry.block)), dtype=torch.uint8
            )
            for key, entry in entries.items()
        }
