"""A Llama without pages, tiles, fused weights or a cache, for comparing: the plain formulas, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.models.config import ModelConfig


def dense_logits(
    config: ModelConfig, weights: Mapping[str, Tensor], tokens: Sequence[int]
) -> Tensor:
    """Logits of every position (T, V) out of Hugging Face's tensors."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_eps) * weights[name]

    count, dim = len(tokens), config.head_dim
    shared = config.heads // config.kv_heads
    x = weights["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        y = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            (y @ weights[f"{at}self_attn.{part}_proj.weight"].T)
            .view(count, -1, dim)
            .transpose(0, 1)
            for part in "qkv"
        )  # (H or K, T, D)
        q, k = turned(q, config), turned(k, config)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.transpose(1, 2) / dim**0.5  # (H, T, T)
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, -1)
        x = x + mixed @ weights[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate = y @ weights[at + "mlp.gate_proj.weight"].T
        up = y @ weights[at + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ weights[at + "mlp.down_proj.weight"].T
    head = weights["model.embed_tokens.weight" if config.tied else "lm_head.weight"]
    return norm(x, "model.norm.weight") @ head.T


def turned(x: Tensor, config: ModelConfig) -> Tensor:
    """Rotary positions by complex numbers: pair i of a head is element i and element i + D/2."""
    half = config.head_dim // 2
    turn = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    if config.rope_factors is not None:
        turn = turn / torch.tensor(config.rope_factors, dtype=torch.float64)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * turn
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), dim=-1).float()
