"""How many bytes of blocks a salt may keep, and which of its own go when it has more.

A quota bounds what is *kept*: published blocks, whether a running sequence uses them or not. A salt that
is to keep another block at its quota gives one of its own up first, the least valuable that nobody uses
(`policies.eviction`), and when it has none to give the new one is not kept. So a quota never costs another
salt a block. What a running sequence computes with is not kept yet, is not counted, and is found room for
like anybody's: a request is served whatever its salt's quota is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from engine.kv.retention import Retention
from policies.eviction import EvictionOrder

MOST_SALTS: Final = 16_384
"""Quotas that are remembered; the one set longest ago is forgotten first."""


class Quotas:
    """Blocks by salt. Says what is over and which block goes; the index lets it go."""

    def __init__(self, block_bytes: int) -> None:
        assert block_bytes > 0
        self.block_bytes = block_bytes
        self._limits: OrderedDict[str, int] = OrderedDict()
        self.blocks_kept: Counter[str] = Counter()
        self._orders: dict[str, EvictionOrder[bytes]] = {}
        self._rested = 0

    def limit_bytes(self, salt: str) -> int | None:
        """The quota of a salt, None for none."""
        return self._limits.get(salt)

    def used_bytes(self, salt: str) -> int:
        """What the salt keeps now."""
        return self.blocks_kept[salt] * self.block_bytes

    def set(self, salt: str, limit_bytes: int | None) -> bool:
        """From now on; None takes it away. Whether that is news: then `rests` is owed its idle blocks."""
        if limit_bytes is None:
            self._orders.pop(salt, None)
            return self._limits.pop(salt, None) is not None
        news = salt not in self._limits
        self._limits[salt] = limit_bytes
        self._limits.move_to_end(salt)
        if news:
            self._orders[salt] = EvictionOrder()
        while len(self._limits) > MOST_SALTS:
            oldest, _ = self._limits.popitem(last=False)
            self._orders.pop(oldest, None)
        return news

    def over(self, salt: str, *, coming: int = 0) -> bool:
        """Whether the salt has more than it may keep, with so many blocks coming."""
        limit = self._limits.get(salt)
        return limit is not None and (self.blocks_kept[salt] + coming) * self.block_bytes > limit

    def victim(self, salt: str, *, now: float) -> bytes | None:
        """Which block of the salt goes first; None when all it has are used, pinned or built on."""
        order = self._orders.get(salt)
        return None if order is None else order.pop(now=now)

    # -- what the index tells ----------------------------------------------------------------------

    def kept(self, salt: str) -> None:
        """A block of the salt is published."""
        self.blocks_kept[salt] += 1

    def gone(self, salt: str, key: bytes) -> None:
        """It is kept no more."""
        self.blocks_kept[salt] -= 1
        if not self.blocks_kept[salt]:
            del self.blocks_kept[salt]
        self.used(salt, key)

    def rests(self, salt: str, key: bytes, retention: Retention) -> None:
        """Nobody uses it and nothing builds on it."""
        order = self._orders.get(salt)
        if order is not None and not retention.pinned:
            self._rested += 1
            order.add(
                key,
                priority=retention.priority,
                expires_at=retention.expires_at,
                cost=1.0,
                size=1.0,
                now=float(self._rested),  # which rested first; no clock is needed for that
            )

    def used(self, salt: str, key: bytes) -> None:
        """Somebody uses it again, or builds on it."""
        order = self._orders.get(salt)
        if order is not None:
            order.discard(key)

    def __repr__(self) -> str:
        return (
            f"Quotas({len(self.blocks_kept)} salts keep blocks, {len(self._limits)} have a quota)"
        )
