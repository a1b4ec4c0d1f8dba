"""Which tensors of a file go into the native model as they are, and which are brought into 8 bits.

Q4_1, Q8_0     as the file has them
Q4_0           as Q4_1 with the minimum -8 scales: the same numbers
anything else  as Q8_0 (groups of 32, the largest is 127): bfloat16 and float32 checkpoints
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from engine.errors import ModelLoadError
from engine.native.library import CMatrix, Library
from engine.native.plain import BLOCK_BYTES, GROUP, quantised_blocks
from engine.weights.build import Source, checked_shape, checked_shapes

_HUGE_BYTES = 2 << 20
_LANE_BYTES = 64
_KINDS = {
    GGMLQuantizationType.Q4_1: 4,
    GGMLQuantizationType.Q4_0: 4,
    GGMLQuantizationType.Q8_0: 8,
}


class Arena:
    """One run of memory for all matrices, in large pages where the system has them."""

    def __init__(self, size_bytes: int) -> None:
        self._map = mmap.mmap(-1, size_bytes + _HUGE_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel that has none: then in small ones
                self._map.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self._map, np.uint8)
        start = -whole.ctypes.data % _HUGE_BYTES
        self._free = whole[start : start + size_bytes]

    def take(self, size_bytes: int) -> NDArray[np.uint8]:
        """So many bytes, zeros, at the start of a cache line."""
        taken = self._free[:size_bytes]
        self._free = self._free[-(-size_bytes // _LANE_BYTES) * _LANE_BYTES :]
        return taken


class Packer:
    """Puts a source's matrices into an arena. Raises `ModelLoadError` if its names are others."""

    def __init__(self, library: Library, source: Source) -> None:
        self._library = library
        self._source = source
        self._shapes = checked_shapes(source)

    def blocks(self, *names: str) -> tuple[NDArray[np.uint8], int]:
        """Blocks of several matrices, one under the other, and their bits. Raises `ModelLoadError`."""
        parts = [self._stored(f"{name}.weight") for name in names]
        if None in parts or len({part[1] for part in parts if part is not None}) > 1:
            parts = [self._converted(f"{name}.weight") for name in names]
        found = [part for part in parts if part is not None]
        return np.ascontiguousarray(np.concatenate([blocks for blocks, _ in found])), found[0][1]

    def pack(self, arena: Arena, blocks: NDArray[np.uint8], bits: int) -> CMatrix:
        """Blocks (outputs, bytes) into tiles."""
        outputs, inputs = len(blocks), blocks.shape[1] // BLOCK_BYTES[bits] * GROUP
        tiles = arena.take(self._library.packed_bytes(outputs, inputs, bits))
        return self._library.pack(blocks, outputs, inputs, bits, tiles)

    def size_bytes(self, blocks: NDArray[np.uint8], bits: int) -> int:
        """How much of an arena such blocks take."""
        inputs = blocks.shape[1] // BLOCK_BYTES[bits] * GROUP
        size = self._library.packed_bytes(len(blocks), inputs, bits)
        return -(-size // _LANE_BYTES) * _LANE_BYTES

    def vector(self, name: str) -> NDArray[np.float32]:
        """A tensor as fp32. Raises `ModelLoadError`."""
        found = self._source.tensor(name)
        checked_shape(self._source, name, tuple(found.shape), self._shapes)
        values: NDArray[np.float32] = found.float().contiguous().numpy().copy()
        self._check_finite(name, values)
        return values

    def _stored(self, name: str) -> tuple[NDArray[np.uint8], int] | None:
        found = self._source.stored(name)
        if found is None or found[0] not in _KINDS:
            return None
        kind, blocks = found
        if kind == GGMLQuantizationType.Q4_0:
            blocks = _with_minimum(blocks)
        bits = _KINDS[GGMLQuantizationType(kind)]
        inputs = blocks.shape[1] // BLOCK_BYTES[bits] * GROUP
        checked_shape(self._source, name, (len(blocks), inputs), self._shapes)
        self._check_finite(name, _scales(blocks, bits))
        return blocks, bits

    def _converted(self, name: str) -> tuple[NDArray[np.uint8], int]:
        with np.errstate(over="ignore"):
            blocks = quantised_blocks(self.vector(name), 8)
        self._check_finite(name, _scales(blocks, 8))
        return blocks, 8

    def _check_finite(self, name: str, values: NDArray[Any]) -> None:
        """What is no number would spoil every row, or be taken for one. Raises `ModelLoadError`."""
        if not np.isfinite(values).all():
            message = f"{self._source.path}: tensor {name!r} holds numbers that are not finite"
            raise ModelLoadError(message)


def _with_minimum(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Q4_0 (scale, codes less 8) as Q4_1 (scale, minimum, codes)."""
    parts = blocks.reshape(len(blocks), -1, 18)
    scales = np.ascontiguousarray(parts[..., :2]).view(np.float16)
    with np.errstate(over="ignore"):  # what is infinite is refused
        least = (scales * np.float16(-8)).view(np.uint8)
    return np.concatenate((parts[..., :2], least, parts[..., 2:]), axis=-1).reshape(len(blocks), -1)


def _scales(blocks: NDArray[np.uint8], bits: int) -> NDArray[np.float16]:
    """Scales of blocks, and minima where they have some."""
    parts = blocks.reshape(len(blocks), -1, BLOCK_BYTES[bits])
    return np.ascontiguousarray(parts[..., : 4 if bits == 4 else 2]).view(np.float16)
