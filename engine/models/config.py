"""The numbers of a model, as its files state them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.errors import ModelLoadError
from engine.kv.layout import KvShape

MlaMode = Literal["naive", "absorb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024).

    query_rank   of the queries' own low-rank projection; None: they come straight from the hidden row
    latent       C, what keys and values of all heads are made of
    nope, rope   a head's query and key: the part without positions, and the part that is rotated (R)
    interleaved  the files keep the two rows of a rotary pair side by side
    """

    query_rank: int | None
    latent: int
    nope: int
    rope: int
    value: int
    interleaved: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    """A mixture of experts (DeepSeekMoE, 2024): from layer `first_layer` on, in place of the MLP.

    sigmoid     scores by sigmoid, chosen with a learned correction (V3); else by softmax (V2)
    groups      experts are chosen out of the `top_groups` best groups only; 1 group: no such limit
    normalised  the weights of the chosen experts are made to sum to one before `scaling`
    """

    experts: int
    chosen: int
    intermediate: int
    shared: int
    first_layer: int
    scaling: float
    sigmoid: bool = False
    groups: int = 1
    top_groups: int = 1
    normalised: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model of the Llama or the DeepSeek family in numbers.

    tied            the head is the embedding table
    rope_factors    what each rotary frequency is divided by (Llama 3's and YaRN's long contexts)
    rope_scale      what cosine and sine are multiplied by (YaRN)
    softmax_factor  what attention scores are multiplied by beside 1/sqrt(D) (DeepSeek's YaRN)
    qkv_bias, out_bias, head_norms
                    Qwen2 has biases on queries, keys and values; Qwen3 norms each head's query and key
    latent, moe     DeepSeek's attention and its mixture of experts
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_tokens: int
    rope_theta: float
    rms_eps: float
    tied: bool
    rope_factors: tuple[float, ...] | None = None
    rope_scale: float = 1.0
    softmax_factor: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    head_norms: bool = False
    latent: LatentConfig | None = None
    moe: MoeConfig | None = None

    @property
    def rotary_dim(self) -> int:
        """How much of a head is rotated."""
        return self.head_dim if self.latent is None else self.latent.rope

    @property
    def softmax_scale(self) -> float:
        """What a score, query times key, is multiplied by."""
        latent = self.latent
        width = self.head_dim if latent is None else latent.nope + latent.rope
        return float(width**-0.5 * self.softmax_factor)

    def mla_mode(self, wish: str) -> MlaMode | None:
        """What `engine.mla` means for this model: None where there is no latent attention."""
        if self.latent is None:
            return None
        return "naive" if wish == "naive" else "absorb"

    def kv_shape(self, mode: MlaMode | None) -> KvShape:
        """What a layer keeps of a token."""
        latent = self.latent
        if latent is None:
            return KvShape(heads=self.kv_heads, key_dim=self.head_dim, value_dim=self.head_dim)
        if mode == "naive":
            width = latent.nope + latent.rope
            return KvShape(heads=self.heads, key_dim=width, value_dim=latent.value)
        return KvShape(
            heads=1, key_dim=latent.latent + latent.rope, value_dim=latent.latent, latent=True
        )

    def rope_words(self) -> str:
        """All that positions depend on: part of the root of the block hashes."""
        return f"{self.rope_theta}/{self.rope_factors}/{self.rope_scale}/{self.softmax_factor}"

    def check(self, source: str) -> None:
        """Raises `ModelLoadError`, naming `source`, for numbers that do not make a model."""
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise ModelLoadError(f"{source}: {name} is {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ModelLoadError(
                f"{source}: {self.heads} attention heads do not divide into {self.kv_heads} groups"
            )
        if self.rotary_dim % 2:
            raise ModelLoadError(
                f"{source}: head dimension {self.rotary_dim} is odd, rotary needs pairs"
            )
        if self.rope_factors is not None and len(self.rope_factors) != self.rotary_dim // 2:
            raise ModelLoadError(
                f"{source}: {len(self.rope_factors)} rotary factors for"
                f" {self.rotary_dim // 2} pairs"
            )
        self._check_latent(source)
        self._check_moe(source)

    def _check_latent(self, source: str) -> None:
        latent = self.latent
        if latent is None:
            return
        numbers = {
            "kv_lora_rank": latent.latent,
            "qk_nope_head_dim": latent.nope,
            "qk_rope_head_dim": latent.rope,
            "v_head_dim": latent.value,
            "q_lora_rank": 1 if latent.query_rank is None else latent.query_rank,
        }
        for name, number in numbers.items():
            if number < 1:
                raise ModelLoadError(f"{source}: {name} is {number}")

    def _check_moe(self, source: str) -> None:
        moe = self.moe
        if moe is None:
            return
        if moe.intermediate < 1 or moe.groups < 1 or moe.experts % moe.groups:
            raise ModelLoadError(
                f"{source}: {moe.experts} experts of {moe.intermediate} in {moe.groups} groups"
            )
        reach = moe.experts // moe.groups * min(moe.top_groups, moe.groups)
        if not 1 <= moe.chosen <= reach:
            raise ModelLoadError(f"{source}: {moe.chosen} of {reach} experts cannot be chosen")
        if moe.sigmoid and moe.experts // moe.groups < 2:
            raise ModelLoadError(f"{source}: groups of one expert have no two best ones")
