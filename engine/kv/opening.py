"""From options to tiers: the files, the threads, and what is refused by name.

There is a warm tier where the pool is on a device of its own. On a CPU pool and host memory are one thing:
`kv_memory` is its size, `kv_host_memory` adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from engine.errors import ConfigError
from engine.kv.ascent import BlockStore
from engine.kv.disk import BlockFile, Geometry
from engine.kv.prefix import PrefixIndex
from engine.kv.stock import Disk, Memory
from engine.kv.tiers import Tiers
from engine.request import Tier

QUEUE_BYTES: Final = 48 << 20
"""Of blocks that wait to be written; what is evicted beyond that is lost."""


def open_tiers(
    index: PrefixIndex,
    store: BlockStore,
    *,
    fingerprint: bytes,
    block_bytes: int,
    warm_bytes: int,
    disk_path: str | None,
    disk_bytes: int,
    clock: Callable[[], float],
    wall: Callable[[], float],
) -> Tiers:
    """The tiers below a pool; none for `warm_bytes` 0 and no path. Raises `ConfigError`."""
    below: tuple[Tier, ...] = () if disk_path is None else ("cold",)
    warm = None
    if warm_bytes >= block_bytes:
        warm = Memory(warm_bytes // block_bytes, fingerprint=fingerprint, tiers_below=below)
    reader = ThreadPoolExecutor(1, "kv-read")
    writer = ThreadPoolExecutor(1, "kv-write")
    cold = None
    if disk_path is not None:
        geometry = Geometry(fingerprint, index.block_tokens, block_bytes)
        cold = _disk(Path(disk_path).expanduser(), geometry, disk_bytes, writer, now=wall())
    for thread in (reader, writer) if warm or cold else ():
        # begun here and not by the engine's thread, whose core it would inherit (`NativeRunner.begin`)
        thread.submit(int).result()
    return Tiers(
        index,
        store,
        fingerprint=fingerprint,
        block_bytes=block_bytes,
        clock=clock,
        wall=wall,
        warm=warm,
        cold=cold,
        read=reader.submit,
        threads=(reader, writer),
    )


def _disk(
    folder: Path, geometry: Geometry, disk_bytes: int, writer: ThreadPoolExecutor, *, now: float
) -> Disk:
    if disk_bytes < geometry.slot_bytes * 2:
        message = (
            f"kv_disk.max: {disk_bytes} bytes hold hardly a block of this model,"
            f" one takes {geometry.slot_bytes}"
        )
        raise ConfigError(message)
    try:
        file = BlockFile(folder, geometry, max_bytes=disk_bytes)
        queue_blocks = max(4, QUEUE_BYTES // geometry.block_bytes)
        return Disk(file, run=writer.submit, queue_blocks=queue_blocks, now=now)
    except OSError as error:
        message = f"kv_disk.path: {str(folder)!r} cannot be used ({error.strerror or error})"
        raise ConfigError(message) from error
