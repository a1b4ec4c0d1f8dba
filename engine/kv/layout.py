"""How large a block of keys and values is. Torch-free arithmetic.

The pool is one tensor, (L, N, P, W): all that a layer keeps of one token lies in one row, so that a token
is written by one copy and a block is one run of memory in each layer.

    heads   | keys K*D | values K*D' |
    latent  | latent C | rope R |                the values are the latent again: kept once

In FP8 a row is bytes: the numbers in e4m3, one bfloat16 scale for each run of them (a head's key, a
head's value, a group of the latent), and the rope part of a latent as it was, in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Element = Literal["float32", "bfloat16", "float8"]
ITEM_BYTES: dict[Element, int] = {"float32": 4, "bfloat16": 2, "float8": 1}
SCALE_BYTES = 2
LATENT_GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """What a layer keeps of one token: K heads with a key and a value each.

    latent  one head; its value is the first `value_dim` elements of its key, the rest is the rope part
    """

    heads: int
    key_dim: int
    value_dim: int
    latent: bool = False

    @property
    def elements(self) -> int:
        if self.latent:
            return self.key_dim
        return self.heads * (self.key_dim + self.value_dim)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """(how many, how long) the runs are that share a scale in FP8, in the order of the row."""
        if not self.latent:
            return ((self.heads, self.key_dim), (self.heads, self.value_dim))
        group = LATENT_GROUP if self.value_dim % LATENT_GROUP == 0 else self.value_dim
        return ((self.value_dim // group, group),)

    @property
    def rope_dim(self) -> int:
        """Elements that are never quantised, at the end of the row."""
        return self.key_dim - self.value_dim if self.latent else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The shape of all cached keys and values, and what an element is stored as."""

    layers: int
    shape: KvShape
    block_tokens: int
    element: Element

    @property
    def quantised(self) -> int:
        """Elements of a row that FP8 stores in one byte each."""
        return sum(count * length for count, length in self.shape.runs)

    @property
    def scales(self) -> int:
        """Scales of a row in FP8."""
        return sum(count for count, _ in self.shape.runs)

    @property
    def row_bytes(self) -> int:
        """One token in one layer. An FP8 row is padded to whole bfloat16 numbers."""
        if self.element != "float8":
            return self.shape.elements * ITEM_BYTES[self.element]
        return self.quantised + self.quantised % 2 + self.tail_bytes

    @property
    def tail_bytes(self) -> int:
        """Of an FP8 row: what is in bfloat16, scales and rope part."""
        return self.scales * SCALE_BYTES + self.shape.rope_dim * ITEM_BYTES["bfloat16"]

    @property
    def width(self) -> int:
        """Elements of the tensor in a row: numbers, or bytes in FP8."""
        return self.row_bytes if self.element == "float8" else self.shape.elements

    @property
    def token_bytes(self) -> int:
        return self.layers * self.row_bytes

    @property
    def block_bytes(self) -> int:
        return self.token_bytes * self.block_tokens

    def blocks_in(self, memory_bytes: int) -> int:
        """How many whole blocks fit into so much memory."""
        return memory_bytes // self.block_bytes

    def pool_shape(self, blocks: int) -> tuple[int, int, int, int]:
        """(L, N, P, W) of a pool of so many blocks."""
        return (self.layers, blocks, self.block_tokens, self.width)
