"""Which shapes give a row the same bits, on this machine, measured when the model is loaded.

A matrix product's last digits depend on the kernel, and the kernel on the number of rows: a token
computed in a tile of 128 may differ from the same token computed alone. Then a prefix hit, a batch or a
different chunking would change answers. So the runner pads every tile to a row count out of one *class*:
counts whose rows were found equal bit for bit. Where all counts agree, small steps are cheap; where none
does, the class is a single count, and equality holds by construction.

The probe runs the real weights of one layer and the head: kernels are chosen by shape, not by value, and
a different order of summing shows in nearly every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv.cache import KvCache
from engine.kv.layout import KvLayout
from engine.models.attention import KEY_TILE_TOKENS, Group, attend, causal_mask
from engine.models.layers import rms_norm, rotate
from engine.models.llama import LlamaModel

_SMALLEST_ROWS = 8
_QUERY_ROWS = (4, 8, 16, 32, 64)
_PROBE_PIECES = (
    1,
    2,
    5,
    13,
    33,
    64,
    100,
)  # tokens of a piece, against the same rows of a whole tile
_PROBE_KEYS = (KEY_TILE_TOKENS, 5 * KEY_TILE_TOKENS)


@dataclass(frozen=True, slots=True)
class ExactShapes:
    """row_counts: of a tile, ascending. query_rows: attention is padded to a multiple of it.

    `attention` is False if no padding was found under which a row's attention has the same bits in
    every piece; linear layers are exact in any case.
    """

    row_counts: tuple[int, ...]
    query_rows: int
    attention: bool


@torch.inference_mode()
def measure(model: LlamaModel, *, tile_tokens: int) -> ExactShapes:
    """Find the shapes for tiles of at most `tile_tokens` rows. Takes some tenths of a second."""
    row_counts = _best(_classes(model, _candidates(tile_tokens)))
    for query_rows in _QUERY_ROWS:
        if _attention_agrees(model, query_rows):
            return ExactShapes(row_counts, query_rows, attention=True)
    return ExactShapes(row_counts, _QUERY_ROWS[2], attention=False)


def _candidates(tile_tokens: int) -> list[int]:
    counts = []
    count = _SMALLEST_ROWS
    while count < tile_tokens:
        counts.append(count)
        count *= 2
    return [*counts, tile_tokens]


def _best(classes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The class with small steps for decode and large ones for prefill.

    A rule and not a stopwatch, so that a machine always gives the same bits. The cost of a product is
    taken as 32 + rows: reading the weights costs about as much as multiplying 32 rows.
    """

    def cost(counts: tuple[int, ...]) -> float:
        decode, prefill = 32 + counts[0], (32 + counts[-1]) / counts[-1]
        return decode * prefill

    return min(classes, key=cost)


def _classes(model: LlamaModel, counts: list[int]) -> list[tuple[int, ...]]:
    """Row counts grouped by equal bits."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab, (counts[-1],), generator=generator)
    rows = model.embedding[tokens.to(model.device)]  # (M, hidden)
    results = {count: (_rowwise(model, rows[:count]), count) for count in counts}
    ends = {count: _rowwise(model, rows[-count:]) for count in counts}
    classes: list[list[int]] = []
    for count in counts:
        for members in classes:
            if all(
                _same(results[one][0], results[count][0], first=True)
                and _same(ends[one], ends[count], first=False)
                for one in members
            ):
                members.append(count)
                break
        else:
            classes.append([count])
    return [tuple(members) for members in classes]


def _rowwise(model: LlamaModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """All of a network that sees a row alone: a layer without its attention, and the head."""
    config, layer = model.config, model.layers[0]
    count = rows.shape[0]
    qkv = layer.qkv(rms_norm(rows, layer.attention_norm, config.rms_eps))
    heads = qkv.view(count, -1, config.head_dim)
    positions = torch.full((count,), min(7, config.context_tokens - 1), device=rows.device)
    cos, sin = model.rotary.cos[positions], model.rotary.sin[positions]
    mixed = rotate(heads[:, : config.heads], cos, sin).reshape(count, -1)
    rows = rows + layer.out(mixed)
    rows = rows + model.mlp(layer, rows)
    seen = torch.cat((qkv, rows), dim=-1)
    return seen, model.logits(rows)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], *, first: bool) -> bool:
    """Are the rows that both results have equal: their first ones, or their last ones?"""
    count = min(one[0].shape[0], other[0].shape[0])
    part = slice(0, count) if first else slice(-count, None)
    return all(torch.equal(a[part], b[part]) for a, b in zip(one, other, strict=True))


def _attention_agrees(model: LlamaModel, query_rows: int) -> bool:
    """Has a row the same bits in pieces of all lengths?"""
    config = model.config
    tile = KEY_TILE_TOKENS
    layout = KvLayout(
        layers=1,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        block_tokens=tile,
        itemsize=model.dtype.itemsize,
    )
    blocks = max(_PROBE_KEYS) // tile
    cache = KvCache(layout, blocks, device=model.device, dtype=model.dtype)
    generator = torch.Generator().manual_seed(1)
    cache.data.copy_(torch.randn(cache.data.shape, generator=generator))
    queries = torch.randn(tile, config.heads, config.head_dim, generator=generator)
    queries = queries.to(model.device, model.dtype)
    groups = config.heads // config.kv_heads

    def attended(start: int, stop: int, keys: int) -> Tensor:
        positions = torch.arange(keys - tile + start, keys - tile + stop, device=model.device)
        mask = causal_mask(
            positions.unsqueeze(0), keys, groups=groups, query_rows=query_rows, dtype=model.dtype
        )
        table = torch.arange(keys // tile, device=model.device)
        return attend(queries[start:stop], cache, 0, Group(start, stop, 1, table, mask))

    for keys in _PROBE_KEYS:
        whole = attended(0, tile, keys)
        for count in _PROBE_PIECES:
            for start in (0, tile // 3, tile - count):
                stop = min(start + count, tile)
                if not torch.equal(attended(start, stop, keys), whole[start:stop]):
                    return False
    return True
