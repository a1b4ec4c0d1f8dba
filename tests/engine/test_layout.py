"""How large blocks are."""

from engine.kv.layout import KvLayout

LAYOUT = KvLayout(layers=3, kv_heads=2, head_dim=4, block_tokens=8, itemsize=4)


def test_bytes_are_counted_as_they_are_held() -> None:
    assert LAYOUT.token_bytes == 3 * 2 * 2 * 4 * 4
    assert LAYOUT.block_bytes == 8 * LAYOUT.token_bytes
    assert LAYOUT.blocks_in(10 * LAYOUT.block_bytes + 1) == 10
    assert LAYOUT.shape(6) == (3, 6, 8, 2, 2, 4)


def test_smollm2_takes_23040_bytes_a_token_in_bfloat16() -> None:
    layout = KvLayout(layers=30, kv_heads=3, head_dim=64, block_tokens=32, itemsize=2)
    assert layout.token_bytes == 23_040
