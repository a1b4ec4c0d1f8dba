"""A sweep: one size varied, everything else as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from gateway.config_values import parse_size
from gateway.whatif_run import TIERS, Run, Runner, Setting

Varied = Literal["memory", "blocks", "hot", "warm", "cold", "responses"]
OF_KV: Final = frozenset({"memory", "blocks"})
MEANING: Final = {
    "memory": "bytes of KV cache, engine.kv_memory",
    "blocks": "blocks of KV cache",
    "hot": "tiers.hot.max_bytes",
    "warm": "tiers.warm.max_bytes",
    "cold": "tiers.cold.max_bytes",
    "responses": "bytes of all response tiers, shared out as now",
}


class SweepError(ValueError):
    """Not a sweep; one line says why."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is varied and its values, as the operator wrote them and as numbers, ascending."""

    varied: Varied
    labels: Sequence[str]
    values: Sequence[int]


@dataclass(frozen=True, slots=True)
class Point:
    """One value and what came of it; shares of look-ups by whose they are."""

    label: str
    value: int
    run: Run
    shares: dict[str, float]


def parse_sweep(text: str) -> Sweep:
    """``memory=1GiB,2GiB,4GiB``. Raises: SweepError."""
    name, equals, listed = text.partition("=")
    if not equals or name not in get_args(Varied):
        raise SweepError(
            f"--sweep {text}: must be NAME=VALUE,VALUE with NAME one of {', '.join(MEANING)}"
        )
    values: dict[int, str] = {}
    for label in filter(None, (part.strip() for part in listed.split(","))):
        try:
            value = int(label) if name == "blocks" else parse_size(label)
        except ValueError as error:
            raise SweepError(f"--sweep {name}: {label}: {error}") from None
        if value < 1:
            raise SweepError(f"--sweep {name}: {label}: must be more than nothing")
        values[value] = label
    if not values:
        raise SweepError(f"--sweep {name}: needs values, as {name}=1000,2000")
    ordered = sorted(values)
    varied: Varied = name  # type: ignore[assignment]  # it is one of them, see above
    return Sweep(varied, [values[value] for value in ordered], ordered)


def swept(runner: Runner, base: Setting, sweep: Sweep) -> list[Point]:
    """Replay for each value."""
    points = []
    for label, value in zip(sweep.labels, sweep.values, strict=True):
        run = runner.run(varied(runner, base, sweep.varied, value, label))
        points.append(Point(label, value, run, shares(run, of_kv=sweep.varied in OF_KV)))
    return points


def varied(runner: Runner, base: Setting, what: Varied, value: int, label: str) -> Setting:
    """``base`` with one size changed."""
    name = f"{what} {label}"
    match what:
        case "memory":
            return replace(base, name=name, room=runner.room(value))
        case "blocks":
            tokens = value * base.room.block_tokens
            return replace(
                base, name=name, room=replace(base.room, tokens=tokens, memory_bytes=None)
            )
        case "responses":
            rules = base.rules.tiers
            whole = sum(rule.max_bytes for rule in rules.values()) or 1
            changed = {
                tier: replace(rules[tier], max_bytes=value * rules[tier].max_bytes // whole)
                for tier in TIERS
            }
            return base.with_tiers(name, changed)
        case tier:
            rule = replace(base.rules.tiers[tier], max_bytes=value)
            return base.with_tiers(name, {tier: rule})


def shares(run: Run, *, of_kv: bool) -> dict[str, float]:
    """Found of what was looked for, 0 to 1: ours, LRU where it is known, the optimum, no bound."""
    if of_kv:
        blocks = run.blocks
        return {} if blocks is None else {n: s.hit_rate for n, s in blocks.by_name().items()}
    answers = run.answers
    if answers is None:
        return {}
    return {
        "kvgate": answers.found.hit_rate,
        "optimum": answers.optimum.hit_rate,
        "unbounded": answers.unbounded.hit_rate,
    }


def as_dict(sweep: Sweep, points: Sequence[Point]) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "varied": sweep.varied,
        "points": [
            {
                "label": point.label,
                "value": point.value,
                "shares": {name: round(share, 6) for name, share in point.shares.items()},
                **point.run.as_dict(),
            }
            for point in points
        ],
    }
