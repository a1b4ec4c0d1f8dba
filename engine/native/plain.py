"""What the native products compute, in plain numpy: the twin for tests and for the check at the start.

Bit for bit: integer sums are exact, and each fused multiply-add is done in double precision and rounded
once (a product of two floats is exact in a double; so is rounding its sum, but for ties that were rounded
twice, which the inputs here do not have more often than once in 2**29).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

GROUP = 32
NOTHING = np.float32(1e-36)
"""A group of a row whose largest number is no larger is zeros: 127 / 1e-38 would be infinite."""
BLOCK_BYTES = {4: 20, 8: 34}
KINDS = {4: GGMLQuantizationType.Q4_1, 8: GGMLQuantizationType.Q8_0}
Floats = NDArray[np.float32]


def quantised_blocks(weight: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """A weight (outputs, inputs) as GGUF's Q4_1 or Q8_0 blocks (outputs, bytes)."""
    blocks: NDArray[np.uint8] = quants.quantize(np.ascontiguousarray(weight), KINDS[bits])
    return blocks


def dequantised(blocks: NDArray[np.uint8], bits: int) -> Floats:
    """What blocks (outputs, bytes) stand for, as floats (outputs, inputs)."""
    values: Floats = quants.dequantize(blocks, KINDS[bits])
    return values


def multiply(blocks: NDArray[np.uint8], bits: int, x: Floats) -> Floats:
    """x (M, inputs) times blocks (outputs, bytes): (M, outputs)."""
    codes, scales, sums = quantised_rows(x)  # (M, G, 32), (M, G), (M, G)
    weights, factors, least = unpacked(blocks, bits)  # (N, G, 32), (N, G), (N, G)
    y = np.zeros((len(x), len(blocks)), np.float32)
    for group in range(codes.shape[1]):
        dots = codes[:, group].astype(np.int64) @ weights[:, group].T.astype(np.int64)
        scale = scales[:, group, None] * factors[None, :, group]
        y = _fused(dots.astype(np.float32), scale, y)
        if bits == 4:
            y = _fused(least[None, :, group], sums[:, group, None], y)
    return y


def quantised_rows(x: Floats) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Rows (M, inputs) in 8 bits: codes (M, G, 32), scales (M, G), scale times sum of codes (M, G)."""
    groups = x.astype(np.float32).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=-1)
    some = largest > NOTHING
    by = np.float32(127.0) / np.where(some, largest, np.float32(np.inf))
    scales = np.where(some, largest / np.float32(127.0), np.float32(0.0))
    codes = np.rint(groups * by[..., None]).astype(np.int8)
    return codes, scales, scales * codes.sum(axis=-1, dtype=np.int64).astype(np.float32)


def unpacked(blocks: NDArray[np.uint8], bits: int) -> tuple[NDArray[Any], Floats, Floats]:
    """Codes (N, G, 32), scales (N, G) and minima (N, G) of blocks (N, bytes)."""
    parts = blocks.reshape(len(blocks), -1, BLOCK_BYTES[bits])
    halves = np.ascontiguousarray(parts[..., : 4 if bits == 4 else 2]).view(np.float16)
    scales = halves[..., 0].astype(np.float32)
    if bits == 8:
        return parts[..., 2:].view(np.int8), scales, np.zeros_like(scales)
    low, high = parts[..., 4:] & 15, parts[..., 4:] >> 4
    return np.concatenate((low, high), axis=-1), scales, halves[..., 1].astype(np.float32)


def _fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once."""
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    fused: Floats = exact.astype(np.float32)
    return fused
