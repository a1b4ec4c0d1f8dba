"""What is cleared away goes everywhere: the stores, the flights in the air, the other processes.

A flight that began before a clearing must not store its answer after it, and an entry that another
process keeps in its memory must go from there too. Processes tell each other what they cleared; one
that may have missed something forgets all it has in memory, which costs it hits and nothing else.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from gateway.recall import Recall
from gateway.store.base import Selector, StoreError
from gateway.store.sharing import MISSED, News
from gateway.store.tiers import Tiers
from policies.freshness import EntryMeta

TOPIC: Final = "clear"
REPLACED: Final = "replaced"
MOST_REMEMBERED: Final = 256
"""Clearings that flights in the air are held against; one that began before stores nothing."""


class Clearings:
    """The clearings of one gateway, its own and those it heard of."""

    def __init__(self, store: Tiers, recall: Recall, news: News | None) -> None:
        self._store = store
        self._recall = recall
        self._news = news
        self._lately: deque[tuple[int, Selector]] = deque(maxlen=MOST_REMEMBERED)
        self.count = 0
        if news is not None:
            news.listen(TOPIC, self._heard)
            news.listen(MISSED, self._heard_of_a_gap)
            news.listen(REPLACED, self._heard_of_a_new_one)

    async def clear(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant, now and in all processes. Raises: StoreError, after trying all."""
        self._note(selector)
        # Before, so that flights elsewhere store nothing behind our back; and after, for what rose
        # into their memory while it was still there to be read.
        with suppress(StoreError):
            await self._tell(selector)
        try:
            gone = await self._store.remove(selector)
        finally:
            await self._tell(selector)
        self._recall.left((meta.key for meta in gone), "invalidated")
        return gone

    async def _tell(self, selector: Selector) -> None:
        if self._news is not None:
            await self._news.tell(TOPIC, as_message(selector))

    async def replaced(self, key: bytes) -> None:
        """An entry was computed anew: the others forget the older one that they may have."""
        if self._news is not None:
            with suppress(StoreError):  # at worst theirs lives as long as it would have
                await self._news.tell(REPLACED, {"key": key.hex()})

    def cover(self, meta: EntryMeta, since: int) -> bool:
        """Whether such an entry was, or may have been, cleared away after the first ``since``."""
        if since < self.count - len(self._lately):  # some of them are no longer remembered
            return True
        return any(number > since and what.matches(meta) for number, what in self._lately)

    async def _heard(self, message: Mapping[str, Any]) -> None:
        await self._forget(of_message(message))

    async def _heard_of_a_gap(self, _: Mapping[str, Any]) -> None:
        await self._forget(Selector(None))

    async def _heard_of_a_new_one(self, message: Mapping[str, Any]) -> None:
        await self._store.forget(of_message(message))

    async def _forget(self, selector: Selector) -> None:
        self._note(selector)
        gone = await self._store.forget(selector)
        self._recall.left((meta.key for meta in gone), "invalidated")

    def _note(self, selector: Selector) -> None:
        self.count += 1
        self._lately.append((self.count, selector))

    def __repr__(self) -> str:
        return f"<Clearings {self.count} so far>"


def as_message(selector: Selector) -> dict[str, Any]:
    """The selector as JSON can carry it."""
    named = {name: value for name, value in asdict(selector).items() if value not in {None, ()}}
    if selector.key is not None:
        named["key"] = selector.key.hex()
    return named


def of_message(message: Mapping[str, Any]) -> Selector:
    """The selector that :func:`as_message` was given."""
    named = dict(message)
    if "key" in named:
        named["key"] = bytes.fromhex(named["key"])
    if "circles" in named:
        named["circles"] = tuple(named["circles"])
    return Selector(named.pop("tenant", None), **named)
