"""Rows in eight bits and back."""

import pytest
import torch

from engine.kv.fp8 import decode, encode, pack, scales_and_rope, unpack
from engine.kv.layout import KvLayout, KvShape

HEADS = KvShape(heads=3, key_dim=16, value_dim=8)
LATENT = KvShape(heads=1, key_dim=256 + 24, value_dim=256, latent=True)
ODD = KvShape(heads=1, key_dim=4, value_dim=3)


def layout_of(shape: KvShape) -> KvLayout:
    return KvLayout(layers=1, shape=shape, block_tokens=8, element="float8")


def test_every_byte_is_read_as_torch_reads_it() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    every = every[(every & 0x7F) != 0x7F]  # the two NaN
    wanted = every.view(torch.float8_e4m3fn).float()
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(decode(every, dtype).float() * 256, wanted)
    assert torch.equal(encode(wanted), every)


def test_every_number_is_rounded_as_torch_rounds_it() -> None:
    exact = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (exact[1:] + exact[:-1]) / 2
    dice = torch.Generator().manual_seed(0)
    size = torch.randint(-4, 3, (100_000,), generator=dice)
    drawn = torch.randn(100_000, generator=dice) * 10.0**size
    numbers = torch.cat((ties, ties * 1.00001, ties * 0.99999, drawn))
    numbers = torch.cat((numbers, -numbers)).clamp(-448, 448)
    assert torch.equal(encode(numbers), numbers.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("shape", [HEADS, LATENT, ODD], ids=["heads", "latent", "odd"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_each_number_comes_back_within_a_sixteenth_of_itself(shape: KvShape, size: float) -> None:
    layout = layout_of(shape)
    rows = torch.randn(50, shape.elements, generator=torch.Generator().manual_seed(1)) * size
    packed = pack(rows, layout)
    assert packed.shape == (50, layout.width)
    assert packed.dtype == torch.uint8
    back = unpack(packed, layout, torch.float32)
    # 3 bits of mantissa, and what is far below the largest number of its run
    torch.testing.assert_close(back, rows, rtol=1 / 15, atol=size / 500)


def test_the_rope_part_stays_bfloat16_and_groups_have_scales_of_their_own() -> None:
    layout = layout_of(LATENT)
    rows = torch.randn(4, LATENT.elements)
    rows[:, :128] *= 1000  # the first group; the second does not suffer
    back = unpack(pack(rows, layout), layout, torch.float32)
    assert torch.equal(back[:, 256:], rows[:, 256:].bfloat16().float())
    torch.testing.assert_close(back[:, 128:256], rows[:, 128:256], rtol=1 / 15, atol=1e-2)


def test_packing_what_was_unpacked_gives_the_same_numbers() -> None:
    layout = layout_of(HEADS)
    once = unpack(pack(torch.randn(20, HEADS.elements), layout), layout, torch.float32)
    again = unpack(pack(once, layout), layout, torch.float32)
    torch.testing.assert_close(again, once, rtol=1 / 15, atol=1e-2)


def test_zeros_stay_zeros_and_a_largest_number_never_becomes_a_nan() -> None:
    layout = layout_of(HEADS)
    assert not unpack(torch.zeros(2, layout.width, dtype=torch.uint8), layout, torch.float32).any()
    assert not unpack(pack(torch.zeros(2, HEADS.elements), layout), layout, torch.float32).any()
    largest = torch.linspace(1.0, 2.0, 999).unsqueeze(1).expand(-1, HEADS.elements).clone()
    back = unpack(pack(largest, layout), layout, torch.float32)
    torch.testing.assert_close(back, largest, rtol=0.01, atol=0)


@pytest.mark.parametrize("what", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 200, 270])
def test_a_row_without_numbers_shows_in_its_scales_or_its_rope_part(
    what: float, place: int
) -> None:
    layout = layout_of(LATENT)
    rows = torch.randn(3, LATENT.elements)
    rows[1, place] = what
    good = scales_and_rope(pack(rows, layout), layout).isfinite().all(-1)
    assert good.tolist() == [True, False, True]
