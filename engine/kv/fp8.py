"""Rows of keys and values in eight bits: e4m3 numbers, one scale a run, the rope part untouched.

A row is quantised once, when it is written, and read back the same way by everybody: a block that is
reused holds the same bits for the one who wrote it and for the one who found it.

    | numbers, e4m3, a byte each | scales, bfloat16 | rope part, bfloat16 |
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.layout import KvLayout

_LARGEST = 448.0  # of e4m3 without infinities


def pack(rows: Tensor, layout: KvLayout) -> Tensor:
    """Rows (T, elements) to bytes (T, W). A row that is not finite gets a scale that is not."""
    numbers, tail = [], []
    at = 0
    for count, length in layout.shape.runs:
        run = rows[:, at : at + count * length].reshape(-1, count, length).float()
        at += count * length
        scale = (run.abs().amax(-1) / _LARGEST).to(torch.bfloat16)  # (T, count)
        divisor = scale.float().unsqueeze(-1)
        # a scale rounded down would put the largest number past the end of the range, which has no
        # infinity but a NaN; a run of zeros has no scale at all
        run = (run / divisor.where(divisor > 0, 1.0)).clamp(-_LARGEST, _LARGEST)
        numbers.append(run.to(torch.float8_e4m3fn).view(torch.uint8).flatten(1))
        tail.append(scale)
    if layout.quantised % 2:
        numbers.append(numbers[0].new_zeros(len(rows), 1))
    tail.append(rows[:, at:].to(torch.bfloat16))
    return torch.cat((*numbers, torch.cat(tail, dim=1).view(torch.uint8)), dim=1)


def unpack(rows: Tensor, layout: KvLayout, dtype: torch.dtype) -> Tensor:
    """Bytes (T, W) to rows (T, elements)."""
    numbers = rows[:, : layout.quantised].view(torch.float8_e4m3fn)
    tail = rows[:, -layout.tail_bytes :].view(torch.bfloat16)
    out = rows.new_empty((len(rows), layout.shape.elements), dtype=dtype)
    at = scale = 0
    for count, length in layout.shape.runs:
        stop = at + count * length
        run = numbers[:, at:stop].to(dtype).view(-1, count, length)
        scales = tail[:, scale : scale + count].to(dtype).unsqueeze(-1)
        torch.mul(run, scales, out=out[:, at:stop].view(-1, count, length))
        at, scale = stop, scale + count
    out[:, at:] = tail[:, scale:].to(dtype)
    return out


def scales_and_rope(rows: Tensor, layout: KvLayout) -> Tensor:
    """The bfloat16 part of bytes (…, W): not finite where the row is not."""
    return rows[..., -layout.tail_bytes :].contiguous().view(torch.bfloat16)
