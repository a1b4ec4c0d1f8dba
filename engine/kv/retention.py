"""How long a block is worth keeping, and how near: one contract for requests, `/kv/retain` and tiers.

    priority   what goes first among blocks that nobody uses: low, medium, high
    expires_at its ttl: from then on it goes before everything that has not expired
    pin        kept until unpinned, or until the pin's own time is over; whatever its ttl says
    floor      the farthest tier it may end up in while it has not expired (None: it may be dropped)
    ceiling    the farthest tier it may ever be written to: `hot` is never written to disk, and what was
               written before anybody said so is taken away from there

Order of victims in the pool: expired, then superseded by the next turn of its conversation, then by
priority, then what may not leave the pool, and last what is pinned. Last is not never: a pin that only a waiting
request could still break is broken, and counted (`broken_pins`), for a request that fits the pool alone
is always served. So that this stays rare, at most `PIN_SHARE` of the pool can be pinned.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Final

from engine.request import TIERS, Priority, Tier
from policies.reuse import Standing

PIN_SHARE: Final = 0.5
"""Of the pool's blocks, the most that can be pinned."""
_SMALL: Final = 64  # entries below which rebuilding a heap is not worth it
_RANK: Final[dict[Priority, int]] = {"low": 0, "medium": 1, "high": 2}
_DISTANCE: Final[dict[Tier, int]] = {tier: distance for distance, tier in enumerate(TIERS)}


@dataclass(frozen=True, slots=True)
class Retention:
    """What is wanted of a block. Times in seconds of `now`; `pinned_until` -inf is not pinned."""

    priority: Priority = "medium"
    expires_at: float = math.inf
    pinned_until: float = -math.inf
    floor: Tier | None = None
    ceiling: Tier = "cold"

    def merged(self, other: Retention, *, now: float) -> Retention:
        """The stronger wish of both; one that has expired counts for nothing, but its pin stands.

        Of two ceilings the nearer holds: what one must never find on a disk is not written there.
        """
        pinned_until = max(self.pinned_until, other.pinned_until)
        if self.expires_at <= now:
            return replace(other, pinned_until=pinned_until)
        floors: list[Tier] = [one for one in (self.floor, other.floor) if one is not None]
        return Retention(
            max(self.priority, other.priority, key=_RANK.__getitem__),
            max(self.expires_at, other.expires_at),
            pinned_until,
            _nearest(*floors) if floors else None,
            _nearest(self.ceiling, other.ceiling),
        )

    @property
    def pinned(self) -> bool:
        """Whether it is pinned; a pin whose time is over is taken away by the index."""
        return self.pinned_until > -math.inf

    def stays(self, below: Collection[Tier]) -> bool:
        """Whether the floor keeps it in the pool, when these tiers are all there are below."""
        if self.floor is None:
            return False
        return not any(_DISTANCE[tier] <= _DISTANCE[self.floor] for tier in below)

    def may_move_to(self, tier: Tier) -> bool:
        """Whether the ceiling lets it be written there."""
        return _DISTANCE[tier] <= _DISTANCE[self.ceiling]

    def standing(self, *, superseded: bool, below: Collection[Tier]) -> Standing:
        """Its place in the order of victims, beside priority and expiry."""
        if self.pinned:
            return "pinned"
        if self.stays(below):
            return "kept"
        return "superseded" if superseded else "usual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What `/kv/retain` changes. None leaves a thing as it is; `floor` "none" takes a floor away.

    Times are seconds from now; `pin_s` is how long a pin holds, infinity until it is unpinned.
    """

    priority: Priority | None = None
    ttl_s: float | None = None
    pin: bool | None = None
    pin_s: float = math.inf
    floor: Tier | str | None = None
    ceiling: Tier | None = None

    @property
    def changes(self) -> bool:
        """Whether it wants anything but to be told what holds."""
        return any(
            one is not None
            for one in (self.priority, self.ttl_s, self.pin, self.floor, self.ceiling)
        )

    def applied(self, to: Retention, *, now: float, may_pin: bool) -> Retention:
        """`to` as it is wanted. A pin that may not be had leaves things as they were."""
        changed = to
        if self.priority is not None:
            changed = replace(changed, priority=self.priority)
        if self.ttl_s is not None:
            changed = replace(changed, expires_at=now + self.ttl_s)
        if self.pin is False:
            changed = replace(changed, pinned_until=-math.inf)
        elif self.pin and may_pin:
            changed = replace(changed, pinned_until=now + self.pin_s)
        if self.floor is not None:
            changed = replace(changed, floor=next((t for t in TIERS if t == self.floor), None))
        if self.ceiling is not None:
            changed = replace(changed, ceiling=self.ceiling)
        return changed


def _nearest(*tiers: Tier) -> Tier:
    return min(tiers, key=_DISTANCE.__getitem__)


class Pins:
    """Which blocks are pinned and until when. A heap cannot forget from its middle: old entries linger."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._until: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def may(self, key: bytes) -> bool:
        """Whether this block can be pinned: it is, or there is room."""
        return key in self._until or len(self._until) < self.most

    def set(self, key: bytes, until: float) -> None:
        """Pinned until then; -inf is not pinned."""
        if until == -math.inf:
            self._until.pop(key, None)
            return
        self._until[key] = until
        if until < math.inf:
            heappush(self._heap, (until, key))
        if len(self._heap) > 2 * len(self._until) + _SMALL:  # pinned anew again and again
            self._heap = [(at, one) for one, at in self._until.items() if at < math.inf]
            heapify(self._heap)

    def due(self, now: float) -> list[bytes]:
        """Blocks whose pin is over; they are pinned no more."""
        over: list[bytes] = []
        while self._heap and self._heap[0][0] <= now:
            until, key = heappop(self._heap)
            if self._until.get(key) == until:
                del self._until[key]
                over.append(key)
        return over

    def __len__(self) -> int:
        return len(self._until)
