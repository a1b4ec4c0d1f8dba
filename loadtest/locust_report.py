"""What a run of the users came to: JSON for programs, Markdown for people. Pure.

Two answers to "what did the cache save": the gateway's own (``/v1/cache/stats``: what a stored answer
had taken to compute, measured then), and the users' (a stored answer's time beside the median of the
computed ones of the same scenario, under this load, so with their waiting for others).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.memory import Samples, Trend, trend
from loadtest.stats import figure
from loadtest.tally import PLACES, Row

COMPUTED: Final = ("prefix", "none")


@dataclass(frozen=True, slots=True)
class Times:
    """How long answers of one kind took."""

    count: int
    median_ms: float
    p95_ms: float


TimesOf = Mapping[tuple[str, str], Times]
"""By scenario and place."""


def saved_s(times: TimesOf) -> dict[str, float]:
    """By scenario: seconds that users did not wait, for answers from the store.

    A scenario without a computed answer to compare with is left out.
    """
    saved = {}
    for (scenario, place), found in times.items():
        computed = [times[scenario, name] for name in COMPUTED if (scenario, name) in times]
        total = sum(one.count for one in computed)
        if place != "response" or not total:
            continue
        usual_ms = sum(one.count * one.median_ms for one in computed) / total
        saved[scenario] = max(0.0, usual_ms - found.median_ms) * found.count / 1000
    return saved


def difference(before: Any, after: Any) -> Any:
    """Numbers of ``after`` less those of ``before``, through nested objects; other values as they are."""
    if isinstance(after, Mapping):
        then = before if isinstance(before, Mapping) else {}
        return {name: difference(then.get(name), value) for name, value in after.items()}
    if isinstance(after, bool) or not isinstance(after, int | float):
        return after
    return round(after - (before if isinstance(before, int | float) else 0), 6)


def content(
    *,
    rows: Sequence[Row],
    times: TimesOf,
    failures: int,
    requests: int,
    gateway: Mapping[str, Any] | None,
    memory: Mapping[str, Samples],
    users: int,
) -> dict[str, Any]:
    """The report as JSON. ``gateway`` is what it counted in this run; None where it does not say."""
    trends = trends_of(memory)
    counted = gateway or {}
    savings = counted.get("savings")
    prompt_tokens, reused = counted.get("prompt_tokens"), counted.get("prompt_tokens_reused")
    whole = rows[-1] if rows else None
    return {
        "users": users,
        "requests": requests,
        "failures": failures,
        "stored_rate": round(whole.stored_rate, 4) if whole else None,
        "reuse_rate": round(reused / prompt_tokens, 4) if reused and prompt_tokens else None,
        "saved_s": {
            "gateway": None if savings is None else savings["response"]["seconds"],
            "users": round(sum(saved_s(times).values()), 1),
        },
        "scenarios": [row.as_dict() for row in rows],
        "times": [
            {
                "scenario": scenario,
                "place": place,
                "count": found.count,
                "median_ms": found.median_ms,
                "p95_ms": found.p95_ms,
            }
            for (scenario, place), found in sorted(times.items())
        ],
        "saved_s_by_scenario": {name: round(s, 1) for name, s in saved_s(times).items()},
        "savings": savings,
        "memory": {
            name: {
                **trends[name].as_dict(),
                "samples_s_mib": [[round(at, 1), held] for at, held in memory[name]],
            }
            for name in trends
        },
    }


def markdown(known: Mapping[str, Any], made: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The same for people. ``known`` are ``report.facts``."""
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    machine, by_gateway = known["machine"], made["saved_s"]["gateway"]
    said = (
        "" if by_gateway is None else f"**{by_gateway:.0f} s** of computing (the gateway's own), "
    )
    where = f"{machine['cpu']} with {machine['cores']} cores"
    origin = f"`{known['command']}`, {known['at']}, commit {known['commit']}, {where}; {versions}"
    waiting = (
        f"**{made['saved_s']['users']:.0f} s** of users' waiting (beside the computed answers)"
    )
    rate = made["reuse_rate"]
    reuse = "(the gateway does not say)" if rate is None else f"**{rate:.1%}**"
    lines = [
        "# Users",
        "",
        origin,
        "",
        f"{made['users']} users, {made['requests']} requests, **{made['failures']} failures**.",
        f"Answers from the store **{made['stored_rate'] or 0:.1%}**, prompt tokens reused {reuse}.",
        f"Saved: {said}{waiting}.",
        "",
        *places_table(rows),
        "",
        *times_table(made),
    ]
    if made["memory"]:
        lines += ["", *memory_table(made)]
    return "\n".join(lines) + "\n"


def places_table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: where the answers came from."""
    lines = [_line("scenario", "answers", *PLACES, "tokens saved"), _rule(6)]
    for row in rows:
        shares = (f"{row.shares[place]:.1%}" for place in PLACES)
        lines.append(_line(row.scenario, row.answers, *shares, row.tokens_saved))
    return lines


def times_table(made: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [_line("scenario", "from", "answers", "median ms", "p95 ms"), _rule(4)]
    lines += [
        _line(
            one["scenario"], one["place"], one["count"],
            figure(one["median_ms"]), figure(one["p95_ms"]),
        )
        for one in made["times"]
    ]  # fmt: skip
    return lines


def memory_table(made: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        _line("second half", "mean MiB", "slope MiB/min", "growth MiB", "flat (2 %)"),
        _rule(4),
    ]
    lines += [
        _line(
            name, figure(one["mean_mib"]), figure(one["slope_mib_per_min"]),
            figure(one["growth_mib"]), "yes" if one["flat"] else "no",
        )
        for name, one in made["memory"].items()
    ]  # fmt: skip
    return lines


def trends_of(memory: Mapping[str, Samples]) -> dict[str, Trend]:
    """The trend of each series that is long enough to have one."""
    return {name: found for name, samples in memory.items() if (found := trend(samples))}


def _line(*cells: Any) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _rule(numbers: int) -> str:
    return f"|---|{'--:|' * numbers}"
