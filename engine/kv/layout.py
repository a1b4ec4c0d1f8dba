"""How large a block of keys and values is. Torch-free arithmetic.

The pool is one tensor, (L, N, P, 2, K, D): a layer's keys and values of one token lie side by side, so
that a token is written by one copy and a block is one run of memory in each layer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The shape of cached keys and values; `itemsize` is bytes an element."""

    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    itemsize: int

    @property
    def token_bytes(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * self.itemsize

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_tokens

    def blocks_in(self, memory_bytes: int) -> int:
        """How many whole blocks fit into so much memory."""
        return memory_bytes // self.block_bytes

    def shape(self, blocks: int) -> tuple[int, int, int, int, int, int]:
        """(L, N, P, 2, K, D) of a pool of so many blocks."""
        return (self.layers, blocks, self.block_tokens, 2, self.kv_heads, self.head_dim)
