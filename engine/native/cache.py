"""The pool of keys and values as the native kernels read it: bfloat16, block after block.

    block   |-- layer 0 --|-- layer 1 --| …        one run of memory: what a lower tier keeps of it
    layer   |-- keys (K, D, P) --|-- values (K, P, D) --|

Keys lie dimension by dimension, so that a vector holds neighbouring keys: their scores need no sums over
lanes. Values lie key by key for the same reason.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from engine.kv.layout import KvLayout


class NativeCache:
    """Blocks of all layers (N, L, 2 * K * D * P); starts as zeros. `dtype` is that of the logits."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, layout: KvLayout, blocks: int) -> None:
        assert layout.element == "bfloat16"
        self.layout = layout
        self.blocks = blocks
        elements = layout.block_bytes // 2
        self.data: NDArray[np.uint16] = np.zeros((blocks, elements), np.uint16)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def clear(self, block: int, offset: int) -> None:
        """Write zeros over one token in all layers: a NaN would spoil what reads beside it."""
        shape, tokens = self.layout.shape, self.layout.block_tokens
        layers = self.data[block].reshape(self.layout.layers, 2, -1)
        layers[:, 0].reshape(-1, shape.heads, shape.key_dim, tokens)[..., offset] = 0
        layers[:, 1].reshape(-1, shape.heads, tokens, shape.key_dim)[:, :, offset] = 0

    def export_block(self, block: int) -> memoryview:
        """A copy of a block, all layers: `layout.block_bytes` opaque bytes."""
        return memoryview(self.data[block].copy()).cast("B")

    def import_block(self, block: int, blob: bytes | bytearray | memoryview) -> None:
        """Put back what `export_block` of a pool of this layout gave."""
        assert len(blob) == self.layout.block_bytes, "a block of another layout"
        self.data[block] = np.frombuffer(blob, np.uint16)

    def __repr__(self) -> str:
        tokens = self.layout.block_tokens
        return f"NativeCache({self.blocks} blocks x {tokens} tokens, {self.nbytes / 2**20:.0f} MiB)"
