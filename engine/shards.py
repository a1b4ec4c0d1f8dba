"""One model on several ranks: heads and MLP widths are divided, hidden rows are not.

Rank 0 is the engine: it schedules, samples and serves. The others are processes that it starts; each
holds its part of every layer and of the keys and values, and computes the tiles that rank 0 announces:

    column-wise   queries, keys, values, gates      each rank its heads, its part of the width
    row-wise      attention's and the MLP's output  partial sums, added up over the ranks
    everywhere    embedding, norms, router, head; the latent of absorbed attention, which has no heads

Sums are added in the order of the ranks, so that a row has the same bits whatever is beside it. gloo
carries them between processes on a CPU, nccl between GPUs. A rank ends when rank 0 has.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore  # torch.distributed shows it without a type

from engine.config import EngineConfig, as_flags, parse_config
from engine.errors import ConfigError, StartError
from engine.kv.cache import KvCache
from engine.models.attention import Group, causal_mask
from engine.models.config import ModelConfig
from engine.models.exact import ExactShapes
from engine.models.network import Network, Tile

_TILE, _CLEAR, _SHAPES = 1, 2, 3
_POLL_S: Final = 0.02
_WAIT_FOR_WORK: Final = dt.timedelta(days=3650)
_WAIT_FOR_START: Final = dt.timedelta(seconds=120)


class Shard:
    """This process's part: `rank` of `size`. It satisfies `engine.models.network.Sharding`."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def join(self, meeting: str, others: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """Wait until all ranks are here; `meeting` is a file that they share.

        Raises `RuntimeError` when one of `others` ended before it came, or nobody does for two minutes.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.rank)
        # they are all on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = FileStore(meeting, self.size)
        store.set_timeout(_WAIT_FOR_START)
        store.set(f"here-{self.rank}", "yes")
        latest_s = time.monotonic() + _WAIT_FOR_START.total_seconds()
        while not store.check([f"here-{rank}" for rank in range(self.size)]):
            if any(other.poll() is not None for other in others):
                message = "one of them ended at once"
                raise RuntimeError(message)
            if time.monotonic() > latest_s:
                message = f"not all of them within {_WAIT_FOR_START.total_seconds():.0f} s"
                raise RuntimeError(message)
            time.sleep(_POLL_S)
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=_WAIT_FOR_WORK
        )
        dist.barrier()  # everybody has met: the file is needed no more

    # -- which part ------------------------------------------------------------------------------

    def local(self, config: ModelConfig) -> ModelConfig:
        """The numbers of this rank's part. Raises `ConfigError` for what does not divide."""
        moe = config.moe
        widths = {"attention heads": config.heads, "key-value heads": config.kv_heads}
        widths["of MLP width"] = config.intermediate
        if moe is not None:
            widths["of the experts' width"] = moe.intermediate
            moe = replace(moe, intermediate=moe.intermediate // self.size)
        for what, width in widths.items():
            if width % self.size:
                raise ConfigError(f"tensor_parallel: {width} {what} do not divide by {self.size}")
        return replace(
            config,
            heads=config.heads // self.size,
            kv_heads=config.kv_heads // self.size,
            intermediate=config.intermediate // self.size,
            moe=moe,
        )

    def part(self, tensor: Tensor, dim: int) -> Tensor:
        """This rank's share of a tensor, cut along `dim`."""
        return tensor.chunk(self.size, dim)[self.rank].contiguous()

    def once(self, tensor: Tensor) -> Tensor:
        """What only one rank may add: zeros on the others."""
        return tensor if self.rank == 0 else torch.zeros_like(tensor)

    def added_up(self, x: Tensor) -> Tensor:
        """The sum of all ranks' parts, in the order of the ranks."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    # -- what to do ------------------------------------------------------------------------------

    def announce(self, tile: Tile) -> None:
        """Rank 0 says what is computed next; the others have just heard it."""
        if self.rank == 0:
            self._say(_TILE, _as_numbers(tile))

    def announce_clear(self, slots: Tensor) -> None:
        """Rank 0 says which slots are cleared."""
        if self.rank == 0:
            self._say(_CLEAR, slots)

    def announce_shapes(self, shapes: ExactShapes) -> None:
        """Rank 0 says to which counts rows are padded: its own measurement holds for all."""
        numbers = [shapes.query_rows, *shapes.row_counts]
        self._say(_SHAPES, torch.tensor(numbers, device=self.device))

    def _say(self, word: int, numbers: Tensor) -> None:
        head = torch.tensor([word, len(numbers)], device=self.device)
        dist.broadcast(head, 0)
        dist.broadcast(numbers, 0)

    def _hear(self) -> tuple[int, Tensor]:
        head = torch.zeros(2, dtype=torch.int64, device=self.device)
        dist.broadcast(head, 0)
        word, count = head.tolist()
        numbers = torch.zeros(count, dtype=torch.int64, device=self.device)
        dist.broadcast(numbers, 0)
        return word, numbers

    @torch.inference_mode()
    def follow(self, model: Network, cache: KvCache) -> None:
        """Do what rank 0 announces until it is gone, which raises `RuntimeError`."""
        query_rows = 1
        while True:
            word, numbers = self._hear()
            if word == _SHAPES:
                query_rows = int(numbers[0])
                model.use(tuple(numbers[1:].tolist()))
            elif word == _CLEAR:
                cache.clear(numbers)
            else:
                tile = _as_tile(numbers, model, cache, query_rows=query_rows)
                model.forward(tile, cache)


def _as_numbers(tile: Tile) -> Tensor:
    """| M | T | groups | tokens M | positions M | slots T | group … |, all int64."""
    device = tile.tokens.device

    def numbers(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    parts = [numbers(len(tile.tokens), tile.rows, len(tile.groups))]
    parts += [tile.tokens, tile.positions, tile.slots]
    for group in tile.groups:
        keys = group.mask.shape[-1]
        parts.append(numbers(group.start, group.stop, group.sequences, keys, len(group.tables)))
        parts.append(group.tables)
    return torch.cat(parts)


def _as_tile(numbers: Tensor, model: Network, cache: KvCache, *, query_rows: int) -> Tile:
    """What `_as_numbers` was given; the masks are made again."""
    at = 0

    def take(count: int) -> Tensor:
        nonlocal at
        at += count
        return numbers[at - count : at]

    count, rows, groups = take(3).tolist()
    tokens, positions, slots = take(count), take(count), take(rows)
    found = []
    for _ in range(groups):
        start, stop, sequences, keys, blocks = take(5).tolist()
        mask = causal_mask(
            positions[start:stop].view(sequences, -1),
            keys,
            groups=model.query_heads_per_kv_head,
            query_rows=query_rows,
            dtype=cache.dtype,
        )
        found.append(Group(start, stop, sequences, take(blocks), mask))
    return Tile(tokens, positions, slots, tuple(found))


def lead(config: EngineConfig, device: torch.device) -> Shard:
    """Start the other ranks and be rank 0. Raises `ConfigError` when they do not come."""
    if device.type == "cuda" and torch.cuda.device_count() < config.tensor_parallel:
        message = f"tensor_parallel: {config.tensor_parallel} GPUs were asked for, torch sees fewer"
        raise ConfigError(message)
    folder = Path(tempfile.mkdtemp(prefix="kvgate-ranks-"))
    meeting = str(folder / "meeting")
    here = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    others = []
    for rank in range(1, config.tensor_parallel):
        words = [sys.executable, "-P", "-m", "engine.shards", str(rank), meeting]
        # they end with rank 0, whose connections they watch, and are killed with its process group
        other = subprocess.Popen(  # noqa: S603 -- our own module
            [*words, *as_flags(config)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
        )
        others.append(other)
    shard = Shard(0, config.tensor_parallel, device)
    try:
        shard.join(meeting, others)
    except (RuntimeError, TimeoutError) as error:
        raise ConfigError(f"tensor_parallel: the other ranks did not come ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return shard


def main(arguments: Sequence[str]) -> int:
    """A rank that follows: its number, where the ranks meet, and the engine's flags."""
    from engine.loading import load_part  # noqa: PLC0415 -- which imports this module

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = parse_config(arguments[2:], os.environ)
    with contextlib.suppress(RuntimeError, StartError):  # rank 0 has ended; why, it says itself
        shard, model, cache = load_part(config, rank=int(arguments[0]), meeting=arguments[1])
        shard.follow(model, cache)
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
