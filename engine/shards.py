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

import datetime as dt
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore  # torch.distributed shows it without a type
from torch.distributed.distributed_c10d import _set_pg_timeout  # it has no public name

from engine.config import EngineConfig, as_flags, parse_config
from engine.errors import ConfigError, StartError
from engine.kv.cache import KvCache
from engine.models.attention import Group, causal_mask
from engine.models.config import ModelConfig
from engine.models.exact import ExactShapes
from engine.models.network import Network, Tile
from engine.ranks import CANNOT_START, Ranks

_TILE, _CLEAR, _SHAPES = 1, 2, 3
_POLL_S: Final = 0.02
_PARENT_POLL_S: Final = 0.5
_FAILED: Final = 70
_WAIT_FOR_WORK: Final = dt.timedelta(days=3650)
_WAIT_FOR_START: Final = dt.timedelta(seconds=120)


class Shard:
    """This process's part: `rank` of `size`. It satisfies `engine.models.network.Sharding`."""

    def __init__(
        self, rank: int, size: int, device: torch.device, others: Ranks | None = None
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self._others = others  # rank 0's

    def join(self, meeting: str) -> None:
        """Wait until all ranks are here; `meeting` is a file that they share.

        Raises `RuntimeError` when one ended before it came, or nobody does for two minutes.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.rank)
        # they are all on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = FileStore(meeting, self.size)
        store.set_timeout(_WAIT_FOR_START)
        self._store = store
        self._await_all("here", limit_s=_WAIT_FOR_START.total_seconds())
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=_WAIT_FOR_START
        )
        dist.barrier()
        _set_pg_timeout(_WAIT_FOR_WORK)

    def say_loaded(self) -> None:
        """Another rank has its part of the model."""
        self._store.set(f"loaded-{self.rank}", "yes")

    def await_loaded(self, on_lost: Callable[[str], None]) -> None:
        """Rank 0 waits until all have their part; from then on `on_lost` hears, in a thread, who ends.

        Raises `ConfigError` when one cannot load its part.
        """
        assert self._others is not None
        try:
            self._await_all("loaded", limit_s=float("inf"))
        except RuntimeError as error:
            raise ConfigError(f"tensor_parallel: {error}") from error
        self._others.watch(on_lost)
        self._others.remove_folder()

    def end_others(self) -> None:
        """Rank 0 cannot go on."""
        if self._others is not None:
            self._others.end()

    def _await_all(self, word: str, *, limit_s: float) -> None:
        self._store.set(f"{word}-{self.rank}", "yes")
        latest_s = time.monotonic() + limit_s
        while not self._store.check([f"{word}-{rank}" for rank in range(self.size)]):
            lost = self._others.lost() if self._others is not None else None
            if lost is not None:
                raise RuntimeError(lost)
            if time.monotonic() > latest_s:
                message = f"not all of them within {limit_s:.0f} s"
                raise RuntimeError(message)
            time.sleep(_POLL_S)

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
    others = Ranks()
    meeting = str(others.folder / "meeting")
    here = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    shard = Shard(0, config.tensor_parallel, device, others)
    try:
        for rank in range(1, config.tensor_parallel):
            words = [sys.executable, "-P", "-m", "engine.shards", str(rank), meeting]
            others.start([*words, str(os.getpid()), *as_flags(config)], path=path)
        shard.join(meeting)
    except (RuntimeError, TimeoutError, OSError) as error:
        others.end()
        raise ConfigError(f"tensor_parallel: the other ranks did not come ({error})") from error
    except BaseException:
        others.end()
        raise
    return shard


def main(arguments: Sequence[str]) -> int:
    """A rank that follows: its number, where the ranks meet, rank 0's process, the engine's flags.

    0 when rank 0 has ended, 78 when this part cannot be loaded (one line says why), 70 for the rest.
    """
    from engine.kernels import load_part  # noqa: PLC0415 -- which imports this module

    rank, meeting, parent = int(arguments[0]), arguments[1], int(arguments[2])
    try:
        # without the environment: rank 0 has read it, and a flag may have set a default again
        config = parse_config(arguments[3:], {})
        shard, model, cache = load_part(config, rank=rank, meeting=meeting)
        shard.follow(model, cache)
    except StartError as error:
        sys.stderr.write(f"kvgate engine, rank {rank}: {error}\n")
        return CANNOT_START
    except Exception:  # noqa: BLE001 - a process's last words
        time.sleep(_PARENT_POLL_S)  # its connections end before its process does
        if os.getppid() == parent:
            sys.stderr.write(f"kvgate engine, rank {rank}: {traceback.format_exc()}")
            return _FAILED
    return 0


def _end_with(parent: int, meeting: str) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    shutil.rmtree(Path(meeting).parent, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 may have answers to finish
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(int(sys.argv[3]), sys.argv[2]), daemon=True).start()
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)
