"""A model on a stage: loaded, with a pool and a runner, and sequences that are run by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import request
from engine.kernels import kv_element
from engine.kv.cache import KvCache
from engine.kv.layout import KvLayout
from engine.models.network import Network
from engine.request import GenerationRequest, SamplingParams
from engine.runner import Runner
from engine.scheduler import Schedule, Span
from engine.weights.load import LoadedModel, load

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Stage:
    """A loaded model with a runner; blocks are handed out by the test."""

    loaded: LoadedModel[Network]
    runner: Runner

    @property
    def cache(self) -> KvCache:
        return self.runner.cache

    def forward(self, *spans: tuple[request.Sequence, int, int]) -> torch.Tensor:
        """Run spans (sequence, start, stop) in one step, each sampled at its end."""
        return self.runner.forward(
            Schedule(tuple(Span(one, start, stop, sample=True) for one, start, stop in spans))
        )

    def prefill(
        self, one: request.Sequence, cuts: Iterable[int] = (), start: int = 0
    ) -> torch.Tensor:
        """Compute all tokens of a sequence from `start`, a step up to each cut; the last row's logits."""
        logits = torch.empty(0)
        for stop in [*cuts, len(one.tokens)]:
            logits = self.forward((one, start, stop))
            start = stop
        return logits

    def kept(self, one: request.Sequence, tokens: int) -> torch.Tensor:
        """The keys and values of the first tokens of a sequence (L, tokens, W), copied."""
        found = self.cache.data[:, one.blocks]  # (L, blocks, P, W)
        return found.flatten(1, 2)[:, :tokens].clone()


def make_stage(
    path: Path,
    *,
    dtype: torch.dtype,
    blocks: int = 64,
    block_tokens: int = 32,
    tile_tokens: int = 128,
    mla: str = "auto",
    kv_dtype: str = "auto",
) -> Stage:
    loaded = load(path, device=CPU, dtype=dtype, mla=mla)
    layout = KvLayout(
        layers=loaded.config.layers,
        shape=loaded.model.kv_shape,
        block_tokens=block_tokens,
        element=kv_element(kv_dtype, dtype),
    )
    cache = KvCache(layout, blocks, device=CPU, dtype=dtype)
    return Stage(loaded, Runner(loaded.model, cache, tile_tokens=tile_tokens))


def sequence(
    tokens: Sequence[int],
    blocks: Sequence[int],
    *,
    prompt_tokens: int | None = None,
    sampling: SamplingParams | None = None,
) -> request.Sequence:
    """A sequence that holds blocks already; the first `prompt_tokens` (default all) are its prompt."""
    asked = GenerationRequest(
        id="by-hand",
        prompt=tuple(tokens[:prompt_tokens]),
        sampling=sampling or SamplingParams(temperature=0.0),
    )
    return request.Sequence(request=asked, serial=0, tokens=list(tokens), blocks=list(blocks))
