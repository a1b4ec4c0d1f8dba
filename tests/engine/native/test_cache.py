"""The native pool: blocks as runs of memory, keys by dimension, values by key."""

import numpy as np
import pytest

from engine.native.cache import NativeCache
from tests.kit.kv import layout_of

LAYOUT = layout_of(layers=3, heads=2, dim=4, block_tokens=16, element="bfloat16")


def full_pool(blocks: int = 4) -> NativeCache:
    """Every number another one."""
    cache = NativeCache(LAYOUT, blocks)
    cache.data[:] = np.arange(cache.data.size).reshape(cache.data.shape) + 1
    return cache


def test_it_starts_as_zeros_and_holds_as_many_bytes_as_the_layout_says() -> None:
    cache = NativeCache(LAYOUT, 4)
    assert not cache.data.any()
    assert cache.nbytes == 4 * LAYOUT.block_bytes
    assert cache.data.shape == (4, 3 * 2 * 2 * 4 * 16)


def test_one_token_is_cleared_in_all_layers_and_nothing_beside_it() -> None:
    cache, before = full_pool(), full_pool()
    cache.clear(2, 5)
    assert np.array_equal(np.flatnonzero((cache.data != before.data).any(axis=1)), [2])
    layers = cache.data[2].reshape(3, 2, -1)
    keys = layers[:, 0].reshape(3, 2, 4, 16)  # (L, K, D, P)
    values = layers[:, 1].reshape(3, 2, 16, 4)  # (L, K, P, D)
    assert not keys[..., 5].any()
    assert not values[:, :, 5].any()
    assert (cache.data[2] == 0).sum() == 3 * 2 * 2 * 4, "one key and one value, in each layer"


def test_a_block_goes_out_and_comes_back_anywhere_bit_by_bit() -> None:
    cache = full_pool()
    before = cache.data.copy()
    blob = cache.export_block(1)
    assert blob.nbytes == len(blob) == LAYOUT.block_bytes
    cache.import_block(3, bytes(blob))
    assert np.array_equal(cache.data[3], before[1])
    assert np.array_equal(cache.data[:3], before[:3])
    cache.data[1] = 0
    cache.import_block(1, blob)
    assert np.array_equal(cache.data[1], before[1]), "what went out is a copy"
    for kind in (bytearray(blob), memoryview(bytes(blob))):
        cache.import_block(0, kind)
        assert np.array_equal(cache.data[0], before[1])


@pytest.mark.parametrize("size", [0, LAYOUT.block_bytes - 2, LAYOUT.block_bytes + 2])
def test_what_has_another_size_is_no_block_of_it(size: int) -> None:
    cache = full_pool()
    before = cache.data.copy()
    with pytest.raises(AssertionError, match="a block of another layout"):
        cache.import_block(0, bytes(size))
    assert np.array_equal(cache.data, before)


def test_its_line_for_operators_says_how_much_it_holds() -> None:
    assert repr(NativeCache(LAYOUT, 4)) == "NativeCache(4 blocks x 16 tokens, 0 MiB)"
