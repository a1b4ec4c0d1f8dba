"""The pool of keys and values: one tensor, written by slot, read by block."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kv.layout import KvLayout


class KvCache:
    """Paged keys and values of all layers (L, N, P, 2, K, D).

    A *slot* is the place of one token: block * block_tokens + offset. Which slot belongs to whom is
    the scheduler's business. The pool starts as zeros: a slot that was never written is read under a
    mask, and must not hold a NaN.
    """

    def __init__(
        self, layout: KvLayout, blocks: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        assert dtype.itemsize == layout.itemsize, f"{dtype} has not {layout.itemsize} bytes"
        self.layout = layout
        self.blocks = blocks
        self.data = torch.zeros(layout.shape(blocks), device=device, dtype=dtype)
        self._by_layer = list(self.data.unbind(0))
        width = 2 * layout.kv_heads
        self._slots_by_layer = [
            layer.view(blocks * layout.block_tokens, width, layout.head_dim)
            for layer in self._by_layer
        ]

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Keep the rows keys_values (T, 2*K, D), keys first, at slots (T,)."""
        self._slots_by_layer[layer].index_copy_(0, slots, keys_values)

    def finite(self, slots: Tensor) -> Tensor:
        """Whether the keys and values at slots (T,) are numbers in every layer: (T,) of bool."""
        layout = self.layout
        rows = self.data.view(layout.layers, self.blocks * layout.block_tokens, -1)
        # a sum is not finite if one term is not, and costs far less than looking at each
        return rows.index_select(1, slots).sum(-1, dtype=torch.float32).isfinite().all(0)

    def clear(self, slots: Tensor) -> None:
        """Write zeros at slots (T,) of all layers: a masked NaN would still spoil what reads beside it."""
        for layer in self._slots_by_layer:
            layer.index_fill_(0, slots, 0)

    def read(self, layer: int, tables: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks, tables (S * blocks,): twice (S, K, tokens, D)."""
        layout = self.layout
        found = self._by_layer[layer].index_select(0, tables)  # (S*blocks, P, 2, K, D)
        found = found.view(sequences, -1, 2, layout.kv_heads, layout.head_dim)
        keys, values = found.unbind(2)  # (S, tokens, K, D)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def __repr__(self) -> str:
        layout = self.layout
        return (
            f"KvCache({self.blocks} blocks x {layout.block_tokens} tokens,"
            f" {self.nbytes / 2**20:.0f} MiB, {str(self.dtype).removeprefix('torch.')})"
        )
