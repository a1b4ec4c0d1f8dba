"""What an operator sees of a whole gateway's numbers: ``/v1/cache/stats`` and the dashboard alike.

One function makes both, so that they never disagree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from gateway.numbers import Numbers
from gateway.savings import savings_of
from gateway.tally import BUCKETS_S, Tally, Views


def stats_of(numbers: Numbers, views: Views) -> dict[str, Any]:
    """JSON: everything that was counted since the start, and how full each tier is.

    ``views`` are those of ``numbers.statistics``.
    """
    counted, whole = numbers.statistics, views.total
    return {
        **whole.as_dict(),
        "levels": dicts(views.levels.items()),
        "tiers": {
            fill.tier: {
                **views.tiers.get(fill.tier, Tally()).as_dict(),
                **{key: value for key, value in asdict(fill).items() if key != "tier"},
            }
            for fill in numbers.fills
        },
        "models": dicts(views.models.items()),
        "tenants": dicts(views.tenants.items()),
        "savings": savings_of(views, counted),
        "miss_reasons": {reason: tally.requests for reason, tally in views.reasons.items()},
        "collapsed": whole.collapsed,
        "stale": whole.stale,
        "errors": counted.errors,
        "journal": {"lines": counted.journal_lines, "lost": counted.journal_lost},
        "flights": numbers.flights,
        "latency": latency(views.levels),
        "store_errors": whole.store_errors + counted.store_failures,
    }


def dicts(tallies: Iterable[tuple[str, Tally]]) -> dict[str, Any]:
    """Named sums as JSON."""
    return {name: tally.as_dict() for name, tally in tallies}


def latency(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Answer times as JSON: how many calls took how long, by bucket; the last one has no bound."""
    return {
        "bounds_s": BUCKETS_S,
        "levels": {
            name: {"seconds": round(tally.seconds, 6), "within": tally.within}
            for name, tally in tallies.items()
        },
    }
