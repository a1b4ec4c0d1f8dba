"""From options to a service: the one place where the model's side and the serving side meet.

Imports torch; `engine.__main__` imports it late, so that a bad option is answered at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.fingerprint import block_fingerprint
from engine.kv.blocks import BlockPool
from engine.kv.cache import KvCache
from engine.kv.layout import Element, KvLayout
from engine.kv.opening import open_tiers
from engine.kv.prefix import PrefixIndex
from engine.kv.tiers import Tiers
from engine.models.network import Network
from engine.runner import Runner
from engine.sampler import Sampler
from engine.scheduler import Limits, Scheduler
from engine.service import Service
from engine.shards import Shard, lead
from engine.weights.load import LoadedModel, choose_device, choose_dtype, load

_log = logging.getLogger("engine")


def make_service(
    config: EngineConfig,
    *,
    wall_clock: Callable[[], float],
    on_fatal: Callable[[str], None],
) -> Service:
    """Load the model and build everything around it. The engine's thread is not started yet.

    Raises `ModelLoadError` and `ConfigError`, each with one readable line.
    """
    began = time.monotonic()
    device = _device(config)
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
    fingerprint = block_fingerprint(_root(loaded, cache.layout), cache, tiles=repr(runner.shapes))
    index = PrefixIndex(
        BlockPool(cache.blocks),
        block_tokens=config.block_tokens,
        fingerprint=fingerprint,
        block_bytes=cache.layout.block_bytes,
        clock=wall_clock,
    )
    limits = Limits(
        chunk_tokens=runner.tile_tokens,
        max_sequences=config.max_sequences,
        max_model_len=min(config.max_model_len, loaded.config.context_tokens),
        prefix_cache=config.prefix_cache,
        exact_decode=runner.exact,
        speculate_tokens=config.speculate_tokens,
        row_cost=runner.row_cost,
    )
    tiers = _tiers(config, index, cache, fingerprint=fingerprint, wall_clock=wall_clock)
    scheduler = Scheduler(index, limits, end_tokens=loaded.tokenizer.end_tokens, tiers=tiers)
    engine = Engine(
        scheduler,
        runner,
        Sampler(),
        max_waiting=config.max_waiting,
        on_fatal=on_fatal,
        sharded=shard is not None,
    )
    _log.info("loaded %s in %.1f s: %r", config.model, time.monotonic() - began, runner)
    return Service(
        engine,
        loaded.tokenizer,
        model=config.served_name or _name_of(config.model),
        also_named=[config.model],
        fingerprint=loaded.fingerprint,
        wall_clock=wall_clock,
        vocabulary=loaded.config.vocab,
        facts={
            "device": device.type,
            "dtype": str(cache.dtype).removeprefix("torch."),
            "kv_bytes": cache.nbytes,
            "kv_dtype": cache.layout.element,
            "kv_token_bytes": cache.layout.token_bytes,
            "mla": loaded.model.mla,
            "tensor_parallel": config.tensor_parallel,
            # heads are divided over the ranks; a latent has none, so each rank keeps all of it
            "kv_replicated": config.tensor_parallel > 1 and cache.layout.shape.latent,
            "exact_decode": runner.exact,
            "prefix_cache": config.prefix_cache,
        },
    )


def _tiers(
    config: EngineConfig,
    index: PrefixIndex,
    cache: KvCache,
    *,
    fingerprint: bytes,
    wall_clock: Callable[[], float],
) -> Tiers:
    """What is below the pool, as far as it was asked for and can be had."""
    alone = config.tensor_parallel == 1
    if not alone and config.kv_disk_path is not None:
        message = (
            "kv_disk.path: leave it at null with tensor_parallel, each rank has a part of a block"
        )
        raise ConfigError(message)
    device_of_its_own = cache.device.type != "cpu"
    return open_tiers(
        index,
        cache,
        fingerprint=fingerprint,
        block_bytes=cache.layout.block_bytes,
        warm_bytes=config.kv_host_memory if device_of_its_own and alone else 0,
        disk_path=config.kv_disk_path if config.prefix_cache else None,
        disk_bytes=config.kv_disk_max,
        clock=time.monotonic,
        wall=wall_clock,
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
) -> tuple[LoadedModel, KvCache]:
    dtype = choose_dtype(config.dtype, device)
    path = _path_of(config.model)
    loaded = load(path, device=device, dtype=dtype, mla=config.mla, sharding=shard)
    return loaded, _cache(config, loaded, device=device, dtype=dtype)


def _root(loaded: LoadedModel, layout: KvLayout) -> str:
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
    config: EngineConfig, loaded: LoadedModel, *, device: torch.device, dtype: torch.dtype
) -> KvCache:
    layout = KvLayout(
        layers=loaded.config.layers,
        shape=loaded.model.kv_shape,
        block_tokens=config.block_tokens,
        element=kv_element(config.kv_dtype, dtype),
    )
    blocks = layout.blocks_in(config.kv_memory)
    if not blocks:
        message = (
            f"kv_memory: {config.kv_memory} bytes hold no block of this model,"
            f" one takes {layout.block_bytes}"
        )
        raise ConfigError(message)
    try:
        return KvCache(layout, blocks, device=device, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        message = f"kv_memory: {config.kv_memory} bytes cannot be had ({error})"
        raise ConfigError(message) from error


def _path_of(model: str) -> Path:
    """A path is a path; anything else is the name of a model that can be fetched."""
    path = Path(model).expanduser()
    if path.exists() or "/" in model or model.endswith(".gguf"):
        return path
    from engine.weights.fetch import fetch  # noqa: PLC0415 - only who fetches needs its imports

    return fetch(model)


def _name_of(model: str) -> str:
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        return path.stem
    return path.name or model
