"""From options to a service: the one place where the model's side and the serving side meet.

Imports torch; `engine.__main__` imports it late, so that a bad option is answered at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ConfigError
from engine.fingerprint import block_fingerprint
from engine.kernels import Pool, make
from engine.kv.blocks import BlockPool
from engine.kv.opening import open_tiers
from engine.kv.prefix import PrefixIndex
from engine.kv.tiers import Tiers
from engine.sampler import Sampler
from engine.scheduler import Limits, Scheduler
from engine.service import Service
from engine.verify import Verifier, Witness

_log = logging.getLogger("engine")


def make_service(
    config: EngineConfig,
    *,
    wall_clock: Callable[[], float],
    on_fatal: Callable[[str], None],
    draw: Callable[[], float] = lambda: 1.0,
) -> Service:
    """Load the model and build everything around it. The engine's thread is not started yet.

    `draw` is chance in [0, 1). Raises `ModelLoadError` and `ConfigError`, each with one readable line.
    """
    began = time.monotonic()
    made = make(config, on_fatal=on_fatal)
    runner, cache = made.runner, made.runner.cache
    fingerprint = block_fingerprint(made.root, cache, tiles=made.tiles)
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
        max_model_len=min(config.max_model_len, made.config.context_tokens),
        prefix_cache=config.prefix_cache,
        exact_decode=runner.exact,
        speculate_tokens=config.speculate_tokens,
        row_cost=runner.row_cost,
    )
    tiers = _tiers(config, index, cache, fingerprint=fingerprint, wall_clock=wall_clock)
    scheduler = Scheduler(index, limits, end_tokens=made.tokenizer.end_tokens, tiers=tiers)
    engine = Engine(
        scheduler,
        runner,
        Sampler(),
        max_waiting=config.max_waiting,
        on_fatal=on_fatal,
        on_thread=runner.begin,
        sharded=config.tensor_parallel > 1,
    )
    witness = Witness(cache.export_block, _logits_row, block_tokens=config.block_tokens)
    verifier = Verifier(engine, witness, exact=runner.exact, share=config.verify_share, draw=draw)
    _log.info("loaded %s in %.1f s: %r", config.model, time.monotonic() - began, runner)
    return Service(
        engine,
        made.tokenizer,
        model=config.served_name or _name_of(config.model),
        also_named=[config.model],
        fingerprint=made.fingerprint,
        wall_clock=wall_clock,
        vocabulary=made.config.vocab,
        facts={
            "device": cache.device.type,
            "kernels": made.kernels,
            "dtype": made.dtype,
            "kv_bytes": cache.nbytes,
            "kv_dtype": cache.layout.element,
            "kv_token_bytes": cache.layout.token_bytes,
            "mla": made.mla,
            "tensor_parallel": config.tensor_parallel,
            # heads are divided over the ranks; a latent has none, so each rank keeps all of it
            "kv_replicated": config.tensor_parallel > 1 and cache.layout.shape.latent,
            "exact_decode": runner.exact,
            "prefix_cache": config.prefix_cache,
        },
        verifier=verifier,
    )


def _logits_row(logits: Any, row: int) -> bytes:
    found: bytes = logits[row].cpu().numpy().tobytes()
    return found


def _tiers(
    config: EngineConfig,
    index: PrefixIndex,
    cache: Pool,
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


def _name_of(model: str) -> str:
    path = Path(model).expanduser()
    if model.endswith(".gguf"):
        return path.stem
    return path.name or model
