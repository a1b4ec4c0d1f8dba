"""What is cleared away goes everywhere: the stores and the other processes.

The stores bar what is still on its way (:mod:`gateway.store.bars`). An entry that another process
keeps in its memory must go from there too: processes tell each other what they cleared. One that may
have missed something forgets all it has in memory, which costs it hits and nothing else.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.recall import Recall
from gateway.store.bars import as_message, key_bar, of_message
from gateway.store.base import Selector, StoreError
from gateway.store.sharing import MISSED, News
from gateway.store.tiers import Tiers
from policies.freshness import EntryMeta

TOPIC: Final = "clear"
REPLACED: Final = "replaced"


class Clearings:
    """The clearings of one gateway, its own and those it heard of."""

    def __init__(self, store: Tiers, recall: Recall, news: News | None) -> None:
        self._store = store
        self._recall = recall
        self._news = news
        if news is not None:
            news.listen(TOPIC, self._heard)
            news.listen(MISSED, self._heard_of_a_gap)
            news.listen(REPLACED, self._heard_of_a_new_one)

    async def clear(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant, now and in all processes. Raises: StoreError, after trying all."""
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

    async def replaced(self, meta: EntryMeta) -> None:
        """An entry was computed anew: the others forget the older one that they may have."""
        if self._news is not None:
            with suppress(StoreError):  # at worst theirs lives as long as it would have
                await self._news.tell(REPLACED, as_message(key_bar(meta)))

    async def _heard(self, message: Mapping[str, Any]) -> None:
        await self._forget(of_message(message))

    async def _heard_of_a_gap(self, _: Mapping[str, Any]) -> None:
        await self._forget(Selector(None))

    async def _heard_of_a_new_one(self, message: Mapping[str, Any]) -> None:
        await self._store.forget(of_message(message))

    async def _forget(self, selector: Selector) -> None:
        gone = await self._store.forget(selector)
        self._recall.left((meta.key for meta in gone), "invalidated")

    def __repr__(self) -> str:
        return f"<Clearings in {self._store!r}>"
