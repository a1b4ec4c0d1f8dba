"""Rows of keys and values in eight bits: e4m3 numbers, one scale a run, the rope part untouched.

A row is quantised once, when it is written, and read back the same way by everybody: a block that is
reused holds the same bits for the one who wrote it and for the one who found it.

    | numbers, e4m3, a byte each | scales, bfloat16 | rope part, bfloat16 |

torch's own conversions go number by number on a CPU. These shift bits, as e4m3 is a beginning of float16
and of float32 with another bias of the exponent: the same bits, a hundred times as fast
(`tests/engine/test_fp8.py` compares all of them).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from engine.kv.layout import KvLayout

_LARGEST: Final = 448.0  # of e4m3 without infinities
_FROM_FLOAT32: Final = 2.0**-120  # exponent bias 7 in place of 127
_TO_FLOAT16: Final = 2.0**8  # exponent bias 15 in place of 7
_BELOW: Final = 20  # bits of a float32 that e4m3 has no room for
_HALF: Final = (1 << (_BELOW - 1)) - 1


def encode(x: Tensor) -> Tensor:
    """Numbers of at most 448 in fp32 to e4m3 (uint8), to the nearest, ties to even."""
    bits = (x * _FROM_FLOAT32).view(torch.int32)
    size = bits & 0x7FFFFFFF
    size = (size + _HALF + ((size >> _BELOW) & 1)) >> _BELOW
    return (size | ((bits >> 24) & 0x80)).to(torch.uint8)


def decode(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 (uint8) to 1/256 of the numbers: the scale takes the rest of the bias."""
    bits = numbers.view(torch.int8).to(torch.int16)  # the sign goes all the way up
    return (bits.bitwise_left_shift_(7).bitwise_and_(~0x4000)).view(torch.float16).to(dtype)


def pack(rows: Tensor, layout: KvLayout) -> Tensor:
    """Rows (T, elements) to bytes (T, W). A row that is not finite gets a scale that is not."""
    numbers, tail = [], []
    at = 0
    for count, length in layout.shape.runs:
        run = rows[:, at : at + count * length].reshape(-1, count, length).float()
        at += count * length
        scale = (run.abs().amax(-1) / _LARGEST).to(torch.bfloat16)  # (T, count)
        divisor = scale.float().unsqueeze(-1)
        # a scale that was rounded down would put the largest number past the end of the range; a run of
        # zeros has no scale at all
        run = (run / divisor.where(divisor > 0, 1.0)).clamp(-_LARGEST, _LARGEST)
        numbers.append(encode(run).flatten(1))
        tail.append(scale)
    if layout.quantised % 2:
        numbers.append(numbers[0].new_zeros(len(rows), 1))
    tail.append(rows[:, at:].to(torch.bfloat16))
    return torch.cat((*numbers, torch.cat(tail, dim=1).view(torch.uint8)), dim=1)


def unpack(rows: Tensor, layout: KvLayout, dtype: torch.dtype) -> Tensor:
    """Bytes (T, W) to rows (T, elements)."""
    numbers = decode(rows[:, : layout.quantised], dtype)
    tail = rows[:, -layout.tail_bytes :].view(torch.bfloat16).to(dtype)
    out = rows.new_empty((len(rows), layout.shape.elements), dtype=dtype)
    at = scale = 0
    for count, length in layout.shape.runs:
        stop = at + count * length
        run = numbers[:, at:stop].view(-1, count, length)
        scales = (tail[:, scale : scale + count] * _TO_FLOAT16).unsqueeze(-1)
        torch.mul(run, scales, out=out[:, at:stop].view(-1, count, length))
        at, scale = stop, scale + count
    out[:, at:] = tail[:, scale:]
    return out


def scales_and_rope(rows: Tensor, layout: KvLayout) -> Tensor:
    """The bfloat16 part of bytes (…, W): not finite where the row is not."""
    return rows[..., -layout.tail_bytes :].contiguous().view(torch.bfloat16)
