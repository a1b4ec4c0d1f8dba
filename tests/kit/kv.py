"""Layouts of the Llama kind, for tests that only need blocks of some size."""

from __future__ import annotations

from engine.kv.layout import Element, KvLayout, KvShape


def layout_of(
    *, layers: int, heads: int, dim: int, block_tokens: int = 32, element: Element = "float32"
) -> KvLayout:
    """Keys and values of `heads` heads of `dim` elements each."""
    shape = KvShape(heads=heads, key_dim=dim, value_dim=dim)
    return KvLayout(layers=layers, shape=shape, block_tokens=block_tokens, element=element)
