"""What rotary frequencies are divided by."""

import pytest

from engine.models.rope import llama3_factors, yarn_factors, yarn_mscale


def test_llama3_leaves_fast_rotations_and_divides_slow_ones() -> None:
    factors = llama3_factors(
        theta=500000.0, dim=128, factor=8.0, low=1.0, high=4.0, original=8192.0
    )
    assert len(factors) == 64
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert list(factors) == sorted(factors)
    assert any(1.0 < factor < 8.0 for factor in factors)


def test_deepseeks_yarn_ramps_from_pair_10_to_pair_23() -> None:
    factors = yarn_factors(
        theta=10000.0, dim=64, factor=40.0, original=4096.0, beta_fast=32.0, beta_slow=1.0
    )
    assert [pair for pair, factor in enumerate(factors) if factor == 1.0] == list(range(11))
    assert [pair for pair, factor in enumerate(factors) if factor == 40.0] == list(range(23, 32))
    assert factors[16] == pytest.approx(1 / (1 - 6 / 13 + 6 / 13 / 40))


def test_a_ramp_of_no_width_is_a_step() -> None:
    factors = yarn_factors(
        theta=100.0, dim=4, factor=4.0, original=6.28318, beta_fast=1.0, beta_slow=1.0
    )
    assert factors == (1.0, 4.0)


def test_ends_between_pairs_are_kept_where_nothing_is_truncated() -> None:
    def factors(*, truncate: bool) -> tuple[float, ...]:
        return yarn_factors(
            theta=10000.0, dim=16, factor=8.0, original=64.0, beta_fast=16.0, beta_slow=1.0,
            truncate=truncate,
        )  # fmt: skip

    assert factors(truncate=True) != factors(truncate=False)


def test_longer_contexts_sharpen_attention() -> None:
    assert yarn_mscale(1.0) == yarn_mscale(0.5, 9.0) == 1.0
    assert yarn_mscale(40.0, 0.707) == pytest.approx(1.2608, abs=1e-4)
