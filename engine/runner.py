"""Runs a schedule through the model: tiles in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.batch import Batch, BatchBuilder
from engine.kv.cache import KvCache
from engine.models.exact import ExactShapes, measure
from engine.models.network import Network
from engine.request import NonFiniteError, Sequence
from engine.spans import Schedule
from engine.speculation import RowCost


class Runner:
    """The model and its pool of keys and values, one step at a time.

    Making one measures which shapes are exact on this machine (`engine.models.exact`), which may leave a
    smaller tile than asked for: `tile_tokens` says how many rows run through the network at once. More
    rows are several tiles. `exact` says that a token's keys, values and logits have the same bits however
    it was computed: as a prompt or as an answer, alone or in a batch, after a prefix hit or without.
    """

    def __init__(self, model: Network, cache: KvCache, *, tile_tokens: int) -> None:
        self.model = model
        self.cache = cache
        self.use(measure(model, tile_tokens=tile_tokens, element=cache.layout.element))

    def use(self, shapes: ExactShapes) -> None:
        """Run tiles of these shapes from now on. What was computed before may differ in last digits."""
        self.shapes = shapes
        self.model.use(shapes.row_counts)
        self._builder = BatchBuilder(
            cache=self.cache,
            shapes=shapes,
            query_heads_per_kv_head=self.model.query_heads_per_kv_head,
        )

    @property
    def tile_tokens(self) -> int:
        return self.shapes.row_counts[-1]

    @property
    def row_cost(self) -> RowCost:
        """Of steps of decode rows: they are padded, and reading the weights costs as much as 32 rows."""
        return RowCost(self.shapes.row_counts, fixed=32.0)

    @property
    def exact(self) -> bool:
        return self.shapes.attention

    def close(self) -> None:
        """Nothing: torch's threads are the process's."""

    def begin(self) -> None:
        """Called by the thread that will run all steps, before the first: torch needs nothing of it."""

    @torch.inference_mode()
    def forward(self, schedule: Schedule) -> Tensor:
        """Compute the schedule's rows: keys and values go into the pool.

        Returns fp32 logits (spans with `sample`, V), in the order of the spans. Raises `NonFiniteError`
        for the sequences that have no numbers; what they wrote is zeroed, what others wrote stands.
        """
        checks: list[tuple[Batch, Tensor]] = []
        hidden: list[Tensor] = []
        numbers: list[int] = []
        for batch in self._builder.build(schedule):
            rows = self.model.forward(batch.tile, self.cache)  # (M, hidden)
            slots = batch.tile.slots
            good = rows[: len(slots)].isfinite().all(-1) & self.cache.finite(slots)
            checks.append((batch, good))
            if batch.wanted:
                picked = torch.tensor([row for _, row in batch.wanted], device=rows.device)
                hidden.append(rows.index_select(0, picked))
                numbers += [number for number, _ in batch.wanted]
        self._expel(checks)
        if not hidden:
            return torch.empty(0, self.model.config.vocab, device=self.model.device)
        order = torch.tensor(numbers, device=self.model.device).argsort()
        logits = self._logits(torch.cat(hidden)[order])
        good = logits.isfinite().all(-1)
        if not bool(good.all()):
            sampled = [span.sequence for span in schedule.spans if span.sample]
            raise NonFiniteError(_bad(sampled, good))
        return logits

    def _expel(self, checks: list[tuple[Batch, Tensor]]) -> None:
        """One look for the whole step: each would wait for the device."""
        if not checks or bool(torch.cat([good for _, good in checks]).all()):
            return
        sequences: list[Sequence] = []
        for batch, good in checks:
            self.model.clear(self.cache, batch.tile.slots[~good])
            sequences += _bad(batch.owners(), good)
        raise NonFiniteError(sequences)

    def _logits(self, hidden: Tensor) -> Tensor:
        """(T, hidden) to (T, V), in padded pieces like every other linear layer."""
        pieces = []
        for piece in torch.split(hidden, self.tile_tokens):
            rows = piece.shape[0]
            padded = functional.pad(piece, (0, 0, 0, self._builder.padded(rows) - rows))
            pieces.append(self.model.logits(padded)[:rows])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __repr__(self) -> str:
        counts = "/".join(map(str, self.shapes.row_counts))
        bits = "exact" if self.exact else "not exact"
        return f"Runner(tiles of {counts} rows, {bits}, {self.cache!r})"


def _bad(owners: list[Sequence], good: Tensor) -> list[Sequence]:
    return [one for one, fine in zip(owners, good.tolist(), strict=True) if not fine]
