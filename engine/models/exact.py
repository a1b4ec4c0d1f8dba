"""Which shapes give a row the same bits, on this machine, measured when the model is loaded.

A matrix product's last digits depend on the kernel, and the kernel on the number of rows: a token
computed in a tile of 128 may differ from the same token computed alone. Then a prefix hit, a batch or a
different chunking would change answers. So the runner pads every tile to a row count out of one *class*:
counts whose rows were found equal bit for bit. Where all counts agree, small steps are cheap; where none
does, the class is a single count, and equality holds by construction.

The probe runs the real weights of the first and the last layer and the head (a model has at most two
kinds of layers, and with experts the last has them): kernels are chosen by shape, not by value, and
a different order of summing shows in nearly every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv.cache import KvCache
from engine.kv.layout import Element, KvLayout
from engine.models.attention import KEY_TILE_TOKENS, Group, attend, causal_mask
from engine.models.layers import rms_norm
from engine.models.network import Network

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
def measure(model: Network, *, tile_tokens: int, element: Element) -> ExactShapes:
    """Find the shapes for tiles of at most `tile_tokens` rows over a cache of such elements.

    Takes some tenths of a second.
    """
    row_counts = _best(_classes(model, _candidates(tile_tokens)))
    for query_rows in _QUERY_ROWS:
        if _attention_agrees(model, query_rows, element):
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


def _classes(model: Network, counts: list[int]) -> list[tuple[int, ...]]:
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


def _rowwise(model: Network, rows: Tensor) -> tuple[Tensor, ...]:
    """All of a network that sees a row alone: layers without their attention, and the head."""
    config = model.config
    positions = torch.full((len(rows),), min(7, config.context_tokens - 1), device=rows.device)
    turn = model.rotary.at(positions)
    seen = [model.logits(rows)]
    for layer in {id(layer): layer for layer in (model.layers[0], model.layers[-1])}.values():
        seen.append(
            layer.attention.rowwise(rms_norm(rows, layer.attention_norm, config.rms_eps), turn)
        )
        seen.append(layer.mlp.rowwise(rms_norm(rows, layer.mlp_norm, config.rms_eps)))
    return tuple(seen)


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...], *, first: bool) -> bool:
    """Are the rows that both results have equal: their first ones, or their last ones?"""
    count = min(one[0].shape[0], other[0].shape[0])
    part = slice(0, count) if first else slice(-count, None)
    return all(torch.equal(a[part], b[part]) for a, b in zip(one, other, strict=True))


def _attention_agrees(model: Network, query_rows: int, element: Element) -> bool:
    """Has a row the same bits in pieces of all lengths?"""
    tile = KEY_TILE_TOKENS
    layout = KvLayout(layers=1, shape=model.kv_shape, block_tokens=tile, element=element)
    blocks = max(_PROBE_KEYS) // tile
    cache = KvCache(layout, blocks, device=model.device, dtype=model.dtype)
    generator = torch.Generator().manual_seed(1)
    kept = torch.randn(blocks * tile, layout.shape.elements, generator=generator)
    cache.write(
        0, torch.arange(blocks * tile, device=model.device), kept.to(cache.device, cache.dtype)
    )
    queries = torch.randn(tile, model.config.heads, layout.shape.key_dim, generator=generator)
    queries = queries.to(model.device, model.dtype)

    def attended(start: int, stop: int, keys: int) -> Tensor:
        positions = torch.arange(keys - tile + start, keys - tile + stop, device=model.device)
        mask = causal_mask(
            positions.unsqueeze(0),
            keys,
            groups=model.query_heads_per_kv_head,
            query_rows=query_rows,
            dtype=model.dtype,
        )
        table = torch.arange(keys // tile, device=model.device)
        group = Group(start, stop, 1, table, mask)
        return attend(queries[start:stop], cache, 0, group, scale=model.config.softmax_scale)

    for keys in _PROBE_KEYS:
        whole = attended(0, tile, keys)
        for count in _PROBE_PIECES:
            for start in (0, tile // 3, tile - count):
                stop = min(start + count, tile)
                if not torch.equal(attended(start, stop, keys), whole[start:stop]):
                    return False
    return True
