"""How rotary positions are stretched for contexts longer than the model was first trained on.

Every rule here says what each rotary frequency is divided by; fast rotations, which tell neighbours
apart, stay as they are. Torch-free.
"""

from __future__ import annotations

import math


def llama3_factors(
    *, theta: float, dim: int, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Llama 3: a ramp over how often a rotation turns in the original context.

    One that turns more than `high` times stays, one of less than `low` is divided by `factor`.
    """
    factors = []
    for pair in range(dim // 2):
        turns = original * theta ** (-2 * pair / dim) / (2 * math.pi)
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (keep + (1 - keep) / factor))
    return tuple(factors)


def yarn_factors(
    *,
    theta: float,
    dim: int,
    factor: float,
    original: float,
    beta_fast: float,
    beta_slow: float,
    truncate: bool = True,
) -> tuple[float, ...]:
    """YaRN (Peng et al., 2023): a ramp over the numbers of the rotary pairs.

    It runs from the pair that turns `beta_fast` times in the original context to the one that turns
    `beta_slow` times; `truncate` puts its ends on whole pairs.
    """

    def pair_turning(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first or 0.001
    factors = []
    for pair in range(dim // 2):
        stretched = min(max((pair - first) / width, 0.0), 1.0)
        factors.append(1 / (1 - stretched + stretched / factor))
    return tuple(factors)


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """By how much attention is sharpened when contexts are `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
