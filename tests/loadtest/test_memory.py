"""Whether memory still grows."""

from __future__ import annotations

import os

import pytest

from loadtest.memory import held_mib, second_half, trend


def test_the_trend_is_that_of_the_second_half() -> None:
    growing = [(float(at), 100.0 + 10 * at) for at in range(11)]
    flat = [(float(at), 200.0) for at in range(11, 21)]
    found = trend([*growing, *flat])
    assert found is not None
    assert found.samples == 11
    assert found.slope_mib_per_min == 0.0
    assert found.flat


def test_a_slope_is_per_minute_and_its_growth_that_of_the_half() -> None:
    found = trend([(float(at), 100.0 + at) for at in range(21)])
    assert found is not None
    assert found.slope_mib_per_min == pytest.approx(60)
    assert found.growth_mib == pytest.approx(10)
    assert found.mean_mib == pytest.approx(115)
    assert not found.flat
    assert found.as_dict()["flat"] is False


def test_what_shrinks_is_flat() -> None:
    found = trend([(float(at), 100.0 - at) for at in range(21)])
    assert found is not None
    assert found.flat


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_samples_have_no_trend(count: int) -> None:
    assert trend([(float(at), 1.0) for at in range(count)]) is None


def test_the_second_half_is_that_of_the_time_not_of_the_samples() -> None:
    samples = [(0.0, 1.0), (0.1, 1.0), (0.2, 1.0), (6.0, 2.0), (10.0, 3.0)]
    assert second_half(samples) == [(6.0, 2.0), (10.0, 3.0)]


def test_a_process_without_children_is_the_gateway_alone() -> None:
    held = held_mib(os.getpid())
    assert held["gateway"] > 1
