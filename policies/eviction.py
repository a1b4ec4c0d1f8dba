"""Which key goes first when room is short: one order for the response store, the engine's
block index and the trace replay, so that what is simulated is what runs.

The order of victims:

1. expired keys, the earliest expiry first;
2. low before medium before high priority;
3. the smallest GreedyDual-Size-Frequency value (Cherkasova, HP Labs HPL-98-69R1, 1998):
   ``floor + uses * cost / size``, where ``floor`` is the value of the last victim of that
   priority, so that what is no longer used is overtaken in the end;
4. the longest unused, then the first inserted.

A key that is superseded (the turn before, once a conversation has gone on) has no value but the floor.

Two facts carry the implementation. A use can only raise a value, so a heap entry written
before the use is a lower bound: ``touch`` leaves the heap alone, and ``pop`` puts a bound that
proves too low back where it belongs. And a heap cannot forget a key from its middle, so a
removed key leaves its entry behind; its stamp no longer matches, and when such entries
outnumber the living the heap is rebuilt.
"""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Final, Generic, Literal, TypeVar

Priority = Literal["high", "medium", "low"]
K = TypeVar("K", bound=Hashable)

_RANK: Final[dict[Priority, int]] = {"low": 0, "medium": 1, "high": 2}
_SMALL = 32  # entries below which rebuilding a heap is not worth it


class _Held:
    """One key: its standing now, and the stamp that its heap entries must carry."""

    __slots__ = ("expires_at", "rank", "stamp", "used_at", "uses", "value", "worth")

    def __init__(self, *, stamp: int, rank: int, expires_at: float, worth: float) -> None:
        self.stamp = stamp
        self.rank = rank
        self.expires_at = expires_at
        self.worth = worth  # cost per size
        self.uses = 1
        self.used_at = -inf
        self.value = 0.0


class EvictionOrder(Generic[K]):
    """Keys in, victims out. O(log n) amortised per operation, O(1) for a use; no clock.

    ``cost`` and ``size`` may be in any unit as long as all keys of one order agree on it
    (seconds of computation and bytes, or tokens and blocks). The order holds no values and
    knows no limit: the caller pops until its own limit is met.
    """

    __slots__ = ("_by_expiry", "_by_value", "_floors", "_held", "_live", "_stamp", "_with_expiry")

    def __init__(self) -> None:
        self._held: dict[K, _Held] = {}
        self._by_value: tuple[list[tuple[float, float, int, K]], ...] = ([], [], [])
        self._by_expiry: list[tuple[float, int, K]] = []
        self._live = [0, 0, 0]  # held keys per rank
        self._with_expiry = 0  # held keys that expire at all
        self._floors = [0.0, 0.0, 0.0]
        self._stamp = 0

    def add(
        self,
        key: K,
        *,
        priority: Priority,
        expires_at: float,
        cost: float,
        size: float,
        now: float,
    ) -> None:
        """Insert ``key``, or give it a new standing; a key known already keeps its uses and gains one.

        ``expires_at`` is on the clock of ``now``; infinity means never. A size of zero counts
        as one, a negative cost as zero.
        """
        before = self._held.get(key)
        if before is not None:
            self._forget(key, before)
        rank = _RANK[priority]
        self._stamp += 1
        held = _Held(
            stamp=self._stamp,
            rank=rank,
            expires_at=expires_at,
            worth=max(0.0, cost) / (size if size > 0 else 1.0),
        )
        if before is not None:
            held.uses = before.uses + 1
        held.used_at = now
        held.value = self._floors[rank] + held.uses * held.worth
        self._held[key] = held
        self._live[rank] += 1
        heappush(self._by_value[rank], (held.value, now, held.stamp, key))
        if expires_at < inf:
            self._with_expiry += 1
            heappush(self._by_expiry, (expires_at, held.stamp, key))
        self._compact(rank)

    def touch(self, key: K, *, now: float) -> None:
        """Count a use of ``key``; an unknown key is ignored."""
        held = self._held.get(key)
        if held is not None:
            held.uses += 1
            held.used_at = max(held.used_at, now)  # a clock set back must not lower a bound
            held.value = self._floors[held.rank] + held.uses * held.worth

    def supersede(self, key: K) -> None:
        """``key`` will hardly be asked for again: it goes before what may be. Unknown: ignored.

        One that is used after all counts as the least valuable of what is held then.
        """
        held = self._held.get(key)
        if held is None:
            return
        self._stamp += 1
        # What is in the heap would be too high for a lower bound: it gets a new entry.
        held.stamp, held.worth, held.value = self._stamp, 0.0, self._floors[held.rank]
        heappush(self._by_value[held.rank], (held.value, held.used_at, held.stamp, key))
        if held.expires_at < inf:
            heappush(self._by_expiry, (held.expires_at, held.stamp, key))
        self._compact(held.rank)

    def discard(self, key: K) -> None:
        """Forget ``key``; an unknown key is ignored."""
        held = self._held.get(key)
        if held is not None:
            self._forget(key, held)
            self._compact(held.rank)

    def pop(self, *, now: float) -> K | None:
        """Remove and return the least valuable key, or None when nothing is held."""
        expired = self._pop_expired(now)
        if expired is not None:
            return expired
        for rank in range(3):
            if self._live[rank]:
                return self._pop_cheapest(rank)
        return None

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __repr__(self) -> str:
        low, medium, high = self._live
        entries = sum(len(heap) for heap in self._by_value) + len(self._by_expiry)
        stale = entries - len(self._held) - self._with_expiry
        return f"<EvictionOrder [keys: {low} low, {medium} medium, {high} high | stale: {stale}]>"

    def _pop_expired(self, now: float) -> K | None:
        heap = self._by_expiry
        while heap and heap[0][0] <= now:
            _, stamp, key = heappop(heap)
            held = self._held.get(key)
            if held is not None and held.stamp == stamp:
                self._forget(key, held)
                self._compact(held.rank)
                return key
        return None

    def _pop_cheapest(self, rank: int) -> K:
        heap = self._by_value[rank]
        while True:  # ends: the rank has a live key, and every round settles one entry
            value, used_at, stamp, key = heap[0]
            held = self._held.get(key)
            if held is None or held.stamp != stamp:
                heappop(heap)
            elif (held.value, held.used_at) != (value, used_at):
                heapreplace(heap, (held.value, held.used_at, stamp, key))
            else:
                heappop(heap)
                self._floors[rank] = value
                self._forget(key, held)
                self._compact(rank)
                return key

    def _forget(self, key: K, held: _Held) -> None:
        del self._held[key]
        self._live[held.rank] -= 1
        if held.expires_at < inf:
            self._with_expiry -= 1
        if not self._live[held.rank]:
            self._floors[held.rank] = 0.0  # nobody left to be compared with: keep floats small

    def _compact(self, rank: int) -> None:
        """Rebuild a heap in which stale entries outnumber live ones; amortised O(1)."""
        heap = self._by_value[rank]
        if len(heap) > 2 * self._live[rank] + _SMALL:
            heap[:] = [entry for entry in heap if self._is_current(entry[3], entry[2])]
            heapify(heap)
        if len(self._by_expiry) > 2 * self._with_expiry + _SMALL:
            kept = [entry for entry in self._by_expiry if self._is_current(entry[2], entry[1])]
            heapify(kept)
            self._by_expiry = kept

    def _is_current(self, key: K, stamp: int) -> bool:
        held = self._held.get(key)
        return held is not None and held.stamp == stamp
