"""Resident memory while something runs, and whether it still grows. The trend is pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from loadtest.neighbours import family, rss_mib

FLAT_SHARE: Final = 0.02
"""Growth over the second half of a run, as a share of what is held, that still counts as flat."""

Samples = Sequence[tuple[float, float]]
"""Pairs of seconds and MiB."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The second half of a run: mean, slope by least squares, and what that makes over the half."""

    mean_mib: float
    slope_mib_per_min: float
    growth_mib: float
    samples: int

    @property
    def flat(self) -> bool:
        """Whether it grew by no more than :data:`FLAT_SHARE` of what it held."""
        return self.growth_mib <= FLAT_SHARE * self.mean_mib

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        rounded = {name: round(value, 2) for name, value in asdict(self).items()}
        return {**rounded, "flat": self.flat}


def second_half(samples: Samples) -> Samples:
    """Those of the second half of the time."""
    middle = (samples[0][0] + samples[-1][0]) / 2 if samples else 0.0
    return [one for one in samples if one[0] >= middle]


def trend(samples: Samples) -> Trend | None:
    """How memory went in the second half of ``samples``; None of fewer than three there."""
    half = second_half(samples)
    if len(half) < 3:
        return None
    mean_s = sum(at for at, _ in half) / len(half)
    mean_mib = sum(held for _, held in half) / len(half)
    spread = sum((at - mean_s) ** 2 for at, _ in half)
    slope = sum((at - mean_s) * (held - mean_mib) for at, held in half) / spread
    return Trend(mean_mib, slope * 60, slope * (half[-1][0] - half[0][0]), len(half))


def held_mib(pid: int) -> Mapping[str, float]:
    """What a kvgate holds: its gateway process, and what came of it. Raises: OSError."""
    gateway, *others = family(pid)
    held = {"gateway": rss_mib(gateway)}
    if others:
        held["engine"] = sum(map(rss_mib, others))
    return held
