"""The native model on a stage: a pool and a runner, and sequences that are run by hand; other builds of it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine import request
from engine.kv.layout import KvLayout
from engine.native import build
from engine.native.cache import NativeCache
from engine.native.library import Library
from engine.native.model import NativeModel, Weights, read
from engine.native.runner import NativeRunner
from engine.scheduler import Schedule, Span
from engine.weights.load import load_with


@dataclass(frozen=True, slots=True)
class NativeStage:
    """A native runner; blocks are handed out by the test."""

    weights: Weights
    runner: NativeRunner

    @property
    def cache(self) -> NativeCache:
        return self.runner.cache

    def forward(self, *spans: tuple[request.Sequence, int, int]) -> torch.Tensor:
        """Run spans (sequence, start, stop) in one step, each sampled at its end."""
        return self.runner.forward(
            Schedule(tuple(Span(one, start, stop, sample=True) for one, start, stop in spans))
        )

    def every_row(self, one: request.Sequence, start: int, stop: int) -> torch.Tensor:
        """Logits (rows, V) of rows that are computed in one step."""
        return self.forward(*((one, at, at + 1) for at in range(start, stop)))

    def in_steps(
        self, one: request.Sequence, cuts: Iterable[int] = (), start: int = 0
    ) -> torch.Tensor:
        """Logits of all rows of a sequence from `start`, a step up to each cut."""
        found = []
        for stop in [*cuts, len(one.tokens)]:
            found.append(self.every_row(one, start, stop))
            start = stop
        return torch.cat(found)

    def kept(self, one: request.Sequence, tokens: int) -> NDArray[np.uint16]:
        """Keys and values of the first tokens of a sequence (L, 2, K, tokens, D), copied."""
        layout = self.cache.layout
        heads, dim, size = layout.shape.heads, layout.shape.key_dim, layout.block_tokens
        found = []
        for block in one.blocks:
            both = self.cache.data[block].reshape(layout.layers, 2, heads, -1)
            keys = both[:, 0].reshape(layout.layers, heads, dim, size).swapaxes(-1, -2)
            values = both[:, 1].reshape(layout.layers, heads, size, dim)
            found.append(np.stack((keys, values), axis=1))
        return np.concatenate(found, axis=3)[:, :, :, :tokens].copy()


def read_weights(library: Library, path: Path) -> Weights:
    """The weights of a checkpoint, packed."""
    return load_with(path, lambda source: read(library, source), words="tests").model


def native_stage(
    library: Library,
    weights: Weights,
    *,
    blocks: int = 64,
    block_tokens: int = 32,
    threads: int = 1,
) -> NativeStage:
    """A pool and a runner of some weights; stages may share them."""
    config = weights.config
    layout = KvLayout(
        layers=config.layers,
        shape=config.kv_shape(None),
        block_tokens=block_tokens,
        element="bfloat16",
    )
    cache = NativeCache(layout, blocks)
    model = NativeModel(library, weights, cache, threads=threads)
    return NativeStage(weights, NativeRunner(model, cache, tile_tokens=128))


def poison(library: Library, weights: Weights, token: int, scale: float) -> None:
    """Give the first 32 numbers of a token's embedding (of 8 bits) another scale."""
    matrix, lanes = weights.embedding, library.lanes
    assert matrix.bits == 8
    tile = matrix.tiles + token // lanes * (matrix.inputs // 32) * 34 * lanes
    ctypes.memmove(tile + 32 * lanes + 2 * (token % lanes), np.float16(scale).tobytes(), 2)


def compiled(folder: Path, *flags: str, sources: Path | None = None) -> Library:
    """Another build of the sources, or of others, with more flags; where one can be had at all."""
    with pytest.MonkeyPatch.context() as patch:
        if sources is not None:
            patch.setattr(build, "_SOURCES", sources)
        path = folder / "kvgate.so"
        build.compile_to(path, build.find_compiler({}), flags=(*build.FLAGS, *flags))
        return Library(path)


def changed_sources(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of the sources in which a text reads otherwise."""
    made = folder / "src"
    shutil.copytree(Path(build.__file__).parent / "src", made)
    text = (made / file).read_text()
    assert old in text, f"{file} has no {old!r} any more: choose another fault"
    (made / file).write_text(text.replace(old, new))
    return made
