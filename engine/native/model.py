"""A model made ready for the native forward pass, and what it refuses."""

from __future__ import annotations

import ctypes
import os
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
from engine.native.weights import Arena, Packer
from engine.weights.build import Source

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
    shared = config.heads // config.kv_heads
    if config.head_dim > _MOST_DIM or shared > _MOST_SHARED:
        raise NoNativeError(f"heads of {config.head_dim} in groups of {shared}")


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
    return _Reading(library, source).weights()


class _Reading:
    """Names to C's structures: first all blocks, then one arena that has room for their tiles."""

    def __init__(self, library: Library, source: Source) -> None:
        self.config = source.config
        self.packer = packer = Packer(library, source)
        layers = range(source.config.layers)
        self.layers = [
            {part: packer.blocks(*of) for part, of in _matrices(number).items()}
            for number in layers
        ]
        self.top = {"embedding": packer.blocks("model.embed_tokens")}
        if not source.config.tied:
            self.top["head"] = packer.blocks("lm_head")
        everything = [*self.top.values(), *(found for one in self.layers for found in one.values())]
        self.arena = Arena(sum(packer.size_bytes(*found) for found in everything))
        self.kept: list[Any] = [self.arena]

    def weights(self) -> Weights:
        config = self.config
        layers = (CLayer * config.layers)()
        for number in range(config.layers):
            layers[number] = self._layer(number)
        packed = {name: self.packer.pack(self.arena, *found) for name, found in self.top.items()}
        cosine, sine = _turns(config)
        return Weights(
            config=config,
            layers=layers,
            embedding=packed["embedding"],
            head=packed.get("head", packed["embedding"]),
            final_norm=self.packer.vector("model.norm.weight"),
            cosine=cosine,
            sine=sine,
            kept=tuple(self.kept),
        )

    def _layer(self, number: int) -> CLayer:
        at, config = f"model.layers.{number}", self.config
        blocks = self.layers[number]
        matrices = {part: self.packer.pack(self.arena, *blocks[part]) for part in _LINEAR}
        if config.qkv_bias:
            matrices["qkv"].bias = self._vector(
                *(f"{at}.self_attn.{part}_proj.bias" for part in "qkv")
            )
        if config.out_bias:
            matrices["out"].bias = self._vector(f"{at}.self_attn.o_proj.bias")
        return CLayer(
            self._vector(f"{at}.input_layernorm.weight"),
            self._vector(f"{at}.post_attention_layernorm.weight"),
            self._vector(f"{at}.self_attn.q_norm.weight") if config.head_norms else None,
            self._vector(f"{at}.self_attn.k_norm.weight") if config.head_norms else None,
            *(matrices[part] for part in _LINEAR),
        )

    def _vector(self, *names: str) -> int | None:
        """Where a tensor's floats lie, or several tensors' one after the other."""
        self.kept.append(np.concatenate([self.packer.vector(name) for name in names]))
        return address(self.kept[-1])


def _matrices(number: int) -> dict[str, tuple[str, ...]]:
    at = f"model.layers.{number}"
    return {
        "qkv": tuple(f"{at}.self_attn.{part}_proj" for part in "qkv"),
        "out": (f"{at}.self_attn.o_proj",),
        "gate": (f"{at}.mlp.gate_proj",),
        "up": (f"{at}.mlp.up_proj",),
        "down": (f"{at}.mlp.down_proj",),
    }


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
        self._process = os.getpid()
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
        """Compute a call's rows; returns for how many ns the first thread waited for others.

        In a fork there is no crew: its one thread computes the same bits alone.
        """
        assert self._handle is not None
        return self._library.forward(self._handle, call, threads if self._is_ours() else 1)

    def bind(self) -> None:
        """The calling thread will call `forward`, and nothing else in the process computes as much."""
        assert self._handle is not None
        self._library.bind(self._handle)

    def close(self) -> None:
        """End the crew. May be called twice."""
        if self._handle is not None and self._is_ours():
            self._library.free(self._handle)
        self._handle = None

    def _is_ours(self) -> bool:
        return self._process == os.getpid()

    def __del__(self) -> None:
        self.close()
