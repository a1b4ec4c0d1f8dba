"""The small parts: norm and rotary positions. Each row is computed by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019)."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


class Rotary:
    """Rotary positions (Su et al., 2021), pairs half a head apart as in Hugging Face's layout.

    `cos` and `sin` hold one row a position: (context, 1, D); D is the rotated part of a head. The first half of `sin` is negative, so
    that a rotation is two products, one swap of halves and one sum.
    """

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        dim = config.rotary_dim
        pairs = torch.arange(0, dim, 2, dtype=torch.int64).float()
        frequency = 1.0 / (config.rope_theta ** (pairs / dim))  # (D/2,)
        if config.rope_factors is not None:
            frequency = frequency / torch.tensor(config.rope_factors)
        positions = torch.arange(config.context_tokens, dtype=torch.int64).float()
        angle = torch.outer(positions, frequency)  # (context, D/2)
        cos, sin = angle.cos() * config.rope_scale, angle.sin() * config.rope_scale
        self.cos = torch.cat((cos, cos), dim=-1).unsqueeze(1).to(device, dtype)
        self.sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(device, dtype)

    def at(self, positions: Tensor) -> Turn:
        """The rotations of rows at positions (M,)."""
        return Turn(self.cos[positions], self.sin[positions])


@dataclass(frozen=True, slots=True)
class Turn:
    """How each row of a tile is rotated: cos and sin (M, 1, D)."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotate each head of each row: x (M, heads, D)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * turn.cos, swapped, turn.sin)
