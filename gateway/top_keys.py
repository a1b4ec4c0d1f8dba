"""Which entries spare most: a bounded list of keys with what their hits saved.

A key is the public hash, beside it the name that the client gave (``cache_key``), never a prompt.
When more keys were read than are kept, those that saved least are forgotten: a key that comes back
after that begins at nothing, so what is said of it is at most too little.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import nlargest
from operator import attrgetter
from typing import Any, Final

from gateway.request_log import Answered
from gateway.tally import MAX_NAME

MAX_KEYS: Final = 1024
SHOWN: Final = 20
"""Keys that one process tells another, and the most that are shown."""


Place = tuple[str, str]
"""Tenant and key."""


@dataclass(slots=True)
class KeySums:
    """What one entry's hits saved: seconds and tokens of the original computations."""

    key: str
    cache_key: str | None
    tier: str
    model: str
    tenant: str
    hits: int = 0
    seconds_saved: float = 0.0
    tokens_saved: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {**asdict(self), "seconds_saved": round(self.seconds_saved, 6)}


class TopKeys:
    """Fed by the journal with settled calls. Belongs to one event loop."""

    def __init__(self, most: int = MAX_KEYS) -> None:
        self._most = most
        self._sums: dict[Place, KeySums] = {}
        # The best are kept apart: to find them anew each second would cost more than all else.
        self._best: dict[Place, KeySums] = {}
        self._least = 0.0

    def note(self, answered: Iterable[Answered]) -> None:
        """Count the hits among settled calls; those that nobody asked for are none."""
        for visit, plan, outcome in answered:
            if outcome.level not in {"response", "semantic"} or plan.preload:
                continue
            place = plan.scope.tenant, outcome.key
            sums = self._sums.get(place)
            if sums is None:
                sums = self._sums[place] = KeySums(
                    outcome.key,
                    plan.cache_key,
                    outcome.tier,
                    plan.model[:MAX_NAME],
                    plan.scope.tenant,
                )
            sums.hits += 1
            sums.seconds_saved += visit.cost_s
            sums.tokens_saved += outcome.tokens_saved
            if sums.seconds_saved >= self._least and place not in self._best:
                self._rise(place, sums)
        if len(self._sums) > self._most:
            kept = nlargest(self._most // 2, self._sums.items(), key=lambda item: _worth(item[1]))
            self._sums = {**dict(kept), **self._best}

    def _rise(self, place: Place, sums: KeySums) -> None:
        """Among the best, unless it is the least of them. Sums only grow, so none sinks otherwise."""
        self._best[place] = sums
        if len(self._best) > SHOWN:
            worst = min(self._best, key=lambda one: _worth(self._best[one]))
            del self._best[worst]
            self._least = min(one.seconds_saved for one in self._best.values())

    def best(self) -> Sequence[KeySums]:
        """The ``SHOWN`` keys that saved most seconds, the best first."""
        return best_of(self._best.values())

    def __repr__(self) -> str:
        return f"<TopKeys {len(self._sums)}>"


_worth = attrgetter("seconds_saved", "hits")


def best_of(keys: Iterable[KeySums]) -> Sequence[KeySums]:
    """Those that saved most seconds, the best first; of equals those read more often."""
    return nlargest(SHOWN, keys, key=_worth)


def together(lists: Iterable[Iterable[KeySums]]) -> Sequence[KeySums]:
    """What several processes said of their best keys, as one list."""
    sums: dict[Place, KeySums] = {}
    for one in (key for keys in lists for key in keys):
        held = sums.get((one.tenant, one.key))
        if held is None:
            sums[one.tenant, one.key] = KeySums(**asdict(one))
        else:
            held.hits += one.hits
            held.seconds_saved += one.seconds_saved
            held.tokens_saved += one.tokens_saved
    return best_of(sums.values())


def read_keys(said: Iterable[Mapping[str, Any]]) -> Sequence[KeySums]:
    """What :meth:`KeySums.as_dict` wrote. Raises: TypeError for anything else."""
    return [KeySums(**one) for one in said]
