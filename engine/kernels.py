"""The model, its pool and what runs them: by the native kernels where they serve, otherwise by torch.

`kernels: auto` takes the native ones (`engine.native`) when nothing speaks for torch: another device, a
dtype that was asked for, FP8, ranks, a family of models they are not written for, no compiler. Which it
became stands in the log and in `/kv/stats`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from engine.config import EngineConfig
from engine.engine import Runner as RunnerFace
from engine.errors import ConfigError
from engine.kv.cache import KvCache
from engine.kv.layout import Element, KvLayout
from engine.models.config import ModelConfig
from engine.models.network import Network
from engine.native.build import NoNativeError, code_version, library
from engine.native.cache import NativeCache
from engine.native.model import NativeModel, Weights, check, read
from engine.native.runner import NativeRunner
from engine.runner import Runner
from engine.shards import Shard, lead
from engine.speculation import RowCost
from engine.text.tokenizer import Tokenizer
from engine.weights.build import Source
from engine.weights.load import LoadedModel, choose_device, choose_dtype, load, load_with

_log = logging.getLogger("engine")


class Pool(Protocol):
    """Keys and values of all blocks."""

    layout: KvLayout
    blocks: int

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def nbytes(self) -> int: ...
    def export_block(self, block: int) -> memoryview: ...
    def import_block(self, block: int, blob: bytes | bytearray | memoryview) -> None: ...


class PooledRunner(RunnerFace[torch.Tensor], Protocol):
    """A runner, its pool, and how it may be used."""

    @property
    def cache(self) -> Pool: ...
    @property
    def tile_tokens(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def row_cost(self) -> RowCost: ...
    def begin(self) -> None:
        """Called by the thread that will run all steps, before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A model ready to run.

    `root` is what a block's content depends on of the model, `tiles` the shapes of the arithmetic.
    """

    runner: PooledRunner
    config: ModelConfig
    tokenizer: Tokenizer
    fingerprint: str
    root: str
    tiles: str
    kernels: str
    dtype: str
    mla: str | None


def make(config: EngineConfig, *, on_fatal: Callable[[str], None]) -> Made:
    """Load the model and its pool. Raises `ModelLoadError` and `ConfigError`."""
    device = _device(config)
    try:
        return _native(config, device)
    except NoNativeError as error:
        if config.kernels == "native":
            message = f"kernels: native was asked for, but {error}"
            raise ConfigError(message) from error
        _log.info("kernels: torch; %s", error)
    return _torch(config, device, on_fatal)


def _native(config: EngineConfig, device: torch.device) -> Made:
    """Raises `NoNativeError`, saying what speaks for torch."""
    _check_wishes(config, device)
    found = library()

    def packed(source: Source) -> Weights:
        check(source.config, block_tokens=config.block_tokens)
        return read(found, source)

    words = f"native {code_version()} {found.lanes}"
    loaded = load_with(path_of(config.model), packed, words=words)
    layout = KvLayout(
        layers=loaded.config.layers,
        shape=loaded.config.kv_shape(None),
        block_tokens=config.block_tokens,
        element="bfloat16",
    )
    blocks = _blocks(config, layout)
    try:
        cache = NativeCache(layout, blocks)
    except MemoryError as error:
        raise _no_memory(config, error) from error
    threads = config.threads or len(os.sched_getaffinity(0))
    model = NativeModel(found, loaded.model, cache, threads=threads)
    runner = NativeRunner(model, cache, tile_tokens=config.chunk_tokens)
    return Made(
        runner=runner,
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        fingerprint=loaded.fingerprint,
        root=f"{loaded.fingerprint}|{loaded.config.rope_words()}|{layout.element}",
        tiles="any",  # the bits depend neither on shapes nor on the number of threads
        kernels="native",
        dtype="int8",
        mla=None,
    )


def _check_wishes(config: EngineConfig, device: torch.device) -> None:
    """Raises `NoNativeError` for an option that only torch can serve."""
    speaks = {
        "kernels": config.kernels == "torch",
        "device": device.type != "cpu",
        "dtype": config.dtype != "auto",
        "kv_dtype": config.kv_dtype == "fp8",
        "tensor_parallel": config.tensor_parallel > 1,
    }
    for name, speaks_for_torch in speaks.items():
        if speaks_for_torch:
            raise NoNativeError(f"{name} is {getattr(config, name)}")


def _torch(config: EngineConfig, device: torch.device, on_fatal: Callable[[str], None]) -> Made:
    shard = lead(config, device) if config.tensor_parallel > 1 else None
    try:
        loaded, cache = _load(config, device, shard)
        if shard is not None:
            shard.await_loaded(on_fatal)
    except BaseException:
        if shard is not None:
            shard.end_others()
        raise
    runner = Runner(loaded.model, cache, tile_tokens=config.chunk_tokens)
    if shard is not None:
        shard.announce_shapes(runner.shapes)
    return Made(
        runner=runner,
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        fingerprint=loaded.fingerprint,
        root=_root(loaded, cache.layout),
        tiles=repr(runner.shapes),
        kernels="torch",
        dtype=str(cache.dtype).removeprefix("torch."),
        mla=loaded.model.mla,
    )


def load_part(config: EngineConfig, *, rank: int, meeting: str) -> tuple[Shard, Network, KvCache]:
    """What a rank other than the first holds. Raises as `make_service` does."""
    device = _device(config)
    shard = Shard(rank, config.tensor_parallel, device)
    shard.join(meeting)
    loaded, cache = _load(config, device, shard)
    shard.say_loaded()
    return shard, loaded.model, cache


def _device(config: EngineConfig) -> torch.device:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        message = "device: cuda was asked for, but torch sees no CUDA device"
        raise ConfigError(message)
    return choose_device(config.device)


def _load(
    config: EngineConfig, device: torch.device, shard: Shard | None
) -> tuple[LoadedModel[Network], KvCache]:
    dtype = choose_dtype(config.dtype, device)
    path = path_of(config.model)
    loaded = load(path, device=device, dtype=dtype, mla=config.mla, sharding=shard)
    return loaded, _cache(config, loaded, device=device, dtype=dtype)


def _root(loaded: LoadedModel[Network], layout: KvLayout) -> str:
    """All that a block's content depends on beside its tokens: what is below another root is not it."""
    rope = loaded.config.rope_words()
    sharding = loaded.model.sharding
    ranks = 1 if sharding is None else sharding.size  # sums of parts have other last digits
    return f"{loaded.fingerprint}|{rope}|{loaded.model.mla}|{layout.element}|{ranks}"


