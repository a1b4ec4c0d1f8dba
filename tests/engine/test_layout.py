"""How large blocks are."""

import pytest

from engine.kv.layout import KvLayout, KvShape
from tests.kit.kv import layout_of

LAYOUT = layout_of(layers=3, heads=2, dim=4, block_tokens=8)


def test_bytes_are_counted_as_they_are_held() -> None:
    assert LAYOUT.token_bytes == 3 * 2 * 2 * 4 * 4
    assert LAYOUT.block_bytes == 8 * LAYOUT.token_bytes
    assert LAYOUT.blocks_in(10 * LAYOUT.block_bytes + 1) == 10
    assert LAYOUT.pool_shape(6) == (3, 6, 8, 2 * 2 * 4)


def test_smollm2_takes_23040_bytes_a_token_in_bfloat16() -> None:
    layout = layout_of(layers=30, heads=3, dim=64, block_tokens=32, element="bfloat16")
    assert layout.token_bytes == 23_040


def test_fp8_takes_at_most_53_hundredths_of_bfloat16_where_heads_are_kept() -> None:
    for layers, heads, dim in ((30, 3, 64), (32, 8, 128)):
        half = layout_of(layers=layers, heads=heads, dim=dim, element="bfloat16").token_bytes
        assert layout_of(layers=layers, heads=heads, dim=dim, element="float8").token_bytes <= (
            0.53 * half
        )


@pytest.mark.parametrize(
    ("shape", "bfloat16", "float8"),
    [
        # DeepSeek-V3 absorbed: 512 bytes, 4 scales, and 64 numbers that stay bfloat16
        (KvShape(heads=1, key_dim=576, value_dim=512, latent=True), 1152, 512 + 8 + 128),
        (KvShape(heads=128, key_dim=192, value_dim=128), 81_920, 128 * (192 + 128 + 4)),
        (KvShape(heads=1, key_dim=40, value_dim=32, latent=True), 80, 32 + 2 + 16),
        (KvShape(heads=1, key_dim=3, value_dim=3), 12, 6 + 4),
        (KvShape(heads=1, key_dim=4, value_dim=3), 14, 8 + 4),
    ],
)
def test_rows_of_latents_and_heads(shape: KvShape, bfloat16: int, float8: int) -> None:
    def row_bytes(element: str) -> int:
        layout = KvLayout(layers=1, shape=shape, block_tokens=8, element=element)  # type: ignore[arg-type]  # of the two
        return layout.row_bytes

    assert (row_bytes("bfloat16"), row_bytes("float8")) == (bfloat16, float8)
