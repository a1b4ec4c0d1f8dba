"""Attention of the Llama family: query heads in groups that share a key and a value head."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.cache import KvCache
from engine.models.attention import attend
from engine.models.config import ModelConfig
from engine.models.layers import Turn, rms_norm, rotate
from engine.models.network import Tile
from engine.weights.linear import Linear


class GroupedAttention:
    """qkv holds queries, keys and values one under the other; the norms (D,) are Qwen3's."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        qkv: Linear,  # hidden -> (H + 2K) * D
        out: Linear,  # H * D -> hidden
        query_norm: Tensor | None = None,
        key_norm: Tensor | None = None,
    ) -> None:
        self.config = config
        self.qkv = qkv
        self.out = out
        self.query_norm = query_norm
        self.key_norm = key_norm

    def __call__(self, x: Tensor, turn: Turn, tile: Tile, cache: KvCache, layer: int) -> Tensor:
        heads, scale = self.config.heads, self.config.softmax_scale
        qkv = self._turned(x, turn)
        mixed = x.new_zeros(x.shape[0], heads * self.config.head_dim)
        cache.write(layer, tile.slots, qkv[: tile.rows, heads:].flatten(1))
        for group in tile.groups:
            queries = qkv[group.start : group.stop, :heads]
            mixed[group.start : group.stop] = attend(queries, cache, layer, group, scale=scale)
        return self.out(mixed)

    def _turned(self, x: Tensor, turn: Turn) -> Tensor:
        """Queries, keys and values (M, H + 2K, D) with their positions in them."""
        config = self.config
        heads, turned = config.heads, config.heads + config.kv_heads
        qkv = self.qkv(x).view(x.shape[0], turned + config.kv_heads, config.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            qkv[:, :heads] = rms_norm(qkv[:, :heads], self.query_norm, config.rms_eps)
            qkv[:, heads:turned] = rms_norm(qkv[:, heads:turned], self.key_norm, config.rms_eps)
        qkv[:, :turned] = rotate(qkv[:, :turned], turn)
        return qkv

    def rowwise(self, x: Tensor, turn: Turn) -> Tensor:
        """Everything but the attention itself: the queries stand in for what it would give.

        With what is kept of each row beside it: exactness is a matter of keys and values above all.
        """
        qkv = self._turned(x, turn)
        answer = self.out(qkv[:, : self.config.heads].flatten(1))
        return torch.cat((qkv.flatten(1), answer), dim=-1)
