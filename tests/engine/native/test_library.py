"""The compiled products against their plain twin, bit by bit, and builds for other machines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.native.library import Library, address
from engine.native.plain import multiply, quantised_blocks
from tests.kit.native import changed_sources, compiled

Floats = NDArray[np.float32]
INPUTS, OUTPUTS = (32, 64, 96, 576, 1536), (1, 7, 31, 32, 33, 96, 200)
ROWS = (1, 2, 3, 7, 8, 63, 64, 65, 130)
OTHER_BUILDS = {
    "16 lanes of two halves": "-DKVGATE_EMULATE_512",
    "no more than AVX2": "-march=haswell",
    "hardly optimised": "-O1",
}


@pytest.fixture(scope="session", params=["as shipped", *OTHER_BUILDS])
def build(
    request: pytest.FixtureRequest, native: Library, tmp_path_factory: pytest.TempPathFactory
) -> Library:
    """The kernels as this machine runs them, and as others do."""
    if request.param == "as shipped":
        return native
    return compiled(tmp_path_factory.mktemp("build"), OTHER_BUILDS[request.param])


def both(library: Library, weight: Floats, bits: int, x: Floats) -> tuple[Floats, Floats]:
    """What the library makes of it, and what the twin does."""
    outputs, inputs = weight.shape
    blocks = quantised_blocks(weight, bits)
    tiles = np.zeros(library.packed_bytes(outputs, inputs, bits), np.uint8)
    matrix = library.pack(blocks, outputs, inputs, bits, tiles)
    return library.linear(matrix, x), multiply(blocks, bits, x)


def assert_same(found: Floats, wanted: Floats) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", INPUTS)
def test_products_have_exactly_the_twins_bits(build: Library, bits: int, inputs: int) -> None:
    dice = np.random.default_rng(inputs + bits)
    for number, rows in enumerate(ROWS):
        outputs = OUTPUTS[(number + inputs // 32) % len(OUTPUTS)]
        weight = dice.standard_normal((outputs, inputs), np.float32)
        x = dice.standard_normal((rows, inputs), np.float32)
        assert_same(*both(build, weight, bits, x))


def extremes() -> dict[str, Floats]:
    """Rows (M, 64) that look for trouble."""
    dice = np.random.default_rng(1)
    some = dice.standard_normal((4, 64), np.float32)
    one_huge, halves, nothing = some.copy(), some.copy(), np.zeros((4, 64), np.float32)
    one_huge[:, 5], one_huge[1, 40] = 1e30, -1e30
    halves[:] = np.round(halves * 2) / 2 * np.float32(127 / 254)
    return {
        "zeros": nothing,
        "negative zeros": -nothing,
        "one huge": one_huge,
        "all the largest": np.full((4, 64), 3.0, np.float32) * np.sign(some),
        "denormals": (some * np.float32(1e-41)).astype(np.float32),
        "almost denormal": (some * np.float32(2e-38)).astype(np.float32),
        "a small group beside a large": np.concatenate((some[:, :32] * 1e-30, some[:, 32:]), 1),
        "halves between two codes": halves,
        "only one": np.eye(64, dtype=np.float32),
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", list(extremes()))
def test_extreme_rows_have_exactly_the_twins_bits(build: Library, bits: int, name: str) -> None:
    weight = np.random.default_rng(2).standard_normal((40, 64), np.float32)
    weight[3], weight[4, :32], weight[5] = 0.0, 1.0, -weight[6]
    weight[7] = np.where(np.arange(64) % 2, 60000.0, -60000.0)
    for rows in (extremes()[name], extremes()[name][:1]):
        found, wanted = both(build, weight, bits, rows.astype(np.float32))
        assert_same(found, wanted)
        assert np.isfinite(found).all()


def test_the_largest_codes_of_both_sides_do_not_run_over(build: Library) -> None:
    """4 bits: 15 times 127, 32 times. 8 bits: -128, which a file may hold, times 127."""
    blocks = np.zeros((32, 34), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    blocks[:16, 2:] = 128
    blocks[16:, 2:] = 127
    low = np.full((32, 20), 255, np.uint8)
    low[:, :4] = np.frombuffer(np.array([0.5, -3.0], np.float16).tobytes(), np.uint8)
    rows = np.array([[1.0] * 32, [-1.0] * 32, [1.0, -1.0] * 16], np.float32)
    for bits, stored in ((8, blocks), (4, low)):
        tiles = np.zeros(build.packed_bytes(32, 32, bits), np.uint8)
        matrix = build.pack(stored, 32, 32, bits, tiles)
        assert_same(build.linear(matrix, rows), multiply(stored, bits, rows))


def test_a_row_has_exactly_the_same_bits_in_every_company(build: Library) -> None:
    dice = np.random.default_rng(4)
    weight = dice.standard_normal((50, 160), np.float32)
    x = dice.standard_normal((130, 160), np.float32)
    for bits in (4, 8):
        together, _ = both(build, weight, bits, x)
        for row in (0, 63, 64, 129):
            alone, _ = both(build, weight, bits, x[row : row + 1])
            assert_same(alone[0], together[row])


def test_every_build_agrees_and_says_how_wide_it_is(build: Library) -> None:
    assert build.agrees()
    assert build.lanes in {8, 16}


def test_the_wide_layout_is_wide(native: Library, tmp_path: Path) -> None:
    wide = compiled(tmp_path, "-DKVGATE_EMULATE_512", "-O0")
    assert wide.lanes == 16
    assert wide.packed_bytes(33, 32, 8) == native.packed_bytes(33, 32, 8) == 64 * 34


@pytest.mark.parametrize(
    ("old", "new"),
    [("vi_set8(15)", "vi_set8(7)"), ("largest / 127.0f", "largest * 0.007874016f")],
    ids=["wrong codes", "a last digit"],
)
def test_a_library_that_computes_wrongly_does_not_agree(
    native: Library, tmp_path: Path, old: str, new: str
) -> None:
    sources = changed_sources(tmp_path, "matrix.h", old, new)
    assert not compiled(tmp_path, "-O1", sources=sources).agrees()


def test_numbers_that_do_not_lie_in_a_row_have_no_address() -> None:
    numbers = np.zeros((4, 4), np.float32)
    assert address(numbers) == numbers.ctypes.data
    assert address(None) is None
    with pytest.raises(AssertionError):
        address(numbers.T[1:])
