"""What a cache would have done: prompts as chains of blocks against an order of eviction.

``kvgate replay`` and the benchmarks run the orders that serve, over traces of block ids.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Final, Protocol

from policies.reuse import ReuseOrder

Block = int
Chain = Sequence[Block]
"""A prompt: the ids of its blocks from its start. An id stands for everything before it, too."""


@dataclass(slots=True)
class Score:
    """What was asked for, and found with everything before it."""

    lookups: int = 0
    hits: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of lookups, 0 to 1."""
        return self.hits / self.lookups if self.lookups else 0.0


class Cache(Protocol):
    """A bounded set of blocks."""

    evictions: int

    def request(self, chain: Chain) -> int:
        """One prompt: how many of its leading blocks were there. Then all of them are, if they fit."""
        ...


def replay(cache: Cache, prompts: Iterable[Chain]) -> Score:
    """Run all prompts through ``cache`` in their order."""
    score = Score()
    for chain in prompts:
        score.lookups += len(chain)
        score.hits += cache.request(chain)
    score.evictions = cache.evictions
    return score


def leading(chain: Chain, there: Container[Block]) -> int:
    """How many blocks from the start of ``chain`` are ``there``."""
    return next((at for at, block in enumerate(chain) if block not in there), len(chain))


class Learned:
    """:class:`~policies.reuse.ReuseOrder`, driven as the engine drives it."""

    def __init__(self, capacity: int) -> None:
        self.evictions = 0
        self._capacity = capacity
        self._order: ReuseOrder[Block] = ReuseOrder()
        self._parent: dict[Block, Block | None] = {}
        self._children: dict[Block, int] = {}

    def request(self, chain: Chain) -> int:
        """See :class:`Cache`."""
        hits = leading(chain, self._parent)
        turn = 1 + max((self._order.turn_of(block) or 0 for block in chain), default=0)
        parent: Block | None = None
        for block in chain:
            if block in self._parent:
                self._order.touch(block)
            else:
                self._order.add(block, turn=turn)
                self._parent[block] = parent
                self._children[block] = 0
                if parent is not None:
                    self._children[parent] += 1
                    self._order.withdraw(parent)
            parent = block
        for block in chain:
            self._offer(block)
        while len(self._parent) > self._capacity:
            self._evict()
        return hits

    def _offer(self, block: Block) -> None:
        if not self._children[block]:
            self._order.offer(block, priority="medium", expires_at=inf)

    def _evict(self) -> None:
        victim = self._order.pop(now=0.0)
        assert victim is not None, "every cached chain has an end, and that is offered"
        self.evictions += 1
        parent = self._parent.pop(victim)
        del self._children[victim]
        if parent is not None:
            self._children[parent] -= 1
            self._offer(parent)


class LeastRecentlyUsed:
    """LRU, the measure of all things."""

    def __init__(self, capacity: int) -> None:
        self.evictions = 0
        self._capacity = capacity
        self._held: OrderedDict[Block, None] = OrderedDict()

    def request(self, chain: Chain) -> int:
        """See :class:`Cache`."""
        hits = leading(chain, self._held)
        for block in chain:
            self._held.pop(block, None)
            self._held[block] = None
        while len(self._held) > self._capacity:
            self._held.popitem(last=False)
            self.evictions += 1
        return hits


class Optimal:
    """Belady's MIN (1966), which knows the future: the bound for every order."""

    _NEVER: Final = 2**62

    def __init__(self, capacity: int, prompts: Sequence[Chain]) -> None:
        self.evictions = 0
        self._capacity = capacity
        uses: dict[Block, list[int]] = {}
        for number in range(len(prompts) - 1, -1, -1):
            for block in prompts[number]:
                uses.setdefault(block, []).append(number)
        self._uses = uses
        self._next: dict[Block, int] = {}
        self._heap: list[tuple[int, int, Block]] = []

    def request(self, chain: Chain) -> int:
        """See :class:`Cache`."""
        hits = leading(chain, self._next)
        for depth, block in enumerate(chain):
            uses = self._uses[block]
            uses.pop()
            due = uses[-1] if uses else self._NEVER
            self._next[block] = due
            heappush(self._heap, (-due, -depth, block))
        while len(self._next) > self._capacity:
            # An entry that is out of date was due before now, and what is held is due later.
            _, _, block = heappop(self._heap)
            del self._next[block]
            self.evictions += 1
        return hits


@dataclass(frozen=True, slots=True)
class Lookup:
    """A stored answer was looked for. ``good``: a store without bound would have had a good one."""

    key: str
    size: float
    good: bool


def with_foresight(lookups: Sequence[Lookup], capacity: float) -> Score:
    """A store of answers that knows the future: of what is wanted again, the latest goes first.

    What is not wanted again while it is good takes no room. With answers of one size this is the
    optimum (Belady 1966); with different sizes none is known that could be computed, and this is close
    to it.
    """
    wanted = _wanted_again(lookups)
    held: dict[str, float] = {}
    heap: list[tuple[int, str]] = []
    score, taken = Score(lookups=len(lookups)), 0.0
    for place, lookup in enumerate(lookups):
        size = held.pop(lookup.key, None)
        if size is not None:
            taken -= size
            score.hits += lookup.good
        due = wanted[place]
        if due is None:
            continue
        held[lookup.key] = lookup.size
        taken += lookup.size
        heappush(heap, (-due, lookup.key))
        while taken > capacity:
            # Entries that are out of date were due before now, and what is held is due later.
            taken -= held.pop(heappop(heap)[1])
            score.evictions += 1
    return score


def _wanted_again(lookups: Sequence[Lookup]) -> list[int | None]:
    """For each look-up the place of the next one for its key, if that one may be a hit."""
    following: dict[str, int] = {}
    wanted: list[int | None] = [None] * len(lookups)
    for place in range(len(lookups) - 1, -1, -1):
        key = lookups[place].key
        later = following.get(key)
        if later is not None and lookups[later].good:
            wanted[place] = later
        following[key] = place
    return wanted
