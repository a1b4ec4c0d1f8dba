"""The Llama family: every operation of the network, on one screen.

Nothing here knows a sequence: a tile is rows with positions, slots and attention groups. All linear
layers of a tile see the same number of rows, real ones first, padding after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.kv.cache import KvCache
from engine.models.attention import Group, attend
from engine.models.config import ModelConfig
from engine.models.layers import Rotary, rms_norm, rotate
from engine.weights.linear import Linear


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One block's weights. qkv holds queries, keys, values one under the other; gate_up likewise."""

    attention_norm: Tensor  # (hidden,)
    qkv: Linear  # hidden -> (H + 2K) * D
    out: Linear  # H * D -> hidden
    mlp_norm: Tensor  # (hidden,)
    gate_up: Linear  # hidden -> 2 * intermediate
    down: Linear  # intermediate -> hidden


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows that run through the network together, padded to a fixed count.

    tokens, positions (M,) for all rows; slots (T,) and groups for the first T, which are real
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    groups: tuple[Group, ...]


class LlamaModel:
    """Weights and the forward pass. Everything runs under `torch.inference_mode`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: Tensor,
        layers: Sequence[LlamaLayer],
        final_norm: Tensor,
        head: Linear,
    ) -> None:
        self.config = config
        self.embedding = embedding  # (V, hidden)
        self.layers = tuple(layers)
        self.final_norm = final_norm
        self.head = head
        self.rotary = Rotary(config, device=embedding.device, dtype=embedding.dtype)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def forward(self, tile: Tile, cache: KvCache) -> Tensor:
        """Write the tile's keys and values into the pool and return its hidden rows (M, hidden)."""
        config = self.config
        rows = tile.slots.shape[0]
        heads = config.heads + config.kv_heads  # those that are rotated
        x = functional.embedding(tile.tokens, self.embedding)  # (M, hidden)
        cos = self.rotary.cos[tile.positions]  # (M, 1, D)
        sin = self.rotary.sin[tile.positions]
        mixed = x.new_zeros(x.shape[0], config.heads * config.head_dim)
        for number, layer in enumerate(self.layers):
            qkv = layer.qkv(rms_norm(x, layer.attention_norm, config.rms_eps))
            qkv = qkv.view(x.shape[0], heads + config.kv_heads, config.head_dim)
            qkv[:, :heads] = rotate(qkv[:, :heads], cos, sin)
            cache.write(number, tile.slots, qkv[:rows, config.heads :])
            for group in tile.groups:
                queries = qkv[group.start : group.stop, : config.heads]
                mixed[group.start : group.stop] = attend(queries, cache, number, group)
            x = x + layer.out(mixed)
            x = x + self.mlp(layer, x)
        return x

    def mlp(self, layer: LlamaLayer, x: Tensor) -> Tensor:
        """SwiGLU (Shazeer, 2020) of the normed rows."""
        gate, up = layer.gate_up(rms_norm(x, layer.mlp_norm, self.config.rms_eps)).chunk(2, dim=-1)
        return layer.down(functional.silu(gate).mul_(up))

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, hidden) to fp32 (T, V)."""
        return self.head(rms_norm(hidden, self.final_norm, self.config.rms_eps)).float()
