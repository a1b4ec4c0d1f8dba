"""What a tier below the pool holds, and what goes first from it. No bytes, no files, no clock.

A shelf is the directory of one tier: keys, whose they are, until when they are worth keeping, and where
they lie. `policies.reuse` says what goes when room is needed, as in the pool: expired first, then by
priority, then by what came back; and only what nothing on the shelf builds on, so tails go before heads.

A child may be on the shelf before its parent (the pool evicts tails first), so who builds on whom is
kept by key, whether the parent is here or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.kv.retention import Retention
from engine.request import Tier
from policies.reuse import ReuseOrder


@dataclass(slots=True, eq=False)
class Item:
    """One block of a tier.

    salt        its digest (`blob.salt_digest`)
    wanted      its retention, in seconds of the wall clock
    shared      many have built on it; superseded: its conversation has gone on without it
    place       where it lies: a slot of the file, or -1
    readers     it is being read so many times over and must stay where it is
    gone        it was evicted or invalidated: what was read of it must not be used
    held        its bytes, as long as they are in memory
    """

    key: bytes
    parent: bytes
    salt: bytes
    wanted: Retention
    turn: int = 1
    shared: bool = False
    superseded: bool = False
    place: int = -1
    readers: int = 0
    gone: bool = False
    held: Any = None


class Shelf:
    """The blocks of one tier, at most `most` of them. O(log n) for each operation."""

    def __init__(self, most: int, *, tiers_below: tuple[Tier, ...] = ()) -> None:
        self.most = most
        self._tiers_below = tiers_below
        self._items: dict[bytes, Item] = {}
        self._children: dict[bytes, set[bytes]] = {}
        self._by_salt: dict[bytes, set[bytes]] = {}
        self._order: ReuseOrder[bytes] = ReuseOrder()

    def get(self, key: bytes) -> Item | None:
        return self._items.get(key)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def put(self, item: Item, *, now: float) -> Item | None:
        """Take a block in that is not here. Returns who had to go for it: perhaps the newcomer itself.

        `now` is of the wall clock, as expiries are.
        """
        assert item.key not in self._items
        self._items[item.key] = item
        self._children.setdefault(item.parent, set()).add(item.key)
        self._by_salt.setdefault(item.salt, set()).add(item.key)
        self._order.withdraw(item.parent)
        self._order.add(item.key, turn=item.turn)
        self._offer(item)
        if len(self._items) <= self.most:
            return None
        victim = self._order.pop(now=now)
        if victim is None:  # all are being read, or something builds on them
            self._order.discard(item.key)
        gone = item if victim is None else self._items[victim]
        self._forget(gone)
        return gone

    def use(self, item: Item) -> None:
        """It was asked for."""
        self._order.touch(item.key)
        self._offer(item)

    def retain(self, item: Item, wanted: Retention, *, superseded: bool, now: float) -> None:
        """This is wanted of it too; superseded or not is as it is said last."""
        item.wanted = item.wanted.merged(wanted, now=now)
        item.superseded = superseded
        self._offer(item)

    def open(self, item: Item) -> None:
        """Somebody reads it: it stays where it is until `close`."""
        item.readers += 1
        self._order.withdraw(item.key)

    def close(self, item: Item) -> None:
        """A reader is done with it."""
        item.readers -= 1
        if not item.gone:
            self._offer(item)

    def remove(self, item: Item) -> None:
        """It is not here any more, for a reason of its own."""
        if not item.gone:
            self._order.discard(item.key)
            self._forget(item)

    def of_salt(self, salt: bytes | None) -> list[Item]:
        """All blocks of a salt; None: of all."""
        if salt is None:
            return list(self._items.values())
        return [self._items[key] for key in self._by_salt.get(salt, ())]

    def below(self, keys: Iterable[bytes]) -> list[Item]:
        """The blocks with these keys and all that is known to build on them."""
        found: dict[bytes, Item] = {}
        waiting = list(keys)
        seen = set(waiting)
        while waiting:
            key = waiting.pop()
            if key in self._items:
                found[key] = self._items[key]
            fresh = self._children.get(key, set()) - seen
            seen |= fresh
            waiting.extend(fresh)
        return list(found.values())

    def _offer(self, item: Item) -> None:
        """It may go, unless it is being read or something here builds on it."""
        if not item.readers and item.key not in self._children:
            self._order.withdraw(item.key)
            wanted = item.wanted
            self._order.offer(
                item.key,
                priority=wanted.priority,
                expires_at=wanted.expires_at,
                standing=wanted.standing(superseded=item.superseded, below=self._tiers_below),
                shared=item.shared,
            )

    def _forget(self, item: Item) -> None:
        item.gone = True
        del self._items[item.key]
        _discard(self._by_salt, item.salt, item.key)
        _discard(self._children, item.parent, item.key)
        parent = self._items.get(item.parent)
        if parent is not None:
            self._offer(parent)

    def check_integrity(self) -> None:
        """Directory and order tell the same story. Raises `AssertionError`."""
        assert len(self._items) <= self.most
        for key, item in self._items.items():
            assert item.key == key
            assert not item.gone
            assert key in self._by_salt[item.salt]
            assert key in self._children[item.parent]
            leaf = key not in self._children
            assert (key in self._order) == (leaf and not item.readers)
        assert sum(map(len, self._by_salt.values())) == len(self._items)
        assert sum(map(len, self._children.values())) == len(self._items)

    def __repr__(self) -> str:
        return f"Shelf({len(self._items)} of {self.most} blocks)"


def _discard(sets: dict[bytes, set[bytes]], name: bytes, key: bytes) -> None:
    members = sets[name]
    members.discard(key)
    if not members:
        del sets[name]
