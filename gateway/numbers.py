"""What the statistics, the metrics and the dashboard show: the numbers of a whole gateway.

A gateway may be several processes. Each counts for itself; whoever is asked adds up what all have
counted, those that have ended included.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from gateway.store.base import Fill
from gateway.tally import Statistics
from gateway.top_keys import KeySums, read_keys, together

SHARED_STORES: Final = frozenset({"disk", "redis"})
"""Stores that all processes see as one: what each says of their size is the same truth."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Counters since the start; how full each tier is; flights in the air; keys that saved most."""

    statistics: Statistics
    fills: Sequence[Fill] = ()
    flights: int = 0
    keys: Sequence[KeySums] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for another process; :meth:`of` reads it."""
        return {
            "statistics": self.statistics.as_dict(),
            "fills": [asdict(fill) for fill in self.fills],
            "flights": self.flights,
            "keys": [one.as_dict() for one in self.keys],
        }

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """What :meth:`as_dict` wrote. Raises: KeyError, TypeError, ValueError for anything else."""
        return cls(
            statistics=Statistics.of(data["statistics"]),
            fills=[Fill(**fill) for fill in data["fills"]],
            flights=int(data["flights"]),
            keys=read_keys(data["keys"]),
        )

    def left(self) -> "Numbers":
        """What stays of a process that has ended: what it did, not what it held."""
        emptied = [replace(fill, entries=0, size_bytes=0, max_bytes=0) for fill in self.fills]
        return Numbers(self.statistics, emptied, keys=self.keys)


Ask = Callable[[], Awaitable[Numbers]]


def added_up(all_numbers: Iterable[Numbers]) -> Numbers:
    """The sum. Of tiers that all share, the size that the first one says."""
    statistics, flights = Statistics(), 0
    keys: list[Sequence[KeySums]] = []
    fills: dict[tuple[str, str], Fill] = {}
    for numbers in all_numbers:
        statistics.merge(numbers.statistics)
        flights += numbers.flights
        keys.append(numbers.keys)
        for fill in numbers.fills:
            place = fill.tier, fill.store
            fills[place] = _together(fills[place], fill) if place in fills else fill
    return Numbers(statistics, list(fills.values()), flights, together(keys))


def _together(one: Fill, other: Fill) -> Fill:
    if one.store in SHARED_STORES:
        return replace(one, evictions=one.evictions + other.evictions)
    return replace(
        one,
        entries=one.entries + other.entries,
        size_bytes=one.size_bytes + other.size_bytes,
        max_bytes=one.max_bytes + other.max_bytes,
        evictions=one.evictions + other.evictions,
    )