def kv_element(kv_dtype: str, dtype: torch.dtype) -> Element:
    """What `engine.kv_dtype` means beside a model of this dtype."""
    if kv_dtype == "auto":
        return "bfloat16" if dtype == torch.bfloat16 else "float32"
    return "float8" if kv_dtype == "fp8" else "bfloat16"


def _cache(
    config: EngineConfig, loaded: LoadedModel[Network], *, device: torch.device, dtype: torch.dtype
) -> KvCache:
    layout = KvLayout(
        layers=loaded.config.layers,
        shape=loaded.model.kv_shape,
        block_tokens=config.block_tokens,
        element=kv_element(config.kv_dtype, dtype),
    )
    blocks = _blocks(config, layout)
    try:
        return KvCache(layout, blocks, device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise _no_memory(config, error) from error


def _no_memory(config: EngineConfig, error: Exception) -> ConfigError:
    return ConfigError(f"kv_memory: {config.kv_memory} bytes cannot be had ({error})")


def _blocks(config: EngineConfig, layout: KvLayout) -> int:
    """How many blocks the pool has. Raises `ConfigError` if that is none."""
    blocks = layout.blocks_in(config.kv_memory)
    if not blocks:
        message = (
            f"kv_memory: {config.kv_memory} bytes hold no block of this model,"
            f" one takes {layout.block_bytes}"
        )
        raise ConfigError(message)
    return blocks


def path_of(model: str) -> Path:
    """A path is a path; anything else is the name of a model that can be fetched."""
    path = Path(model).expanduser()
    if path.exists() or "/" in model or model.endswith(".gguf"):
        return path
    from engine.weights.fetch import fetch  # noqa: PLC0415 - only who fetches needs its imports

    return fetch(model)
