"""The few numbers a noisy machine allows: medians, percentiles and ratios of neighbours. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and what it stands among."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)}, n={self.n})"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest of at least one value. Raises: ValueError when there is none."""
    if not values:
        raise ValueError("no values")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1] of the values do not exceed.

    Nearest rank: always a value that was measured. Raises: ValueError.
    """
    if not values or not 0 < share <= 1:
        raise ValueError("needs values and a share in (0, 1]")
    return sorted(values)[math.ceil(len(values) * share) - 1]


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """The ratios ``above[i] / below[i]`` of runs that were made side by side.

    A neighbour's noise falls on both of a pair, so the median of ratios is steadier than the
    ratio of medians. Raises: ValueError when the lengths differ or there is none.
    """
    return spread([a / b for a, b in zip(above, below, strict=True)])


def figure(value: float) -> str:
    """Three significant digits, as people write them: ``35100``, ``1.87``, ``0.0412``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:.{max(0, digits)}f}"
