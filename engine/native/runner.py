"""Runs a schedule through the native model: spans in, logits out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import merged, wanted_rows
from engine.native.cache import NativeCache
from engine.native.crowd import Crowd
from engine.native.library import CCall, address
from engine.native.model import MOST_ROWS, NativeModel
from engine.request import NonFiniteError, Sequence
from engine.scheduler import Schedule
from engine.speculation import RowCost


@dataclass(frozen=True, slots=True)
class Piece:
    """tokens[start:stop) of a sequence: neighbouring rows of a call."""

    sequence: Sequence
    start: int
    stop: int


class NativeRunner:
    """The model and its pool, one step at a time; see `engine.runner.Runner`.

    `exact` holds by construction: see `engine.native`. `tile_tokens` is the grain of prefill beside
    running answers; nothing is padded to it.
    """

    exact = True
    row_cost = RowCost(fixed=2.5)  # measured: loadtest/results/native.md

    def __init__(
        self,
        model: NativeModel,
        cache: NativeCache,
        *,
        tile_tokens: int,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.model = model
        self.cache = cache
        self.tile_tokens = tile_tokens
        self.crowd = Crowd(model.threads)
        self._clock_ns = clock_ns

    def begin(self) -> None:
        """Called by the thread that will run all steps, before the first.

        Threads that torch would start from here on for sampling would inherit this thread's core.
        """
        torch.set_num_threads(1)
        self.model.bind()

    def forward(self, schedule: Schedule) -> Tensor:
        """Compute the schedule's rows: keys and values go into the pool.

        Returns fp32 logits (spans with `sample`, V), in the order of the spans. Raises `NonFiniteError`
        for the sequences that have no numbers; what they wrote is zeroed, what others wrote stands.
        """
        wanted = wanted_rows(schedule)
        logits = np.empty((len(wanted), self.model.config.vocab), np.float32)
        bad: list[Sequence] = []
        for pieces in _calls(schedule):
            bad += self._run(pieces, wanted, logits)
        if bad:
            raise NonFiniteError(bad)
        if not bool(np.isfinite(logits.sum(axis=-1)).all()):
            sampled = [span.sequence for span in schedule.spans if span.sample]
            fine = [bool(np.isfinite(row).all()) for row in logits]
            raise NonFiniteError(one for one, good in zip(sampled, fine, strict=True) if not good)
        return torch.from_numpy(logits)

    def close(self) -> None:
        """End the crew of threads. May be called twice."""
        self.model.close()

    def _run(
        self, pieces: list[Piece], wanted: dict[tuple[int, int], int], logits: NDArray[np.float32]
    ) -> list[Sequence]:
        """One call; returns the sequences that have no numbers."""
        block_tokens = self.cache.layout.block_tokens
        tables = [piece.sequence.blocks[: -(-piece.stop // block_tokens)] for piece in pieces]
        places = [(id(p.sequence), at) for p in pieces for at in range(p.start, p.stop)]
        asked = [(row, wanted[place]) for row, place in enumerate(places) if place in wanted]
        made = np.empty((len(asked), logits.shape[1]), np.float32)
        bad = np.zeros(len(places), np.uint8)
        arrays: tuple[NDArray[Any], ...] = (
            _ints(chain.from_iterable(p.sequence.tokens[p.start : p.stop] for p in pieces)),
            _ints(at for _, at in places),
            _offsets(piece.stop - piece.start for piece in pieces),
            _offsets(map(len, tables)),
            _ints(chain.from_iterable(tables)),
            _ints(row for row, _ in asked),
            made,
            bad,
        )
        call = CCall(len(places), len(pieces), len(asked), *(address(one) for one in arrays))
        began = self._clock_ns()
        waited = self.model.forward(call, threads=self.crowd.next(len(places)))
        self.crowd.learn(len(places), waited_ns=waited, took_ns=self._clock_ns() - began)
        logits[[number for _, number in asked]] = made
        return self._expelled(pieces, bad) if bad.any() else []

    def _expelled(self, pieces: list[Piece], bad: NDArray[np.uint8]) -> list[Sequence]:
        """Clear what rows without numbers wrote, and say whose they are."""
        owners = [(p.sequence, at) for p in pieces for at in range(p.start, p.stop)]
        found = [owner for owner, is_bad in zip(owners, bad.tolist(), strict=True) if is_bad]
        for sequence, position in found:
            block, offset = divmod(position, self.cache.layout.block_tokens)
            self.cache.clear(sequence.blocks[block], offset)
        return [sequence for sequence, _ in found]

    def __repr__(self) -> str:
        return f"NativeRunner({self.model.threads} threads, exact, {self.cache!r})"


def _calls(schedule: Schedule) -> Iterator[list[Piece]]:
    """The rows of a schedule in runs of at most `MOST_ROWS`; a sequence's earlier rows come first."""
    pieces: list[Piece] = []
    room = MOST_ROWS
    for sequence, start, end in merged(schedule):
        position = start
        while position < end:
            stop = min(end, position + room)
            pieces.append(Piece(sequence, position, stop))
            room -= stop - position
            position = stop
            if not room:
                yield pieces
                pieces, room = [], MOST_ROWS
    if pieces:
        yield pieces


def _ints(values: Iterable[int]) -> NDArray[np.int32]:
    return np.fromiter(values, np.int32)


def _offsets(lengths: Iterable[int]) -> NDArray[np.int32]:
    """0 and the running sums: where each run begins, and the end."""
    counts = _ints(lengths)
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return offsets
