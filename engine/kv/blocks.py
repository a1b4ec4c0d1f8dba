"""Block ids and reference counts: who holds what. No tensor, no token, no time.

Every block of the pool is in exactly one state:

    free ──take──► held ──drop (last reference)──► idle ──give_back──► free
                    ▲                               │
                    └───────────── hold ────────────┘

free   content means nothing
held   references > 0: the blocks of running sequences
idle   no reference, content kept because the prefix index knows it
"""

from __future__ import annotations


class BlockPool:
    """Hands out block ids 0 … total-1 and counts the references to each.

    Misuse (dropping what nobody holds) is a fault of the engine and raises `AssertionError`.
    """

    __slots__ = ("_free", "_held", "_idle", "_references", "total_blocks")

    def __init__(self, total_blocks: int) -> None:
        assert total_blocks > 0
        self.total_blocks = total_blocks
        self._free = list(range(total_blocks - 1, -1, -1))  # a stack: low ids first, reused warm
        self._references = [0] * total_blocks
        self._held = 0
        self._idle: set[int] = set()

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def held_blocks(self) -> int:
        return self._held

    @property
    def idle_blocks(self) -> int:
        return len(self._idle)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int:
        """A free block becomes held, with one reference. There must be one: ask `free_blocks`."""
        block = self._free.pop()
        self._references[block] = 1
        self._held += 1
        return block

    def hold(self, block: int) -> None:
        """One more reference to a held or idle block."""
        if self._references[block] == 0:
            assert block in self._idle, f"block {block} is free and cannot be held"
            self._idle.remove(block)
            self._held += 1
        self._references[block] += 1

    def drop(self, block: int) -> int:
        """One reference less; returns how many are left. At 0 the block is idle."""
        left = self._references[block] - 1
        assert left >= 0, f"block {block} was dropped more often than held"
        self._references[block] = left
        if left == 0:
            self._held -= 1
            self._idle.add(block)
        return left

    def give_back(self, block: int) -> None:
        """An idle block becomes free; its content is forgotten."""
        self._idle.remove(block)
        self._free.append(block)

    def check_integrity(self) -> None:
        """Every block is in exactly one state, and the counts agree. Raises `AssertionError`."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & self._idle, "a block is free and idle"
        for block, references in enumerate(self._references):
            assert references >= 0
            kept = block in free or block in self._idle
            assert kept == (references == 0), f"block {block}: {references} references, kept={kept}"
        held = self.total_blocks - len(free) - len(self._idle)
        assert held == self._held, f"{held} blocks are held, counted {self._held}"

    def __repr__(self) -> str:
        return (
            f"BlockPool(total={self.total_blocks} free={self.free_blocks}"
            f" held={self.held_blocks} idle={self.idle_blocks})"
        )
