"""From spans to tiles."""

import math

import pytest
import torch

from engine import request
from engine.batch import Batch, BatchBuilder
from engine.kv.cache import KvCache
from engine.models.exact import ExactShapes
from engine.scheduler import Schedule, Span
from tests.kit.kv import layout_of
from tests.kit.stage import CPU, sequence


def builder(*, block_tokens: int = 32, counts: tuple[int, ...] = (8, 32, 128)) -> BatchBuilder:
    layout = layout_of(layers=1, heads=1, dim=2, block_tokens=block_tokens)
    cache = KvCache(layout, 64, device=CPU, dtype=torch.float32)
    shapes = ExactShapes(counts, query_rows=4, attention=True)
    return BatchBuilder(cache=cache, shapes=shapes, query_heads_per_kv_head=3)


def tiles(
    *spans: tuple[request.Sequence, int, int], built: BatchBuilder | None = None
) -> list[Batch]:
    schedule = Schedule(tuple(Span(one, a, b, sample=True) for one, a, b in spans))
    return list((built or builder()).build(schedule))


def one(length: int, first_block: int = 0) -> request.Sequence:
    return sequence(list(range(length)), range(first_block, first_block + math.ceil(length / 32)))


def test_a_long_prompt_is_cut_at_tiles_and_at_absolute_key_tiles() -> None:
    batches = tiles((one(300), 40, 300))
    rows = [[(g.start, g.stop, g.mask.shape[-1]) for g in b.tile.groups] for b in batches]
    # [40,128) [128,168) | [168,256) [256,296) | [296,300): shorter pieces first in a tile
    assert rows == [
        [(0, 40, 256), (40, 128, 128)],
        [(0, 40, 384), (40, 128, 256)],
        [(0, 4, 384)],
    ]
    assert [b.tile.tokens.shape[0] for b in batches] == [128, 128, 8]


def test_rows_are_padded_to_the_next_count_and_only_real_ones_are_written() -> None:
    (batch,) = tiles((one(20), 0, 20))
    assert batch.tile.tokens.shape == batch.tile.positions.shape == (32,)
    assert batch.tile.slots.tolist() == list(range(20))


def test_slots_follow_the_block_table() -> None:
    scattered = sequence(list(range(70)), [9, 2, 30])
    (batch,) = tiles((scattered, 31, 66))
    assert batch.tile.slots.tolist() == [9 * 32 + 31, *range(64, 96), 960, 961]
    assert batch.tile.positions[:35].tolist() == list(range(31, 66))


def test_decodes_with_equally_many_keys_are_one_attention_call() -> None:
    ones = [one(200, 8 * i) for i in range(4)]
    (batch,) = tiles(*((s, at, at + 1) for s, at in zip(ones, (10, 150, 20, 199), strict=True)))
    assert [(g.start, g.stop, g.sequences) for g in batch.tile.groups] == [(0, 2, 2), (2, 4, 2)]
    assert batch.tile.positions[:4].tolist() == [10, 20, 150, 199]
    assert batch.wanted == ((0, 0), (2, 1), (1, 2), (3, 3))


def test_long_pieces_are_attended_one_by_one() -> None:
    (batch,) = tiles((one(40), 0, 40), (one(40, 8), 0, 40))
    assert [(g.start, g.stop, g.sequences) for g in batch.tile.groups] == [(0, 40, 1), (40, 80, 1)]


def test_decodes_with_many_keys_are_attended_a_few_at_a_time() -> None:
    ones = [sequence(list(range(1500)), range(48)) for _ in range(5)]
    (batch,) = tiles(*((s, 1499, 1500) for s in ones))
    assert [g.sequences for g in batch.tile.groups] == [2, 2, 1]


def test_the_mask_shows_a_row_its_past_for_every_query_head() -> None:
    (batch,) = tiles((one(40), 37, 40))
    mask = batch.tile.groups[0].mask
    assert mask.shape == (1, 1, 12, 128)  # 3 heads x 3 tokens, padded to a multiple of 4
    seen = (mask[0, 0] == 0).sum(-1).tolist()
    assert seen == [38, 39, 40] * 3 + [40] * 3
    assert torch.isinf(mask[mask != 0]).all()


def test_behind_its_table_a_sequence_reads_its_own_first_block() -> None:
    (batch,) = tiles((sequence(list(range(40)), [7, 9]), 39, 40))
    assert batch.tile.groups[0].tables.tolist() == [7, 9, 7, 7]


@pytest.mark.parametrize(
    ("block_tokens", "key_tile"), [(16, 128), (128, 128), (256, 256), (48, 384)]
)
def test_key_tiles_are_whole_blocks(block_tokens: int, key_tile: int) -> None:
    built = builder(block_tokens=block_tokens)
    assert built.key_tile == key_tile
    (batch,) = tiles((one(10), 0, 10), built=built)
    group = batch.tile.groups[0]
    assert group.mask.shape[-1] == key_tile
    assert len(group.tables) * block_tokens == key_tile


def test_an_empty_schedule_has_no_tiles() -> None:
    assert tiles() == []
