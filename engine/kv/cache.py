"""The pool of keys and values: one tensor, written by slot, read by block."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from engine.kv import fp8
from engine.kv.layout import Element, KvLayout

_STORED: Final[dict[Element, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float8": torch.uint8,
}


class KvCache:
    """Paged keys and values of all layers (L, N, P, W); `dtype` is what they are computed in.

    A *slot* is the place of one token: block * block_tokens + offset. Which slot belongs to whom is
    the scheduler's business. The pool starts as zeros: a slot that was never written is read under a
    mask, and must not hold a NaN.
    """

    def __init__(
        self, layout: KvLayout, blocks: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layout = layout
        self.blocks = blocks
        self.dtype = dtype
        stored = _STORED[layout.element]
        self.data = torch.zeros(layout.pool_shape(blocks), device=device, dtype=stored)
        self._by_layer = list(self.data.unbind(0))
        self._slots_by_layer = [layer.flatten(0, 1) for layer in self._by_layer]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def write(self, layer: int, slots: Tensor, rows: Tensor) -> None:
        """Keep rows (T, elements), each as `KvLayout` draws it, at slots (T,)."""
        stored = self.data.dtype
        if stored == torch.uint8:
            rows = fp8.pack(rows, self.layout)
        self._slots_by_layer[layer].index_copy_(0, slots, rows.to(stored))

    def finite(self, slots: Tensor) -> Tensor:
        """Whether the keys and values at slots (T,) are numbers in every layer: (T,) of bool."""
        layout = self.layout
        rows = self.data.view(layout.layers, self.blocks * layout.block_tokens, -1)
        rows = rows.index_select(1, slots)
        if layout.element == "float8":
            rows = fp8.scales_and_rope(rows, layout)
        # a sum is not finite if one term is not, and costs far less than looking at each
        return rows.sum(-1, dtype=torch.float32).isfinite().all(0)

    def clear(self, slots: Tensor) -> None:
        """Write zeros at slots (T,) of all layers: a masked NaN would still spoil what reads beside it."""
        for layer in self._slots_by_layer:
            layer.index_fill_(0, slots, 0)

    def read(self, layer: int, tables: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys (S, K, tokens, D) and values (S, K, tokens, D') of whole blocks, tables (S * blocks,).

        Of a latent, keys and values are one tensor: the values are its first `value_dim` elements.
        """
        shape = self.layout.shape
        found = self._by_layer[layer].index_select(0, tables)  # (S*blocks, P, W)
        if self.layout.element == "float8":
            found = fp8.unpack(found.flatten(0, 1), self.layout, self.dtype)
        found = found.to(self.dtype).view(sequences, -1, shape.elements)  # (S, tokens, elements)
        if shape.latent:
            latent = found.unsqueeze(1)
            return latent, latent
        split = shape.heads * shape.key_dim
        keys = found[..., :split].view(sequences, -1, shape.heads, shape.key_dim)
        values = found[..., split:].view(sequences, -1, shape.heads, shape.value_dim)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def export_block(self, block: int) -> memoryview:
        """A copy of a block, all layers: `layout.block_bytes` opaque bytes."""
        whole = self.data[:, block].to("cpu", copy=True, memory_format=torch.contiguous_format)
        return whole.view(torch.uint8).flatten().numpy().data  # (L * P * W bytes,)

    def import_block(self, block: int, blob: bytes | bytearray | memoryview) -> None:
        """Put back what `export_block` of a pool of this layout gave."""
        assert len(blob) == self.layout.block_bytes, "a block of another layout"
        if isinstance(blob, bytes):  # torch wants what it could write to
            blob = bytearray(blob)
        target = self.data[:, block]  # (L, P, W)
        target.copy_(torch.frombuffer(blob, dtype=self.data.dtype).view(target.shape))

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"KvCache({self.blocks} blocks x {layout.block_tokens} tokens,"
            f" {self.nbytes / 2**20:.0f} MiB, {layout.element})"
        )
