"""Puts a network together out of named tensors; each is checked against its shape first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ModelLoadError
from engine.models.config import LatentConfig, MlaMode, ModelConfig, MoeConfig
from engine.models.deepseek import AbsorbedAttention, Latents, NaiveAttention, Queries
from engine.models.llama import GroupedAttention
from engine.models.moe import Moe, Router
from engine.models.network import Attention, Layer, Mlp, Network, Sharding, Swiglu
from engine.weights.linear import Linear
from engine.weights.shapes import tensor_shapes


class Source(Protocol):
    """A file or folder with tensors."""

    path: Path
    config: ModelConfig

    @property
    def names(self) -> frozenset[str]:
        """Of all tensors there are."""

    def tensor(self, name: str) -> Tensor:
        """A tensor as stored. Raises `ModelLoadError`."""

    def stored(self, name: str) -> tuple[int, NDArray[np.uint8]] | None:
        """(GGML type, rows of blocks) of a quantised matrix, or None where it is kept as numbers."""


_BY_ROW = ("q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj")
_BY_COLUMN = ("o_proj", "down_proj")


def build(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype,
    mla: MlaMode | None,
    sharding: Sharding | None = None,
) -> Network:
    """The network of a source, or this rank's part of it. Raises `ModelLoadError` naming a tensor that is missing or not right."""
    shapes = checked_shapes(source)
    with torch.inference_mode():
        return _Builder(
            source, shapes, device=device, dtype=dtype, mla=mla, sharding=sharding
        ).network()


def checked_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a source's tensors. Raises `ModelLoadError` if its names are others."""
    shapes = tensor_shapes(source.config)
    surplus = sorted(source.names - shapes.keys())
    if surplus:
        kind = source.config.architecture
        raise ModelLoadError(f"{source.path}: tensor {surplus[0]!r} is not part of a {kind} model")
    missing = sorted(shapes.keys() - source.names)
    if missing:  # before minutes of loading what is there
        raise ModelLoadError(f"{source.path}: tensor {missing[0]!r} is missing")
    return shapes


