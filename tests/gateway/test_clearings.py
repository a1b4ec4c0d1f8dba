"""What is cleared away goes from this process's memory and is told to the others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.clearings import Clearings
from gateway.recall import Recall
from gateway.store.bars import as_message, of_message
from gateway.store.base import Entry, Selector, Since, StoreError
from gateway.store.memory import MemoryStore
from gateway.store.sharing import MISSED, Listener
from gateway.store.tiers import Tiers
from tests.kit.entries import NOW, entry_of, key_of, meta_of


class Wire:
    """News that stay here: what was told, and who listens."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.listeners: dict[str, Listener] = {}

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        self.told.append((topic, message))

    def listen(self, topic: str, listener: Listener) -> None:
        self.listeners[topic] = listener


class Broken(MemoryStore):
    """A store that removes nothing."""

    async def remove(self, selector: Selector) -> list[Any]:
        raise StoreError("down")


async def lands(store: Tiers, entry: Entry, since: Since) -> bool:
    """Whether the answer of a flight that began then is still stored."""
    return (await store.put(replace(entry, since=since), now=NOW)).kept


@pytest.mark.parametrize(
    "selector",
    [
        Selector(None),
        Selector("t", tag="x"),
        Selector("t", viewer="alice", circles=("one", "two")),
        Selector("t", key=key_of("a"), tier="hot", cache_key="", prefix="é", user="\n"),
    ],
)
def test_a_selector_travels_as_json(selector: Selector) -> None:
    assert of_message(as_message(selector)) == selector


async def test_a_clearing_is_done_here_and_told() -> None:
    store, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Wire()
    clearings = Clearings(store, Recall(), wire)
    before = store.since()
    await store.put(entry_of("a", tags=("x",)), now=NOW)
    gone = await clearings.clear(Selector("t", tag="x"))
    assert [meta.key for meta in gone] == [key_of("a")]
    assert wire.told == [("clear", {"tenant": "t", "tag": "x"})] * 2
    assert not await lands(store, entry_of("b", tags=("x",)), before)
    assert await lands(store, entry_of("b"), before)
    assert await lands(store, entry_of("b", tags=("x",)), store.since())


async def test_the_others_know_before_it_goes_and_forget_once_more_after() -> None:
    seen: list[tuple[str, bool]] = []

    class Watching(Wire):
        async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
            there = await store.get(key_of("a"), now=NOW) is not None
            seen.append((topic, there))
            if there:
                raise StoreError("the first word is lost")

    store = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)})
    await store.put(entry_of("a"), now=NOW)
    await Clearings(store, Recall(), Watching()).clear(Selector("t"))
    assert seen == [("clear", True), ("clear", False)]


async def test_the_others_are_told_even_when_our_store_fails() -> None:
    wire = Wire()
    clearings = Clearings(Tiers({"warm": Broken("warm", max_bytes=10_000)}), Recall(), wire)
    with pytest.raises(StoreError):
        await clearings.clear(Selector("t"))
    assert wire.told == [("clear", {"tenant": "t"})] * 2


async def test_what_others_cleared_goes_from_memory_and_from_the_flights() -> None:
    store, recall, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Recall(), Wire()
    Clearings(store, recall, wire)
    before = store.since()
    await store.put(entry_of("a", tags=("x",)), now=NOW)
    await store.put(entry_of("b"), now=NOW)
    await wire.listeners["clear"]({"tenant": "t", "tag": "x"})
    assert await store.get(key_of("a"), now=NOW) is None
    assert await store.get(key_of("b"), now=NOW) is not None
    assert recall.departure(key_of("a")) == "invalidated"
    assert not await lands(store, entry_of("c", tags=("x",)), before)
    assert wire.told == []


async def test_who_may_have_missed_something_forgets_what_it_has_in_memory() -> None:
    store, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Wire()
    clearings = Clearings(store, Recall(), wire)
    await store.put(entry_of("a"), now=NOW)
    await wire.listeners[MISSED]({})
    assert await store.get(key_of("a"), now=NOW) is None
    assert repr(clearings) == f"<Clearings in {store!r}>"


async def test_what_was_computed_anew_the_others_forget_and_only_that() -> None:
    store, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Wire()
    clearings = Clearings(store, Recall(), wire)
    await store.put(entry_of("a"), now=NOW)
    await store.put(entry_of("b"), now=NOW)
    before = store.since()
    await clearings.replaced(meta_of("a"))
    ((topic, message),) = wire.told
    assert await store.get(key_of("a"), now=NOW) is not None
    await wire.listeners[topic](message)
    assert await store.get(key_of("a"), now=NOW) is None
    assert await store.get(key_of("b"), now=NOW) is not None
    assert not await lands(store, entry_of("a"), before)
    assert await lands(store, entry_of("b"), before)


async def test_that_the_others_could_not_be_told_of_a_new_answer_fails_nothing() -> None:
    class Silent(Wire):
        async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
            raise StoreError("scripted")

    store = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)})
    await Clearings(store, Recall(), Silent()).replaced(meta_of("a"))
    await Clearings(store, Recall(), None).replaced(meta_of("a"))
