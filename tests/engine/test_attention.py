"""Rows against paged keys."""

import pytest
import torch

from engine.kv.cache import KvCache
from engine.kv.layout import KvLayout, KvShape
from engine.models.attention import Group, attend, causal_mask
from tests.kit.kv import layout_of
from tests.kit.stage import CPU

HEADS, KV_HEADS, DIM, BLOCK = 6, 2, 8, 32


def plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One row of queries (H, D) over keys and values (tokens, K, D), by the formula."""
    rows = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        weights = (keys[:, group] @ queries[head] / DIM**0.5).softmax(0)
        rows.append(weights @ values[:, group])
    return torch.cat(rows)


@pytest.mark.parametrize("query_rows", [1, 4, 16])
def test_each_row_attends_to_its_own_past_in_its_own_blocks(query_rows: int) -> None:
    dice = torch.Generator().manual_seed(0)
    layout = layout_of(layers=1, heads=KV_HEADS, dim=DIM, block_tokens=BLOCK)
    cache = KvCache(layout, 8, device=CPU, dtype=torch.float32)
    cache.data.copy_(torch.randn(cache.data.shape, generator=dice))
    tables = torch.tensor([[5, 1, 7, 0], [2, 6, 2, 2]])
    positions = torch.tensor([[97, 98, 99], [40, 41, 42]])
    queries = torch.randn(6, HEADS, DIM, generator=dice)
    mask = causal_mask(positions, 128, groups=3, query_rows=query_rows, dtype=torch.float32)
    group = Group(0, 6, 2, tables.flatten(), mask)
    out = attend(queries, cache, 0, group, scale=DIM**-0.5)
    for row, position in enumerate(positions.flatten().tolist()):
        kept = cache.data[0, tables[row // 3]].flatten(0, 1)[: position + 1]
        kept = kept.view(-1, 2, KV_HEADS, DIM)
        expected = plain(queries[row], kept[:, 0], kept[:, 1])
        torch.testing.assert_close(out[row], expected)


@pytest.mark.parametrize("value_dim", [4, 12])
def test_values_may_be_narrower_or_wider_than_keys(value_dim: int) -> None:
    dice = torch.Generator().manual_seed(1)
    shape = KvShape(heads=KV_HEADS, key_dim=DIM, value_dim=value_dim)
    layout = KvLayout(layers=1, shape=shape, block_tokens=BLOCK, element="float32")
    cache = KvCache(layout, 4, device=CPU, dtype=torch.float32)
    cache.data.copy_(torch.randn(cache.data.shape, generator=dice))
    queries = torch.randn(1, HEADS, DIM, generator=dice)
    mask = causal_mask(torch.tensor([[99]]), 128, groups=3, query_rows=4, dtype=torch.float32)
    out = attend(queries, cache, 0, Group(0, 1, 1, torch.arange(4), mask), scale=DIM**-0.5)
    kept = cache.data[0].flatten(0, 1)[:100]
    keys, values = kept[:, : KV_HEADS * DIM], kept[:, KV_HEADS * DIM :]
    expected = plain(queries[0], keys.reshape(-1, KV_HEADS, DIM), values.reshape(100, KV_HEADS, -1))
    torch.testing.assert_close(out[0], expected)


def test_masked_rows_are_padded_to_whole_groups_by_the_last_one() -> None:
    mask = causal_mask(torch.tensor([[3, 4]]), 8, groups=3, query_rows=4, dtype=torch.float32)
    assert mask.shape == (1, 1, 8, 8)
    assert (mask[0, 0] == 0).sum(-1).tolist() == [4, 5, 4, 5, 4, 5, 5, 5]
