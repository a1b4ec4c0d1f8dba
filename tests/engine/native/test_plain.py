"""The plain twin against ordinary floats: it is what the C code is held to."""

import numpy as np
import pytest

from engine.native.plain import dequantised, multiply, quantised_blocks, quantised_rows, unpacked

DICE = np.random.default_rng(3)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_unpack_to_what_the_library_of_ggml_says(bits: int) -> None:
    blocks = quantised_blocks(DICE.standard_normal((5, 96), np.float32), bits)
    codes, scales, least = unpacked(blocks, bits)
    assert codes.shape == (5, 3, 32)
    values = codes * scales[..., None] + least[..., None]
    np.testing.assert_allclose(
        values.reshape(5, 96), dequantised(blocks, bits), rtol=1e-6, atol=1e-7
    )


def test_rows_keep_seven_bits_and_a_sign_of_the_largest_of_their_group() -> None:
    x = DICE.standard_normal((7, 64), np.float32)
    codes, scales, sums = quantised_rows(x)
    assert codes.shape == (7, 2, 32)
    assert (np.abs(codes).max(axis=-1) == 127).all()
    apart = codes * scales[..., None] - x.reshape(7, 2, 32)
    assert (np.abs(apart) <= 0.5001 * scales[..., None]).all()
    np.testing.assert_array_equal(sums, scales * codes.sum(-1, dtype=np.int64).astype(np.float32))


def test_a_group_that_is_nothing_or_nearly_nothing_is_zeros() -> None:
    x = np.zeros((1, 96), np.float32)
    x[0, 0], x[0, 40], x[0, 70] = -0.0, 1e-41, 1e-37
    codes, scales, sums = quantised_rows(x)
    assert not codes.any()
    assert not scales.any()
    assert not sums.any()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_is_near_the_one_of_the_floats(bits: int) -> None:
    weight, x = DICE.standard_normal((33, 256), np.float32), DICE.standard_normal((9, 256))
    blocks = quantised_blocks(weight, bits)
    wanted = x @ dequantised(blocks, bits).T.astype(np.float64)
    apart = multiply(blocks, bits, x.astype(np.float32)) - wanted
    assert np.abs(apart).max() < 0.05 * wanted.std(), "only the rows' eighth bit is missing"
