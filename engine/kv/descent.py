"""What the pool lets go of, on its way down: into memory beside it, or onto the disk.

    evicted      written behind: copied at once, written by a thread, dropped if that one cannot keep up
    published    written ahead while there is time, so that an eviction finds it there and a kill costs little

What has expired, was superseded by the next turn of its conversation, or may not move so far by its
ceiling is not worth it. Low priority is written only when the pool lets go of it and the disk has room.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from engine.kv.ascent import BlockStore
from engine.kv.choice import Choice
from engine.kv.keeper import Kept
from engine.kv.prefix import PrefixIndex
from engine.kv.retention import Retention
from engine.kv.stock import Disk, Goods, Memory
from engine.request import Priority, Tier

WORTH_WRITING: Final[tuple[Priority, ...]] = ("high", "medium")
"""Priorities that are written ahead, in this order."""


class Descent:
    """Decides what goes down, and has it carried. `wall` is the wall clock, `now` the engine's."""

    def __init__(
        self,
        index: PrefixIndex,
        store: BlockStore,
        *,
        warm: Memory | None,
        cold: Disk | None,
        choice: Choice,
        wall: Callable[[], float],
    ) -> None:
        self.warm = warm
        self.cold = cold
        self._index = index
        self._store = store
        self._choice = choice
        self._wall = wall
        self._ahead: dict[Priority, deque[bytes]] = {
            # what is not in the pool any more is passed over, so the pool bounds what matters
            priority: deque(maxlen=2 * index.pool.total_blocks)
            for priority in WORTH_WRITING
        }

    def evicted(self, kept: Kept, *, now: float) -> None:
        """The pool is about to give a block's place to another."""
        wall = self._wall()
        wanted = _on_the_wall(kept.wanted, wall - now)
        if wanted.expires_at > wall:
            if self.warm is not None and wanted.may_move_to("warm"):
                self._to_warm(self.warm, kept, wanted, wall=wall)
            elif self.cold is not None:
                self._to_cold(self.cold, kept, wanted, wall=wall)

    def narrowed(self, key: bytes, wanted: Retention) -> None:
        """What went down before anybody said that it must not lie so far down goes."""
        if self.warm is not None and not wanted.may_move_to("warm"):
            in_memory = self.warm.shelf.get(key)
            if in_memory is not None:
                self.warm.forget([in_memory])
        if self.cold is not None and not wanted.may_move_to("cold"):
            on_disk = self.cold.shelf.get(key)
            if on_disk is not None:
                self.cold.drop(on_disk, now=self._wall())

    def _to_warm(self, warm: Memory, kept: Kept, wanted: Retention, *, wall: float) -> None:
        known = warm.shelf.get(kept.identity.key)
        if known is not None:
            warm.keep(known, wanted, superseded=kept.superseded, now=wall)
        elif not kept.superseded:
            gone = warm.put(self._goods(kept, wanted), now=wall)
            self._moved(kept, "warm")
            if gone is not None and self.cold is not None and gone.wanted.expires_at > wall:
                self._further(self.cold, gone, wall=wall)

    def _further(self, cold: Disk, goods: Goods, *, wall: float) -> None:
        """What the warm tier has no room for."""
        known = cold.shelf.get(goods.identity.key)
        if known is not None:
            cold.keep(known, goods.wanted, superseded=False, now=wall)
        elif self._worth_writing(cold, goods.wanted, wall):
            cold.put(goods, now=wall)

    def _to_cold(self, cold: Disk, kept: Kept, wanted: Retention, *, wall: float) -> bool:
        """Whether it is being written."""
        known = cold.shelf.get(kept.identity.key)
        if known is not None:
            cold.keep(known, wanted, superseded=kept.superseded, now=wall)
        elif not kept.superseded and self._worth_writing(cold, wanted, wall):
            self._moved(kept, "cold")
            return cold.put(self._goods(kept, wanted), now=wall)
        return False

    def _worth_writing(self, cold: Disk, wanted: Retention, wall: float) -> bool:
        if not wanted.may_move_to("cold"):
            return False
        if not self._takes(cold, wall):
            return False
        if wanted.priority not in WORTH_WRITING and len(cold.shelf) >= cold.shelf.most:
            return False
        if cold.spare_writes <= 0:  # asked before a block is copied for nothing
            cold.counts.dropped += 1
            return False
        return True

    def _takes(self, cold: Disk, wall: float) -> bool:
        """Whether the disk is written to at all, just now."""
        return cold.may_write(now=wall) and not self._choice.is_off("cold")

    def _goods(self, kept: Kept, wanted: Retention) -> Goods:
        payload = self._store.export_block(kept.block)
        return Goods(kept.identity, kept.salt, wanted, kept.turn, kept.shared, payload)

    def _moved(self, kept: Kept, to: Tier) -> None:
        events, tokens = self._index.keeper.events, self._index.block_tokens
        events.note("moved", kept.identity.key, salt=kept.salt, tokens=tokens, cause=to)

    def published(self, key: bytes, wanted: Retention) -> None:
        """A block became findable."""
        self.narrowed(key, wanted)
        if self.cold is not None and wanted.priority in self._ahead:
            self._ahead[wanted.priority].append(key)

    def write_ahead(self, most: int, *, now: float) -> int:
        """Write blocks of the pool that are not on disk yet; how many."""
        cold, wall = self.cold, self._wall()
        written = 0
        if cold is None or not self._takes(cold, wall):
            return 0  # and who waits goes on waiting
        for waiting in self._ahead.values():
            while waiting and written < most and cold.spare_writes > 0:
                kept = self._index.kept(waiting.popleft())
                if kept is None or kept.identity.key in cold.shelf:
                    continue
                wanted = _on_the_wall(kept.wanted, wall - now)
                if wanted.expires_at > wall:
                    written += self._to_cold(cold, kept, wanted, wall=wall)
        return written


def _on_the_wall(wanted: Retention, ahead_s: float) -> Retention:
    """A retention in seconds of the engine's clock, on one that is so far ahead.

    A pin is a promise of the pool; below it says no more than that the block is worth much.
    """
    priority = "high" if wanted.pinned else wanted.priority
    return Retention(
        priority,
        math.inf if wanted.pinned else wanted.expires_at + ahead_s,
        floor=wanted.floor,
        ceiling=wanted.ceiling,
    )
