"""The small parts: norm and rotary positions. Each row is computed by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich, 2019)."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


class Rotary:
    """Rotary positions (Su et al., 2021), pairs half a head apart as in Hugging Face's layout.

    `cos` and `sin` hold one row a position: (context, 1, D). The first half of `sin` is negative, so
    that a rotation is two products, one swap of halves and one sum.
    """

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float()
        frequency = 1.0 / (config.rope_theta ** (pairs / config.head_dim))  # (D/2,)
        if config.rope_factors is not None:
            frequency = frequency / torch.tensor(config.rope_factors)
        positions = torch.arange(config.context_tokens, dtype=torch.int64).float()
        angle = torch.outer(positions, frequency)  # (context, D/2)
        cos, sin = angle.cos(), angle.sin()
        self.cos = torch.cat((cos, cos), dim=-1).unsqueeze(1).to(device, dtype)
        self.sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1).to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head of each row: x (T, heads, D), cos and sin (T, 1, D)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin)
