"""Medians, percentiles, ratios and how figures are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.stats import figure, percentile, ratios, spread


def test_a_spread_is_the_median_and_what_it_stands_among() -> None:
    found = spread([3.0, 1.0, 10.0])
    assert (found.median, found.low, found.high, found.n) == (3.0, 1.0, 10.0, 3)
    assert str(found) == "3.00 (1.00 to 10.0, n=3)"


def test_no_values_have_no_spread_and_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])
    with pytest.raises(ValueError, match="needs values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="needs values"):
        percentile([1.0], 0.0)


@pytest.mark.parametrize(("share", "value"), [(0.01, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1, 10)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: float) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == value


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_at_least_its_share_of_the_values_do_not_exceed_a_percentile(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_ratios_are_those_of_neighbours() -> None:
    found = ratios([2.0, 30.0, 4.0], [1.0, 10.0, 1.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (35100.4, "35100"),
        (1.874, "1.87"),
        (0.041234, "0.0412"),
        (0, "0"),
        (-2.5, "-2.50"),
        (math.inf, "inf"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text
