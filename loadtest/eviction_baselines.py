"""Orders of eviction from the literature, for comparing: none of them serves.

Each looks at one block at a time, in the order of the prompt, and holds at most ``capacity``. A
prompt's hits are its leading blocks that are there when it comes (``policies.replay.Cache``).
"""

from collections import OrderedDict
from collections.abc import Container
from heapq import heappop, heappush
from typing import Final

from policies.replay import Block, Chain, leading

Queue = OrderedDict[Block, None]


class FirstIn:
    """FIFO: what came first goes first, used or not."""

    def __init__(self, capacity: int) -> None:
        self.evictions = 0
        self._capacity = capacity
        self._held: Queue = OrderedDict()

    def request(self, chain: Chain) -> int:
        """See :class:`policies.replay.Cache`."""
        hits = leading(chain, self._held)
        for block in chain:
            if block not in self._held:
                if len(self._held) == self._capacity:
                    self._held.popitem(last=False)
                    self.evictions += 1
                self._held[block] = None
        return hits


class LeastFrequentlyUsed:
    """LFU, the longest unused first among equals.

    With ``remembers`` a block that comes back goes on counting where it was when it was evicted,
    which takes memory for every block there ever was.
    """

    def __init__(self, capacity: int, *, remembers: bool = False) -> None:
        self.evictions = 0
        self._capacity = capacity
        self._remembers = remembers
        self._uses: dict[Block, int] = {}
        self._held: dict[Block, tuple[int, int]] = {}  # uses, time of the last
        self._heap: list[tuple[int, int, Block]] = []
        self._time = 0

    def request(self, chain: Chain) -> int:
        """See :class:`policies.replay.Cache`."""
        hits = leading(chain, self._held)
        for block in chain:
            if block not in self._held and len(self._held) == self._capacity:
                self._evict()
            self._time += 1
            uses = self._uses[block] = self._uses.get(block, 0) + 1
            self._held[block] = (uses, self._time)
            heappush(self._heap, (uses, self._time, block))
        return hits

    def _evict(self) -> None:
        while True:  # ends: every held block has its current entry in the heap
            uses, time, block = heappop(self._heap)
            if self._held.get(block) == (uses, time):
                break
        del self._held[block]
        self.evictions += 1
        if not self._remembers:
            del self._uses[block]


class AdaptiveReplacement:
    """ARC (Megiddo and Modha, FAST 2003), as in its figure 4.

    ``t1`` holds what was seen once lately, ``t2`` what was seen oftener; ``b1`` and ``b2`` remember
    what left them. A hit in ``b1`` says that ``t1`` should be larger, one in ``b2`` that ``t2`` should.
    """

    def __init__(self, capacity: int) -> None:
        self.evictions = 0
        self.target = 0.0
        """Blocks that ``t1`` should have (``p`` in the paper)."""
        self.t1: Queue = OrderedDict()
        self.t2: Queue = OrderedDict()
        self.b1: Queue = OrderedDict()
        self.b2: Queue = OrderedDict()
        self._capacity = capacity

    def request(self, chain: Chain) -> int:
        """See :class:`policies.replay.Cache`."""
        hits = leading(chain, _Either(self.t1, self.t2))
        for block in chain:
            self._access(block)
        return hits

    def _access(self, block: Block) -> None:
        size = self._capacity
        if block in self.t1 or block in self.t2:  # case I
            self.t1.pop(block, None)
            self.t2.pop(block, None)
            self.t2[block] = None
        elif block in self.b1:  # case II
            self.target = min(size, self.target + max(1.0, len(self.b2) / len(self.b1)))
            self._replace(in_b2=False)
            del self.b1[block]
            self.t2[block] = None
        elif block in self.b2:  # case III
            self.target = max(0.0, self.target - max(1.0, len(self.b1) / len(self.b2)))
            self._replace(in_b2=True)
            del self.b2[block]
            self.t2[block] = None
        else:  # case IV
            self._make_room_for_a_new_one()
            self.t1[block] = None

    def _make_room_for_a_new_one(self) -> None:
        size, seen_once = self._capacity, len(self.t1) + len(self.b1)
        known = seen_once + len(self.t2) + len(self.b2)
        if seen_once == size:
            if len(self.t1) < size:
                self.b1.popitem(last=False)
                self._replace(in_b2=False)
            else:
                self.t1.popitem(last=False)
                self.evictions += 1
        elif known >= size:
            if known == 2 * size:
                self.b2.popitem(last=False)
            self._replace(in_b2=False)

    def _replace(self, *, in_b2: bool) -> None:
        once = len(self.t1)
        if self.t1 and (once > self.target or (in_b2 and once == self.target)):
            block, _ = self.t1.popitem(last=False)
            self.b1[block] = None
        else:
            block, _ = self.t2.popitem(last=False)
            self.b2[block] = None
        self.evictions += 1


class S3Fifo:
    """S3-FIFO (Yang and others, SOSP 2023), as in its algorithm 1: a tenth is for newcomers."""

    SMALL: Final = 0.1
    MOST_USES: Final = 3

    def __init__(self, capacity: int) -> None:
        self.evictions = 0
        self.small: OrderedDict[Block, int] = OrderedDict()  # uses since the insertion
        self.main: OrderedDict[Block, int] = OrderedDict()
        self.ghosts: Queue = OrderedDict()
        self._capacity = capacity
        self._small_blocks = max(1, int(capacity * self.SMALL))

    def request(self, chain: Chain) -> int:
        """See :class:`policies.replay.Cache`."""
        hits = leading(chain, _Either(self.small, self.main))
        for block in chain:
            for queue in (self.small, self.main):
                if block in queue:
                    queue[block] = min(queue[block] + 1, self.MOST_USES)
                    break
            else:
                self._insert(block)
        return hits

    def _insert(self, block: Block) -> None:
        while len(self.small) + len(self.main) >= self._capacity:
            if len(self.small) >= self._small_blocks or not self.main:
                self._evict_from_small()
            else:
                self._evict_from_main()
        if block in self.ghosts:
            del self.ghosts[block]
            self.main[block] = 0
        else:
            self.small[block] = 0

    def _evict_from_small(self) -> None:
        while self.small:
            block, uses = self.small.popitem(last=False)
            if uses > 1:
                self.main[block] = 0
                continue
            self.evictions += 1
            self.ghosts[block] = None
            if len(self.ghosts) > self._capacity - self._small_blocks:
                self.ghosts.popitem(last=False)
            return

    def _evict_from_main(self) -> None:
        while True:  # ends: each round takes a use from a block
            block, uses = self.main.popitem(last=False)
            if not uses:
                self.evictions += 1
                return
            self.main[block] = uses - 1


class _Either(Container[Block]):
    """What is in one of two queues."""

    def __init__(self, one: Container[Block], other: Container[Block]) -> None:
        self._one = one
        self._other = other

    def __contains__(self, block: object) -> bool:
        return block in self._one or block in self._other
