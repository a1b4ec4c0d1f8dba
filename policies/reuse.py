"""Which block of a prompt goes first, learned from what came back.

Blocks of prompts come back at ages that depend on what they are: the third turn of a conversation is
likely to be asked for again soon, a prompt nobody has continued hardly ever. :class:`ReuseOrder`
learns that while it serves. A block's *kind* is the turn it was made in and how often it was used;
its *age* is how many uses of any block ago its last use was. For each kind it counts at what ages
blocks came back, and gives a block of some age the worth

    max over h of   P(comes back within h more) / E[ages it takes up until then, at most h]

which is the index of Gittins (1979) for the question "hold on, or let go?", and the hit density of
Beckmann, Chen and Cidon (*LHD*, NSDI 2018) without their sampling: within a kind the longest unused
block has the front seat, so only the fronts are compared. What was evicted is remembered for a while,
without which nobody would learn what holding on longer had brought; what is still waiting counts as
having waited (censoring). Nothing is tuned to a trace and nothing looks ahead.

The order of victims: expired first, then what a conversation's next turn has superseded, then low
before medium before high priority, then the smallest worth, then the longest unused; what is kept
on purpose goes last, and of that what is pinned. A block that many have built on (a system prompt) ages ``SHARED_AGE`` times as
fast as others, so it outlives them without outliving its use. Only what was offered can go: the
caller offers a block when nobody reads it and nothing cached builds on it, so tails go before heads.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from typing import Final, Generic, Literal, TypeVar

from policies.eviction import Priority

K = TypeVar("K", bound=Hashable)
Kind = tuple[int, int]
"""Turn and uses, both bounded."""

MOST_TURNS: Final = 3
MOST_USES: Final = 3
BUCKETS: Final = 40
EDGES: Final = (0.0, *(8.0 * 1.5**step for step in range(BUCKETS)))
"""Ages at which buckets begin; the last is open."""
RELEARN_AFTER: Final = 2000
"""Observations, or a quarter of the known blocks if that is more, between two looks at the counts."""
PRIOR: Final = 8.0
"""Observations of all kinds that a kind starts with."""
MOST_SAMPLED: Final = 4096
"""Waiting blocks that are looked at each time: the step that evicts must not be felt."""
GHOSTS: Final = 4
"""Evicted blocks remembered for each one that is cached."""
FORGET_AT: Final = 400_000.0
"""Observations after which all counts are halved, so that old habits fade."""

SHARED_AGE: Final = 0.125
"""How fast a block ages that many have built on, beside one."""

Standing = Literal["superseded", "usual", "kept", "pinned"]
"""Of an offered block: worth nothing by now, as its priority says, or to be let go last."""

_RANK: Final[dict[Priority, int]] = {"low": 1, "medium": 2, "high": 3}
_BESIDE: Final[dict[Standing, int]] = {"superseded": 0, "kept": 4, "pinned": 5}
_RANKS: Final = 6


class ReuseModel:
    """What is known about when blocks come back, by kind."""

    def __init__(self) -> None:
        self._came_back: dict[Kind, list[float]] = {}
        self._gave_up: dict[Kind, list[float]] = {}
        self._worth: dict[Kind, list[float]] = {}
        self.observations = 0.0

    def observe(self, kind: Kind, age: float, *, came_back: bool) -> None:
        """A block of this kind was used again at ``age``, or is remembered no longer."""
        counts = self._came_back if came_back else self._gave_up
        buckets = counts.get(kind)
        if buckets is None:
            buckets = counts[kind] = [0.0] * BUCKETS
        buckets[bucket_of(age)] += 1.0
        self.observations += 1.0

    def worth(self, kind: Kind, age: float) -> float:
        """What a block is worth holding on to; infinite for kinds nothing is known of."""
        known = self._worth.get(kind)
        return inf if known is None else known[bucket_of(age)]

    def learn(self, waiting: dict[Kind, list[float]]) -> None:
        """Work out the worth of each kind; ``waiting`` counts blocks by kind and bucket of age."""
        kinds = self._came_back.keys() | self._gave_up.keys() | waiting.keys()
        none = [0.0] * BUCKETS
        back = {kind: self._came_back.get(kind, none) for kind in kinds}
        ended = {
            kind: [
                sum(three)
                for three in zip(
                    back[kind],
                    self._gave_up.get(kind, none),
                    waiting.get(kind, none),
                    strict=True,
                )
            ]
            for kind in kinds
        }
        all_back = [sum(column) for column in zip(*back.values(), strict=True)] or none
        all_ended = [sum(column) for column in zip(*ended.values(), strict=True)] or none
        share = PRIOR / max(sum(all_ended), 1.0)
        for kind in kinds:
            self._worth[kind] = index_by_bucket(
                [own + share * of_all for own, of_all in zip(back[kind], all_back, strict=True)],
                [own + share * of_all for own, of_all in zip(ended[kind], all_ended, strict=True)],
            )
        if self.observations > FORGET_AT:
            self._halve()

    def _halve(self) -> None:
        for counts in (self._came_back, self._gave_up):
            for buckets in counts.values():
                buckets[:] = [count / 2 for count in buckets]
        self.observations /= 2


def bucket_of(age: float) -> int:
    """The bucket of an age."""
    return min(bisect_right(EDGES, age) - 1, BUCKETS - 1)


def index_by_bucket(came_back: list[float], ended: list[float]) -> list[float]:
    """The worth at the beginning of each bucket.

    ``came_back`` and ``ended`` count lives by the bucket they ended in, the first those that ended
    in a use. A life ends on average in the middle of its bucket.
    """
    alive = [0.0] * (BUCKETS + 1)
    for bucket in range(BUCKETS - 1, -1, -1):
        alive[bucket] = alive[bucket + 1] + ended[bucket]
    held = [
        (alive[bucket] + alive[bucket + 1]) / 2 * (EDGES[bucket + 1] - EDGES[bucket])
        for bucket in range(BUCKETS)
    ]
    worth = [0.0] * BUCKETS
    for start in range(BUCKETS):
        hits = time = best = 0.0
        for bucket in range(start, BUCKETS):
            hits += came_back[bucket]
            time += held[bucket]
            if time > 0.0:
                best = max(best, hits / time)
        worth[start] = best
    return worth


class _Known:
    """A block that is cached, or was."""

    __slots__ = ("expires_at", "last", "rank", "shared", "stamp", "turn", "uses")

    def __init__(self, turn: int, last: int) -> None:
        self.turn = turn
        self.uses = 1
        self.last = last
        self.stamp = 0  # of its offer; 0: not offered
        self.rank = 0
        self.shared = False
        self.expires_at = inf

    @property
    def kind(self) -> Kind:
        return (min(self.turn, MOST_TURNS), min(self.uses, MOST_USES))


_Front = list[tuple[int, int, K]]
_Fronts = dict[tuple[Kind, bool], _Front[K]]
"""Of one rank: the longest unused in front, by kind and by whether many built on them."""


class ReuseOrder(Generic[K]):
    """Blocks in, victims out. O(log n) amortised per operation; no clock but that of uses.

    Kinds are few and bounded, so that comparing their fronts costs a constant.
    """

    def __init__(self) -> None:
        self._known: dict[K, _Known] = {}
        self._ghosts: OrderedDict[K, None] = OrderedDict()
        self._model = ReuseModel()
        self._fronts: tuple[_Fronts[K], ...] = tuple({} for _ in range(_RANKS))
        self._by_expiry: list[tuple[float, int, K]] = []
        self._offered = 0
        self._uses = 0
        self._stamp = 0
        self._learn_at = RELEARN_AFTER

    def add(self, key: K, *, turn: int) -> None:
        """``key`` is cached now and was used just now; one that was evicted lately is known again."""
        known = self._known.get(key)
        if known is None:
            self._uses += 1
            self._known[key] = _Known(turn, self._uses)
        else:
            self._ghosts.pop(key, None)
            self._use(known)

    def touch(self, key: K) -> None:
        """A use of ``key``, which is cached; an unknown key is ignored."""
        known = self._known.get(key)
        if known is not None:
            self._use(known)

    def turn_of(self, key: K) -> int | None:
        """The turn in which ``key`` was made, if it is cached or was lately."""
        known = self._known.get(key)
        return None if known is None else known.turn

    def offer(
        self,
        key: K,
        *,
        priority: Priority,
        expires_at: float,
        standing: Standing = "usual",
        shared: bool = False,
    ) -> None:
        """``key`` may be evicted from now on. Raises: KeyError for one that was never added."""
        known = self._known[key]
        if not known.stamp:
            self._offered += 1
        self._stamp += 1
        known.stamp, known.rank, known.expires_at = (
            self._stamp,
            _rank(priority, standing),
            expires_at,
        )
        known.shared = shared
        front = self._fronts[known.rank].setdefault((known.kind, shared), [])
        heappush(front, (known.last, known.stamp, key))
        if expires_at < inf:
            heappush(self._by_expiry, (expires_at, known.stamp, key))
        self._compact(front)

    def withdraw(self, key: K) -> None:
        """``key`` may not be evicted now; one that was not offered is left as it is."""
        known = self._known.get(key)
        if known is not None and known.stamp:
            known.stamp = 0
            self._offered -= 1

    def discard(self, key: K) -> None:
        """``key`` is gone for a reason of its own, and nothing is learned from that."""
        self.withdraw(key)
        self._ghosts.pop(key, None)
        self._known.pop(key, None)

    def pop(self, *, now: float) -> K | None:
        """Evict the least valuable of what is offered, or None when nothing is."""
        victim = self._pop_expired(now)
        if victim is None:
            victim = self._pop_cheapest()
        if victim is not None:
            self.withdraw(victim)
            self._ghosts[victim] = None
            while len(self._ghosts) > GHOSTS * (len(self._known) - len(self._ghosts)):
                forgotten, _ = self._ghosts.popitem(last=False)
                known = self._known.pop(forgotten)
                self._model.observe(known.kind, self._uses - known.last, came_back=False)
        return victim

    def __len__(self) -> int:
        return self._offered

    def __contains__(self, key: object) -> bool:
        known = self._known.get(key)  # type: ignore[arg-type]  # any object may be asked for
        return known is not None and known.stamp > 0

    def __repr__(self) -> str:
        return (
            f"<ReuseOrder {self._offered} offered, {len(self._known) - len(self._ghosts)} cached, "
            f"{len(self._ghosts)} remembered, {self._model.observations:.0f} observations>"
        )

    def _use(self, known: _Known) -> None:
        self._uses += 1
        self._model.observe(known.kind, self._uses - known.last, came_back=True)
        known.uses += 1
        known.last = self._uses
        if known.stamp:  # its place in the front is out of date
            known.stamp = 0
            self._offered -= 1

    def _pop_expired(self, now: float) -> K | None:
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, stamp, key = heappop(self._by_expiry)
            if self._is_current(key, stamp):
                return key
        return None

    def _pop_cheapest(self) -> K | None:
        if self._model.observations >= self._learn_at:
            self._learn()
        for fronts in self._fronts:
            best: tuple[float, float, K] | None = None
            for (kind, shared), front in fronts.items():
                while front and not self._is_current(front[0][2], front[0][1]):
                    heappop(front)
                if front:
                    last, _, key = front[0]
                    age = (self._uses - last) * (SHARED_AGE if shared else 1.0)
                    worth = self._model.worth(kind, age)
                    if best is None or (worth, -age) < best[:2]:
                        best = (worth, -age, key)
            if best is not None:
                return best[2]
        return None

    def _learn(self) -> None:
        waiting: dict[Kind, list[float]] = {}
        step = 1 + len(self._known) // MOST_SAMPLED
        for known in islice(self._known.values(), 0, None, step):
            buckets = waiting.setdefault(known.kind, [0.0] * BUCKETS)
            buckets[bucket_of(self._uses - known.last)] += step
        self._model.learn(waiting)
        pause = max(RELEARN_AFTER, len(self._known) // 4)
        self._learn_at = int(self._model.observations) + pause

    def _compact(self, front: _Front[K]) -> None:
        """Rebuild heaps in which most entries are out of date; amortised O(1)."""
        most = 2 * self._offered + 32
        if len(front) > most:
            front[:] = [one for one in front if self._is_current(one[2], one[1])]
            heapify(front)
        if len(self._by_expiry) > most:
            self._by_expiry = [one for one in self._by_expiry if self._is_current(one[2], one[1])]
            heapify(self._by_expiry)

    def _is_current(self, key: K, stamp: int) -> bool:
        known = self._known.get(key)
        return known is not None and known.stamp == stamp


def _rank(priority: Priority, standing: Standing) -> int:
    return _RANK[priority] if standing == "usual" else _BESIDE[standing]
