"""Attention of token rows over paged keys, so that a row's bits depend on its position alone.

A row at position p always attends to the same number of keys: p+1 rounded up to a whole *key tile*,
those after p masked. Chunks are cut at key tiles (`engine.batch`), and each call is padded to whole
groups of query rows. Without this the last digits depend on where a chunk ended: the softmax sums and
the product with the values run over the number of keys of the call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.kv.cache import KvCache

KEY_TILE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Group:
    """Equal pieces of S sequences, attended in one call: rows [start, stop) of the tile, S * T of them.

    tables (S * blocks,) block ids, each sequence's part covering `keys` tokens
    mask   (S, 1, rows, keys) 0 where a key is seen and -inf where not; rows = (H/K) * T, padded
    """

    start: int
    stop: int
    sequences: int
    tables: Tensor
    mask: Tensor


def causal_mask(
    positions: Tensor, keys: int, *, groups: int, query_rows: int, dtype: torch.dtype
) -> Tensor:
    """The mask for rows at positions (S, T), each repeated for the `groups` query heads of a KV head.

    Rows are padded to a multiple of `query_rows`: very few take other matrix kernels, with other last
    digits (`engine.models.exact`).
    """
    rows = positions.repeat(1, groups)  # (S, G*T), head by head
    missing = -rows.shape[1] % query_rows
    if missing:
        rows = torch.cat((rows, rows[:, -1:].expand(-1, missing)), dim=1)
    key = torch.arange(keys, device=positions.device)
    hidden = key > rows.unsqueeze(-1)  # (S, rows, keys)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, float("-inf")).unsqueeze(1)


def attend(queries: Tensor, cache: KvCache, layer: int, group: Group, *, scale: float) -> Tensor:
    """Attention for one group: queries (S*T, H, D) to (S*T, H*D').

    The query heads that share a KV head become rows of one call: keys are read once for all of them,
    and a decode step has more than one row to multiply.
    """
    keys, values = cache.read(layer, group.tables, group.sequences)  # (S, K, tokens, D and D')
    value_dim = cache.layout.shape.value_dim
    if values.shape[-1] < keys.shape[-1]:  # the fast kernel wants them alike; wider take another
        values = functional.pad(values, (0, keys.shape[-1] - value_dim))
    count, heads, dim = queries.shape
    sequences, kv_heads = keys.shape[0], keys.shape[1]
    tokens, shared = count // sequences, heads // kv_heads
    grouped = queries.view(sequences, tokens, kv_heads, shared, dim).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(sequences, kv_heads, shared * tokens, dim)  # (S, K, G*T, D)
    missing = group.mask.shape[2] - shared * tokens
    if missing:
        grouped = functional.pad(grouped, (0, 0, 0, missing))
    out = functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=group.mask, scale=scale
    )
    out = out[:, :, : shared * tokens, :value_dim]
    out = out.view(sequences, kv_heads, shared, tokens, value_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(count, heads * value_dim)
