"""The numbers of a model, as its files state them. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ModelLoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-family model in numbers.

    tied          the head is the embedding table
    rope_factors  what each rotary frequency is divided by, D/2 of them (Llama 3's long contexts)
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

    def check(self, source: str) -> None:
        """Raises `ModelLoadError`, naming `source`, for numbers that do not make a model."""
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, name) < 1:
                raise ModelLoadError(f"{source}: {name} is {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ModelLoadError(
                f"{source}: {self.heads} attention heads do not divide into {self.kv_heads} groups"
            )
        if self.head_dim % 2:
            raise ModelLoadError(
                f"{source}: head dimension {self.head_dim} is odd, rotary needs pairs"
            )
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ModelLoadError(
                f"{source}: {len(self.rope_factors)} rotary factors for {self.head_dim // 2} pairs"
            )
