"""What a block's bytes depend on beside its tokens: whose blocks may be read back by whom.

A block that comes from disk was computed by another process, perhaps yesterday, perhaps elsewhere. It has
the bits that would be computed here only if everything is equal that can change a bit: the model and how
its weights are stored, rope, what is computed and kept in which dtype, the shapes of tiles, the number of
threads, the processor and the libraries' versions, and the source of the rooms that compute. All of it is
one fingerprint; it is in the root of every key, in the file's head and in every block's header.

Rather once too often than once too seldom: a comment changed in a kernel begins the disk anew.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import torch

from engine.kv.blob import fingerprint_of
from engine.kv.layout import KvLayout

_ENGINE: Final = Path(__file__).parent
_COMPUTING: Final = ("models", "weights", "kv", "native", "batch.py", "kernels.py", "runner.py")
_SOURCES: Final = frozenset({".py", ".c", ".h", ".cpp"})


class Kept(Protocol):
    """A pool, as far as its bits go."""

    layout: KvLayout

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


def block_fingerprint(root: str, cache: Kept, *, tiles: str) -> bytes:
    """32 bytes; `root` names model, rope and attention, `tiles` the shapes that arithmetic runs in."""
    return fingerprint_of(
        [
            root,
            repr(cache.layout),
            str(cache.dtype),
            tiles,
            cache.device.type,
            _accelerator(cache.device),
            _processor(),
            torch.backends.cpu.get_cpu_capability(),
            torch.__version__,
            str(torch.get_num_threads()),
            code_version(),
        ]
    )


@cache
def code_version() -> str:
    """A digest of the source that computes keys, values and what they are made of."""
    return digest_of(_sources())


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Of names and contents, in the order they come."""
    digest = hashlib.blake2b(digest_size=16)
    for name, content in files:
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources() -> Iterable[tuple[str, bytes]]:
    for name in _COMPUTING:
        room = _ENGINE / name
        files = [room] if room.is_file() else sorted(room.rglob("*"))
        for file in files:
            if file.suffix in _SOURCES and file.is_file():
                yield file.relative_to(_ENGINE).as_posix(), file.read_bytes()


def _processor() -> str:
    """Make and instruction sets: the same library takes other kernels on another processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in reversed(lines)}
    return f"{platform.machine()} {told.get('model name', '')} {told.get('flags', '')}"


def _accelerator(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f"{torch.cuda.get_device_name(device)} {torch.version.cuda}"
