"""A model made ready for the native forward pass, and what it refuses."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.models.config import ModelConfig
from engine.models.layers import Rotary
from engine.native.build import NoNativeError
from engine.native.cache import NativeCache
from engine.native.library import CCall, CLayer, CMatrix, CShape, Library, address
from engine.native.plain import GROUP
from engine.native.weights import Arena, Packer, Source

MOST_ROWS = 512
"""Rows of one call; more are several calls."""
MOST_THREADS = 64
_MOST_SHARED, _MOST_DIM = 16, 256
_BLOCK_TOKENS = (16, 32, 64, 128)
_LINEAR = ("qkv", "out", "gate", "up", "down")


def check(config: ModelConfig, *, block_tokens: int) -> None:
    """Raises `NoNativeError` for a model that the kernels are not written for."""
    if config.latent is not None or config.moe is not None:
        raise NoNativeError("latent attention and experts run on torch")
    if block_tokens not in _BLOCK_TOKENS:
        raise NoNativeError(f"block_tokens is {block_tokens}, not one of {_BLOCK_TOKENS}")
    for name in ("hidden", "intermediate", "head_dim"):
        if getattr(config, name) % GROUP:
            raise NoNativeError(f"{name} is {getattr(config, name)}, no multiple of {GROUP}")
    if config.head_dim > _MOST_DIM or config.heads // config.kv_heads > _MOST_SHARED:
        raise NoNativeError(f"heads of {config.head_dim} in groups of {config.heads}")


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a model in memory: C's view of it, and what keeps that alive."""

    config: ModelConfig
    layers: ctypes.Array[CLayer]
    embedding: CMatrix
    head: CMatrix
    final_norm: NDArray[np.float32]
    cosine: NDArray[np.float32]
    sine: NDArray[np.float32]
    kept: tuple[Any, ...]


def read(library: Library, source: Source) -> Weights:
    """Pack a source's tensors. Raises `ModelLoadError`, naming the tensor."""
    config = source.config
    packer = Packer(library, source)
    names = [_matrices(number) for number in range(config.layers)]
    blocks = [{part: packer.blocks(*of) for part, of in one.items()} for one in names]
    top = {"embedding": packer.blocks("model.embed_tokens")}
    if not config.tied:
        top["head"] = packer.blocks("lm_head")
    everything = [*top.values(), *(found for one in blocks for found in one.values())]
    arena = Arena(sum(packer.size_bytes(*found) for found in everything))
    kept: list[Any] = [arena]
    layers = (CLayer * config.layers)()
    for number, one in enumerate(blocks):
        layers[number] = _layer(packer, arena, config, number, one, kept)
    packed = {name: packer.pack(arena, *found) for name, found in top.items()}
    cosine, sine = _turns(config)
    return Weights(
        config=config,
        layers=layers,
        embedding=packed["embedding"],
        head=packed.get("head", packed["embedding"]),
        final_norm=packer.vector("model.norm.weight"),
        cosine=cosine,
        sine=sine,
        kept=tuple(kept),
    )


def _matrices(number: int) -> dict[str, tuple[str, ...]]:
    at = f"model.layers.{number}"
    return {
        "qkv": tuple(f"{at}.self_attn.{part}_proj" for part in "qkv"),
        "out": (f"{at}.self_attn.o_proj",),
        "gate": (f"{at}.mlp.gate_proj",),
        "up": (f"{at}.mlp.up_proj",),
        "down": (f"{at}.mlp.down_proj",),
    }


def _layer(
    packer: Packer,
    arena: Arena,
    config: ModelConfig,
    number: int,
    blocks: dict[str, tuple[NDArray[np.uint8], int]],
    kept: list[Any],
) -> CLayer:
    at = f"model.layers.{number}"

    def vector(name: str, *, there: bool = True) -> NDArray[np.float32] | None:
        values = packer.vector(f"{at}.{name}") if there else None
        kept.append(values)
        return values

    norms, biased = config.head_norms, config.qkv_bias
    matrices = {part: packer.pack(arena, *blocks[part]) for part in _LINEAR}
    if biased:
        biases = [packer.vector(f"{at}.self_attn.{part}_proj.bias") for part in "qkv"]
        kept.append(np.concatenate(biases))
        matrices["qkv"].bias = address(kept[-1])
    matrices["out"].bias = address(vector("self_attn.o_proj.bias", there=config.out_bias))
    return CLayer(
        address(vector("input_layernorm.weight")),
        address(vector("post_attention_layernorm.weight")),
        address(vector("self_attn.q_norm.weight", there=norms)),
        address(vector("self_attn.k_norm.weight", there=norms)),
        *(matrices[part] for part in _LINEAR),
    )


def _turns(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines (context, D/2) of all positions."""
    rotary = Rotary(config, device=torch.device("cpu"), dtype=torch.float32)
    half = config.head_dim // 2
    cosine, sine = rotary.cos[:, 0, :half], rotary.sin[:, 0, half:]  # the second half is positive
    return cosine.contiguous().numpy().copy(), sine.contiguous().numpy().copy()


class NativeModel:
    """Weights, a pool and a crew of threads. Not for two threads at once."""

    def __init__(
        self, library: Library, weights: Weights, cache: NativeCache, *, threads: int
    ) -> None:
        config = weights.config
        self.config = config
        self.threads = min(threads, MOST_THREADS)
        self._library = library
        self._kept = (weights, cache)
        shape = CShape(
            config.layers,
            config.hidden,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.intermediate,
            config.vocab,
            config.context_tokens,
            cache.layout.block_tokens,
            MOST_ROWS,
            config.rms_eps,
            config.softmax_scale,
        )
        arrays = (weights.final_norm, weights.cosine, weights.sine, cache.data)
        self._handle: int | None = library.new(
            shape,
            weights.layers,
            weights.embedding,
            weights.head,
            arrays=arrays,
            threads=self.threads,
        )

    def forward(self, call: CCall, *, threads: int) -> int:
        """Compute a call's rows; returns for how many ns the first thread waited for others."""
        assert self._handle is not None
        return self._library.forward(self._handle, call, threads)

    def close(self) -> None:
        """End the crew. May be called twice."""
        if self._handle is not None:
            self._library.free(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.close()
