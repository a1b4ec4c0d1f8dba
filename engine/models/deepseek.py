"""DeepSeek's multi-head latent attention, with either of two things in the cache.

Keys and values of all heads are made of one latent c (C numbers a token) and one rotated key part r
(R numbers) that the heads share:

    key of a head    [ W_k c | r ]          value of a head    W_v c

*naive* computes them and keeps them, like any attention. *absorb* keeps c and r alone, and moves the
matrices to the other side of the products, where they meet a query or an answer once:

    score   q . (W_k c) = (W_k^T q) . c            answer   sum a_i (W_v c_i) = W_v (sum a_i c_i)

The same numbers but for rounding, in 1/71 of the memory for DeepSeek-V3. Absorbed, the heads are query
rows over one key head, whose value is the latent again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv.cache import KvCache
from engine.models.attention import attend
from engine.models.config import LatentConfig, ModelConfig
from engine.models.layers import Turn, rms_norm, rotate
from engine.models.network import Tile
from engine.weights.linear import Linear

_LATENT_EPS = 1e-6  # of the norms of the latents, whatever config.json says of the others


@dataclass(frozen=True, slots=True)
class Queries:
    """Rows to queries: at once, or through a low-rank latent with a norm of its own."""

    up: Linear  # hidden or query_rank -> H * (nope + R)
    down: Linear | None = None  # hidden -> query_rank
    norm: Tensor | None = None  # (query_rank,)

    def __call__(self, x: Tensor) -> Tensor:
        """(M, hidden) to (M, H * (nope + R))."""
        if self.down is not None and self.norm is not None:
            x = rms_norm(self.down(x), self.norm, _LATENT_EPS)
        return self.up(x)


@dataclass(frozen=True, slots=True)
class Latents:
    """Rows to what their keys and values are made of."""

    down: Linear  # hidden -> C + R
    norm: Tensor  # (C,)
    config: LatentConfig

    def __call__(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """(M, hidden) to the normed latents (M, C) and the rotated shared keys (M, 1, R)."""
        latent, rope = torch.split(self.down(x), [self.config.latent, self.config.rope], dim=-1)
        latent = rms_norm(latent, self.norm, _LATENT_EPS)
        return latent, rotate(rope.unsqueeze(1), turn)


class NaiveAttention:
    """Keeps a key and a value of every head."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        queries: Queries,
        latents: Latents,
        expand: Linear,  # C -> H * (nope + value)
        out: Linear,  # H * value -> hidden
    ) -> None:
        self.config = config
        self.queries = queries
        self.latents = latents
        self.expand = expand
        self.out = out

    def _all(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Queries (M, H, nope + R), and what is kept of each row (M, keys and values)."""
        shape = self.latents.config
        queries = self.queries(x).view(len(x), self.config.heads, -1)
        nope, rope = torch.split(queries, [shape.nope, shape.rope], dim=-1)
        queries = torch.cat((nope, rotate(rope, turn)), dim=-1)
        latent, shared = self.latents(x, turn)
        expanded = self.expand(latent).view(len(x), self.config.heads, -1)
        keys, values = torch.split(expanded, [shape.nope, shape.value], dim=-1)
        keys = torch.cat((keys, shared.expand(-1, self.config.heads, -1)), dim=-1)
        return queries, torch.cat((keys.flatten(1), values.flatten(1)), dim=1)

    def __call__(self, x: Tensor, turn: Turn, tile: Tile, cache: KvCache, layer: int) -> Tensor:
        queries, kept = self._all(x, turn)
        cache.write(layer, tile.slots, kept[: tile.rows])
        mixed = x.new_zeros(len(x), self.config.heads * self.latents.config.value)
        for group in tile.groups:
            part = slice(group.start, group.stop)
            scale = self.config.softmax_scale
            mixed[part] = attend(queries[part], cache, layer, group, scale=scale)
        return self.out(mixed)

    def rowwise(self, x: Tensor, turn: Turn) -> Tensor:
        """Everything but the attention itself: the values stand in for what it would give."""
        queries, kept = self._all(x, turn)
        values = kept[:, -self.config.heads * self.latents.config.value :]
        return torch.cat((queries.flatten(1), kept, self.out(values)), dim=-1)


class AbsorbedAttention:
    """Keeps the latent and the shared rotated key alone."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        queries: Queries,
        latents: Latents,
        key: Tensor,  # W_k (H, nope, C)
        value: Tensor,  # W_v transposed (H, C, value)
        out: Linear,  # H * value -> hidden
    ) -> None:
        self.config = config
        self.queries = queries
        self.latents = latents
        self.key = key
        self.value = value
        self.out = out

    def _all(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Queries (M, H, C + R) that meet latents, and what is kept of each row (M, C + R)."""
        shape = self.latents.config
        queries = self.queries(x).view(len(x), self.config.heads, -1)
        nope, rope = torch.split(queries, [shape.nope, shape.rope], dim=-1)
        absorbed = torch.bmm(nope.transpose(0, 1), self.key).transpose(0, 1)  # (M, H, C)
        latent, shared = self.latents(x, turn)
        return torch.cat((absorbed, rotate(rope, turn)), dim=-1), torch.cat(
            (latent, shared.squeeze(1)), dim=1
        )

    def _out(self, mixed: Tensor) -> Tensor:
        """Mixed latents (M, H, C) to (M, hidden)."""
        values = torch.bmm(mixed.transpose(0, 1), self.value)  # (H, M, value)
        return self.out(values.transpose(0, 1).flatten(1))

    def __call__(self, x: Tensor, turn: Turn, tile: Tile, cache: KvCache, layer: int) -> Tensor:
        queries, kept = self._all(x, turn)
        cache.write(layer, tile.slots, kept[: tile.rows])
        mixed = x.new_zeros(len(x), self.config.heads * self.latents.config.latent)
        for group in tile.groups:
            part = slice(group.start, group.stop)
            scale = self.config.softmax_scale
            mixed[part] = attend(queries[part], cache, layer, group, scale=scale)
        return self._out(mixed.view(len(x), self.config.heads, -1))

    def rowwise(self, x: Tensor, turn: Turn) -> Tensor:
        """Everything but the attention itself: absorbed queries stand in for mixed latents."""
        queries, kept = self._all(x, turn)
        heard = self._out(queries[..., : self.latents.config.latent])
        return torch.cat((queries.flatten(1), kept, heard), dim=-1)
