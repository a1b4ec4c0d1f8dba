"""A network of either family: rows in, rows out, layer by layer; the parts are `llama`, `deepseek`, `moe`.

Nothing here knows a sequence: a tile is rows with positions, slots and attention groups. All linear
layers of a tile see the same number of rows, real ones first, padding after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.kv.cache import KvCache
from engine.kv.layout import KvShape
from engine.models.attention import Group
from engine.models.config import MlaMode, ModelConfig
from engine.models.layers import Rotary, Turn, rms_norm
from engine.weights.linear import Linear


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows that run through the network together, padded to a fixed count.

    tokens, positions (M,) for all rows; slots (T,) and groups for the first T, which are real
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        """T: how many of the rows are real."""
        return self.slots.shape[0]


class Attention(Protocol):
    """What a row hears of the rows before it."""

    def __call__(self, x: Tensor, turn: Turn, tile: Tile, cache: KvCache, layer: int) -> Tensor:
        """Write the keys and values of rows x (M, hidden) and return what they heard (M, hidden)."""

    def rowwise(self, x: Tensor, turn: Turn) -> Tensor:
        """All of it that sees a row alone, for `engine.models.exact`: (M, hidden) to (M, anything)."""


class Mlp(Protocol):
    """What a row makes of itself."""

    def __call__(self, x: Tensor, rows: int) -> Tensor:
        """(M, hidden) to (M, hidden); only the first `rows` matter."""

    def rowwise(self, x: Tensor) -> Tensor:
        """Each of its matrix products with all rows, for `engine.models.exact`."""

    def use(self, row_counts: tuple[int, ...]) -> None:
        """Multiply no other number of rows than these: they give a row the same bits."""


class Sharding(Protocol):
    """A model that is divided over several ranks; see `engine.shards`."""

    size: int

    def announce(self, tile: Tile) -> None:
        """Have the other ranks compute their part of the tile too."""

    def announce_clear(self, slots: Tensor) -> None:
        """Have the other ranks clear these slots."""

    def added_up(self, x: Tensor) -> Tensor:
        """The sum of all ranks' parts, the same bits on each of them."""

    def local(self, config: ModelConfig) -> ModelConfig:
        """The numbers of this rank's part. Raises `ConfigError` for what does not divide."""

    def part(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's share of a tensor, cut along `dim`."""

    def once(self, tensor: Tensor) -> Tensor:
        """What only one rank may add: zeros on the others."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: both halves are added to the row they read."""

    attention_norm: Tensor  # (hidden,)
    attention: Attention
    mlp_norm: Tensor  # (hidden,)
    mlp: Mlp


class Swiglu:
    """SwiGLU (Shazeer, 2020); gate_up holds the gates over the values."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up  # hidden -> 2 * intermediate
        self.down = down  # intermediate -> hidden

    def __call__(self, x: Tensor, rows: int) -> Tensor:  # noqa: ARG002 -- padding costs nothing here
        return self.rowwise(x)

    def rowwise(self, x: Tensor) -> Tensor:
        """(M, hidden) to (M, hidden)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate).mul_(up))

    def use(self, row_counts: tuple[int, ...]) -> None:
        """It multiplies whole tiles, which are padded already."""


class Network:
    """Weights and the forward pass. Everything runs under `torch.inference_mode`."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: Tensor,
        layers: Sequence[Layer],
        final_norm: Tensor,
        head: Linear,
        mla: MlaMode | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.config = config
        self.embedding = embedding  # (V, hidden)
        self.layers = tuple(layers)
        self.final_norm = final_norm
        self.head = head
        self.mla = mla
        self.sharding = sharding
        self.rotary = Rotary(config, device=embedding.device, dtype=embedding.dtype)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def kv_shape(self) -> KvShape:
        """What each layer keeps of a token."""
        return self.config.kv_shape(self.mla)

    @property
    def query_heads_per_kv_head(self) -> int:
        return self.config.heads // self.kv_shape.heads

    def use(self, row_counts: tuple[int, ...]) -> None:
        """The row counts that the runner pads tiles to hold inside them too."""
        for layer in self.layers:
            layer.mlp.use(row_counts)

    def forward(self, tile: Tile, cache: KvCache) -> Tensor:
        """Write the tile's keys and values into the pool and return its hidden rows (M, hidden)."""
        eps = self.config.rms_eps
        if self.sharding is not None:
            self.sharding.announce(tile)
        x = functional.embedding(tile.tokens, self.embedding)  # (M, hidden)
        turn = self.rotary.at(tile.positions)
        for number, layer in enumerate(self.layers):
            normed = rms_norm(x, layer.attention_norm, eps)
            x = x + self._whole(layer.attention(normed, turn, tile, cache, number))
            x = x + self._whole(layer.mlp(rms_norm(x, layer.mlp_norm, eps), tile.rows))
        return x

    def _whole(self, x: Tensor) -> Tensor:
        return x if self.sharding is None else self.sharding.added_up(x)

    def clear(self, cache: KvCache, slots: Tensor) -> None:
        """Write zeros at slots (T,), on every rank."""
        if self.sharding is not None:
            self.sharding.announce_clear(slots)
        cache.clear(slots)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, hidden) to fp32 (T, V)."""
        return self.head(rms_norm(hidden, self.final_norm, self.config.rms_eps)).float()
