"""From a schedule to tiles: which rows run together, and what each attends to.

A tile has a fixed number of rows. Spans are cut at *key tiles* (absolute positions, see
`engine.models.attention`) and at the end of a tile; adjoining spans of one sequence are one piece
before they are cut. A sequence's earlier rows are never in a later tile than its later ones, and
inside a tile all keys of a layer are written before any are read.

    positions  0         128        256
    span           |------------------|        [40, 300)
    pieces         |-----|---------|--|        [40,128) [128,256) [256,300)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

from engine.kv.cache import KvCache
from engine.models.attention import KEY_TILE_TOKENS, Group, causal_mask
from engine.models.exact import ExactShapes
from engine.models.network import Tile
from engine.request import Sequence
from engine.spans import Schedule

# Short pieces are attended together, as one call costs about as much as the work of one; but not more
# keys at once than the processor's cache holds of a layer (measured: loadtest/results/tile.md).
_ALONE_ROWS = 16
_TOGETHER_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """tokens[start:stop) of a sequence, attending to `keys` tokens each."""

    sequence: Sequence
    start: int
    stop: int
    keys: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """One tile, and where in it the rows are whose logits are wanted.

    wanted  (number of the logits row, row of the tile)
    pieces  whose rows they are, in the order of the rows
    """

    tile: Tile
    wanted: tuple[tuple[int, int], ...]
    pieces: tuple[Piece, ...]

    def owners(self) -> list[Sequence]:
        """The sequence of each row that is not padding."""
        return [piece.sequence for piece in self.pieces for _ in range(piece.rows)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBuilder:
    """Cuts schedules into tiles, padded to one of the row counts of `shapes`."""

    cache: KvCache
    shapes: ExactShapes
    query_heads_per_kv_head: int

    @property
    def tile_tokens(self) -> int:
        return self.shapes.row_counts[-1]

    @property
    def key_tile(self) -> int:
        """Tokens after which the number of keys grows: a whole number of blocks."""
        return math.lcm(KEY_TILE_TOKENS, self.cache.layout.block_tokens)

    def padded(self, rows: int) -> int:
        """The smallest allowed row count with room for `rows`."""
        return next(count for count in self.shapes.row_counts if count >= rows)

    def build(self, schedule: Schedule) -> Iterator[Batch]:
        """The tiles of one step, to be run in order."""
        wanted = wanted_rows(schedule)
        for pieces in self._tiles(merged(schedule)):
            yield self._batch(pieces, wanted)

    def _tiles(self, runs: Iterable[tuple[Sequence, int, int]]) -> Iterator[list[Piece]]:
        tile: list[Piece] = []
        room = self.tile_tokens
        for sequence, start, end in runs:
            position = start
            while position < end:
                keys = (position // self.key_tile + 1) * self.key_tile
                stop = min(end, keys, position + room)
                tile.append(Piece(sequence, position, stop, keys))
                room -= stop - position
                position = stop
                if not room:
                    yield tile
                    tile, room = [], self.tile_tokens
        if tile:
            yield tile

    def _batch(self, pieces: list[Piece], wanted: dict[tuple[int, int], int]) -> Batch:
        # equal pieces side by side become one attention call
        pieces = sorted(pieces, key=_attention_key)
        block_tokens = self.cache.layout.block_tokens
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows_wanted: list[tuple[int, int]] = []
        for piece in pieces:
            blocks = piece.sequence.blocks
            tokens += piece.sequence.tokens[piece.start : piece.stop]
            for position in range(piece.start, piece.stop):
                number = wanted.get((id(piece.sequence), position))
                if number is not None:
                    rows_wanted.append((number, len(positions)))
                positions.append(position)
                block, offset = divmod(position, block_tokens)
                slots.append(blocks[block] * block_tokens + offset)
        padding = self.padded(len(tokens)) - len(tokens)
        device = self.cache.device
        tile = Tile(
            tokens=torch.tensor(tokens + [0] * padding, device=device),
            positions=torch.tensor(positions + [0] * padding, device=device),
            slots=torch.tensor(slots, device=device),
            groups=tuple(self._groups(pieces)),
        )
        return Batch(tile, tuple(rows_wanted), tuple(pieces))

    def _groups(self, pieces: list[Piece]) -> Iterator[Group]:
        row = 0
        for (rows, keys), alike in groupby(pieces, key=_attention_key):
            members = list(alike)
            size = max(1, _TOGETHER_TOKENS // keys) if rows <= _ALONE_ROWS else 1
            for first in range(0, len(members), size):
                together = members[first : first + size]
                yield self._group(together, row, row + rows * len(together))
                row += rows * len(together)

    def _group(self, pieces: list[Piece], start: int, stop: int) -> Group:
        keys = pieces[0].keys
        blocks = keys // self.cache.layout.block_tokens
        tables: list[int] = []
        for piece in pieces:
            table = piece.sequence.blocks[:blocks]
            # what lies behind the table is masked: any finite block does, its own first one leaks nothing
            tables += table + table[:1] * (blocks - len(table))
        device = self.cache.device
        positions = torch.tensor(
            [range(piece.start, piece.stop) for piece in pieces], device=device
        )  # (S, T)
        mask = causal_mask(
            positions,
            keys,
            groups=self.query_heads_per_kv_head,
            query_rows=self.shapes.query_rows,
            dtype=self.cache.dtype,
        )
        return Group(start, stop, len(pieces), torch.tensor(tables, device=device), mask)


def _attention_key(piece: Piece) -> tuple[int, int]:
    return piece.rows, piece.keys


def merged(schedule: Schedule) -> Iterator[tuple[Sequence, int, int]]:
    """Half-open runs (sequence, start, stop): adjoining spans of one sequence are one run."""
    current: tuple[Sequence, int, int] | None = None
    for span in schedule.spans:
        if current and current[0] is span.sequence and current[2] == span.start:
            current = (span.sequence, current[1], span.stop)
            continue
        if current:
            yield current
        current = (span.sequence, span.start, span.stop)
    if current:
        yield current


def wanted_rows(schedule: Schedule) -> dict[tuple[int, int], int]:
    """(sequence, position) of each row whose logits are wanted -> number of its logits row."""
    sampled = (span for span in schedule.spans if span.sample)
    return {(id(span.sequence), span.stop - 1): number for number, span in enumerate(sampled)}