def checked_shape(
    source: Source, name: str, found: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises `ModelLoadError` for a tensor of another shape than the model has."""
    if found != shapes[name]:
        raise ModelLoadError(
            f"{source.path}: tensor {name!r} has shape {found}, not {shapes[name]}"
        )


class _Builder:
    """Names to parts; `at` is always the prefix of what is being built."""

    def __init__(
        self,
        source: Source,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        device: torch.device,
        dtype: torch.dtype,
        mla: MlaMode | None,
        sharding: Sharding | None,
    ) -> None:
        self.source = source
        self.sharding = sharding
        self.config = source.config if sharding is None else sharding.local(source.config)
        self.shapes = shapes
        self.device = device
        self.dtype = dtype
        self.mla = mla

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        found = self.source.tensor(name)
        checked_shape(self.source, name, tuple(found.shape), self.shapes)
        return self._part(name, found).to(self.device, dtype or self.dtype)

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        """What this rank holds of a tensor: its heads, its part of a width, or all of it."""
        sharding = self.sharding
        layer, kind = name.split(".")[-2:]
        if sharding is None or layer not in _BY_ROW + _BY_COLUMN:
            return tensor
        if layer in _BY_ROW:
            return sharding.part(tensor, 0)
        return sharding.part(tensor, 1) if kind == "weight" else sharding.once(tensor)

    def linear(self, *names: str) -> Linear:
        """One layer of several, one under the other; with biases where the model has them."""
        weight = torch.cat([self.tensor(f"{name}.weight") for name in names])
        biases = [self.tensor(f"{name}.bias") for name in names if f"{name}.bias" in self.shapes]
        return Linear(weight, torch.cat(biases) if biases else None)

    def network(self) -> Network:
        config = self.config
        embedding = self.tensor("model.embed_tokens.weight")
        return Network(
            config,
            embedding=embedding,
            layers=[self._layer(number) for number in range(config.layers)],
            final_norm=self.tensor("model.norm.weight"),
            head=Linear(embedding) if config.tied else self.linear("lm_head"),
            mla=self.mla,
            sharding=self.sharding,
        )

    def _layer(self, number: int) -> Layer:
        at = f"model.layers.{number}"
        latent, moe = self.config.latent, self.config.moe
        mixture = moe if moe is not None and number >= moe.first_layer else None
        return Layer(
            attention_norm=self.tensor(f"{at}.input_layernorm.weight"),
            attention=self._attention(f"{at}.self_attn", latent),
            mlp_norm=self.tensor(f"{at}.post_attention_layernorm.weight"),
            mlp=self._mlp(f"{at}.mlp", mixture),
        )

    # -- attention -------------------------------------------------------------------------------

    def _attention(self, at: str, latent: LatentConfig | None) -> Attention:
        if latent is None:
            return self._grouped(at)
        return self._latent(at, latent)

    def _grouped(self, at: str) -> GroupedAttention:
        norms = self.config.head_norms
        return GroupedAttention(
            self.config,
            qkv=self.linear(*(f"{at}.{part}_proj" for part in "qkv")),
            out=self.linear(f"{at}.o_proj"),
            query_norm=self.tensor(f"{at}.q_norm.weight") if norms else None,
            key_norm=self.tensor(f"{at}.k_norm.weight") if norms else None,
        )

    def _latent(self, at: str, latent: LatentConfig) -> Attention:
        heads = self.config.heads
        down = self.tensor(f"{at}.kv_a_proj_with_mqa.weight")
        down = torch.cat((down[: latent.latent], _paired(down[latent.latent :], latent)))
        latents = Latents(Linear(down), self.tensor(f"{at}.kv_a_layernorm.weight"), latent)
        queries = self._queries(at, latent)
        out = self.linear(f"{at}.o_proj")
        expand = self.tensor(f"{at}.kv_b_proj.weight")
        if self.mla == "naive":
            return NaiveAttention(
                self.config, queries=queries, latents=latents, expand=Linear(expand), out=out
            )
        by_head = expand.view(heads, -1, latent.latent)
        key, value = torch.split(by_head, [latent.nope, latent.value], dim=1)
        return AbsorbedAttention(
            self.config,
            queries=queries,
            latents=latents,
            key=key.contiguous(),
            value=value.transpose(1, 2).contiguous(),
            out=out,
        )

    def _queries(self, at: str, latent: LatentConfig) -> Queries:
        low_rank = latent.query_rank is not None
        up = self.tensor(f"{at}.{'q_b_proj' if low_rank else 'q_proj'}.weight")
        by_head = up.view(self.config.heads, latent.nope + latent.rope, -1)
        turned = [
            torch.cat((head[: latent.nope], _paired(head[latent.nope :], latent)))
            for head in by_head
        ]
        linear = Linear(torch.cat(turned))
        if not low_rank:
            return Queries(linear)
        return Queries(
            linear, self.linear(f"{at}.q_a_proj"), self.tensor(f"{at}.q_a_layernorm.weight")
        )

    # -- MLP -------------------------------------------------------------------------------------

    def _mlp(self, at: str, moe: MoeConfig | None) -> Mlp:
        if moe is None:
            return self._swiglu(at)
        correction = f"{at}.gate.e_score_correction_bias"
        router = Router(
            moe,
            self.tensor(f"{at}.gate.weight", torch.float32),
            self.tensor(correction, torch.float32) if moe.sigmoid else None,
        )
        experts = [self._swiglu(f"{at}.experts.{number}") for number in range(moe.experts)]
        return Moe(router, experts, self._swiglu(f"{at}.shared_experts") if moe.shared else None)

    def _swiglu(self, at: str) -> Swiglu:
        return Swiglu(
            self.linear(f"{at}.gate_proj", f"{at}.up_proj"), self.linear(f"{at}.down_proj")
        )


def _paired(rows: Tensor, latent: LatentConfig) -> Tensor:
    """Rows (R, inputs) of a rotated part, the two of a pair half the part apart."""
    if not latent.interleaved:
        return rows
    return torch.cat((rows[0::2], rows[1::2]))
