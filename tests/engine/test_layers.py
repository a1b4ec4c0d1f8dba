"""Norm and rotary positions."""

from dataclasses import replace

import torch

from engine.models.config import ModelConfig
from engine.models.layers import Rotary, rms_norm, rotate
from tests.kit.stage import CPU

CONFIG = ModelConfig(
    architecture="llama",
    layers=1,
    hidden=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    intermediate=8,
    vocab=8,
    context_tokens=64,
    rope_theta=100.0,
    rms_eps=1e-5,
    tied=True,
)


def rotated(x: torch.Tensor, positions: list[int], config: ModelConfig = CONFIG) -> torch.Tensor:
    rotary = Rotary(config, device=CPU, dtype=torch.float32)
    return rotate(x, rotary.at(torch.tensor(positions)))


def test_a_normed_row_has_mean_square_one_times_its_weights() -> None:
    x = torch.randn(5, 8)
    normed = rms_norm(x, torch.full((8,), 3.0), 0.0)
    torch.testing.assert_close(normed.square().mean(-1), torch.full((5,), 9.0))


def test_position_zero_is_not_turned_and_no_position_changes_a_length() -> None:
    x = torch.randn(2, 3, 8)
    turned = rotated(x, [0, 40])
    assert torch.equal(turned[0], x[0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned[1], x[1])


def test_a_product_of_two_turned_rows_depends_on_their_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 8)

    def product(here: int, there: int) -> torch.Tensor:
        return (rotated(q, [here]) * rotated(k, [there])).sum()

    torch.testing.assert_close(product(3, 10), product(43, 50))


def test_a_factor_of_two_turns_half_as_far() -> None:
    x = torch.randn(1, 1, 8)
    slow = replace(CONFIG, rope_factors=(2.0,) * 4)
    torch.testing.assert_close(rotated(x, [20], slow), rotated(x, [10]))
