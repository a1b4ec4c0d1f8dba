"""What was here lately, so that a miss can say why.

Two bounded memories: why a key left the store, and the canonical form of recent requests per
place (scope, model, cache key), so that a debug answer can point at the first difference.
Everything is keyed by scope: nobody is told of what another scope holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

import cachetools

from policies.freshness import EntryMeta
from policies.keys import Scope
from policies.plan import Plan

Departure = Literal["expired", "evicted", "invalidated"]
Place = tuple[Scope, str, str | None]

MAX_DEPARTED: Final = 65_536
MAX_PLACES: Final = 1024
SHAPES_PER_PLACE: Final = 8
MAX_SHAPE_BYTES: Final = 32 * 1024
MAX_PAST: Final = 65_536
"""Entries that were seen past their ttl."""
MAX_NOTES: Final = 1024
"""Entries of which it is known what made them and how often they were served."""


@dataclass(slots=True)
class Note:
    """Of a stored entry: the plan that made it (without its text), and its hits since."""

    plan: Plan
    hits: int = 0


class Recall:
    """The gateway's short memory of keys and request shapes. Text stays in this process."""

    def __init__(self) -> None:
        self._departed: cachetools.LRUCache[bytes, Departure] = cachetools.LRUCache(MAX_DEPARTED)
        # The canonical forms of a place by entry key, the latest last.
        self._shapes: cachetools.LRUCache[Place, dict[bytes, bytes]] = cachetools.LRUCache(
            MAX_PLACES
        )
        self._places: cachetools.LRUCache[bytes, Place] = cachetools.LRUCache(
            MAX_PLACES * SHAPES_PER_PLACE
        )
        self._past: cachetools.LRUCache[bytes, float] = cachetools.LRUCache(MAX_PAST)
        self._notes: cachetools.LRUCache[bytes, Note] = cachetools.LRUCache(MAX_NOTES)

    def left(self, keys: Iterable[bytes], why: Departure) -> None:
        """These keys are no longer in the store; what they were asked with is forgotten."""
        for key in keys:
            self._departed[key] = why
            self._notes.pop(key, None)
            if (place := self._places.pop(key, None)) is not None:
                self._shapes.get(place, {}).pop(key, None)

    def stored(self, plan: Plan) -> None:
        """An answer to this plan is in the store now."""
        self._departed.pop(plan.key, None)
        self._notes[plan.key] = Note(replace(plan, canonical=b""))
        if len(plan.canonical) <= MAX_SHAPE_BYTES:
            place = _place(plan)
            shapes = self._shapes.setdefault(place, {})
            shapes.pop(plan.key, None)
            shapes[plan.key] = plan.canonical
            self._places[plan.key] = place
            if len(shapes) > SHAPES_PER_PLACE:
                del shapes[next(iter(shapes))]

    def served(self, plan: Plan) -> None:
        """The stored answer to this plan was given to somebody."""
        note = self._notes.get(plan.key)
        if note is not None:
            note.hits += 1

    def seen_past(self, meta: EntryMeta) -> None:
        """The entry was seen past its ttl: that is final, also when the clock is set back."""
        self._past[meta.key] = meta.stored_at

    def is_past(self, meta: EntryMeta) -> bool:
        """Whether this very entry was seen past its ttl before."""
        return meta.key in self._past and self._past[meta.key] == meta.stored_at

    def note(self, key: bytes) -> Note | None:
        """What this process knows of an entry; None when another one stored it, or long ago."""
        return self._notes.get(key)

    def canonical(self, key: bytes) -> bytes | None:
        """The canonical form of the request that an entry answers, while it is remembered."""
        place = self._places.get(key)
        return None if place is None else self._shapes.get(place, {}).get(key)

    def departure(self, key: bytes) -> Departure | None:
        """Why this key left, if it was here and is still remembered."""
        return self._departed.get(key)

    def any_other(self, plan: Plan) -> bytes | None:
        """Some other stored request of the same place: cheap, and enough to name the reason."""
        shapes = self._shapes.get(_place(plan), {}).values()
        return next((shape for shape in shapes if shape != plan.canonical), None)

    def nearest(self, plan: Plan) -> bytes | None:
        """The stored request of the same place that agrees longest with this one from its start."""
        shapes = self._shapes.get(_place(plan), {}).values()
        others = [shape for shape in shapes if shape != plan.canonical]
        return max(others, key=lambda shape: _common(shape, plan.canonical), default=None)

    def __repr__(self) -> str:
        return f"<Recall {len(self._departed)} departed, {len(self._shapes)} places>"


def _common(one: bytes, other: bytes) -> int:
    """How many bytes agree from the start. By halves: byte by byte would take milliseconds."""
    agree, most = 0, min(len(one), len(other))
    while agree < most:
        middle = (agree + most + 1) // 2
        if one[agree:middle] == other[agree:middle]:
            agree = middle
        else:
            most = middle - 1
    return agree


def _place(plan: Plan) -> Place:
    return (plan.scope, plan.model, plan.cache_key)
