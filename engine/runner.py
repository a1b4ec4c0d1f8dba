"""Runs a schedule through the model: tiles in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batch import BatchBuilder
from engine.kv.cache import KvCache
from engine.models.llama import LlamaModel
from engine.scheduler import Schedule


class Runner:
    """The model and its pool of keys and values, one step at a time.

    tile_tokens  most rows that run through the network at once; more rows are several tiles
    """

    def __init__(self, model: LlamaModel, cache: KvCache, *, tile_tokens: int) -> None:
        self.model = model
        self.cache = cache
        self.tile_tokens = tile_tokens
        config = model.config
        self._builder = BatchBuilder(
            cache=cache,
            tile_tokens=tile_tokens,
            row_counts=(tile_tokens,),
            query_heads_per_kv_head=config.heads // config.kv_heads,
        )

    @torch.inference_mode()
    def forward(self, schedule: Schedule) -> Tensor:
        """Compute the schedule's rows: keys and values go into the pool.

        Returns fp32 logits (spans with `sample`, V), in the order of the spans.
        """
        hidden: list[Tensor] = []
        numbers: list[int] = []
        for batch in self._builder.build(schedule):
            rows = self.model.forward(batch.tile, self.cache)  # (M, hidden)
            if batch.wanted:
                picked = torch.tensor([row for _, row in batch.wanted], device=rows.device)
                hidden.append(rows.index_select(0, picked))
                numbers += [number for number, _ in batch.wanted]
        if not hidden:
            return torch.empty(0, self.model.config.vocab, device=self.model.device)
        order = torch.tensor(numbers, device=self.model.device).argsort()
        return self._logits(torch.cat(hidden)[order])

    def _logits(self, hidden: Tensor) -> Tensor:
        """(T, hidden) to (T, V), in padded pieces like every other linear layer."""
        pieces = []
        for piece in torch.split(hidden, self.tile_tokens):
            rows = piece.shape[0]
            padded = torch.nn.functional.pad(piece, (0, 0, 0, self._builder.padded(rows) - rows))
            pieces.append(self.model.logits(padded)[:rows])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __repr__(self) -> str:
        return f"Runner(tile of {self.tile_tokens} rows, {self.cache!r})"
