"""What is cleared away goes from this process's memory and is told to the others."""

from collections.abc import Mapping
from typing import Any

import pytest

from gateway.clearings import MOST_REMEMBERED, Clearings, as_message, of_message
from gateway.recall import Recall
from gateway.store.base import Selector, StoreError
from gateway.store.memory import MemoryStore
from gateway.store.sharing import MISSED, Listener
from gateway.store.tiers import Tiers
from tests.kit.entries import NOW, entry_of, key_of


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
    await store.put(entry_of("a", tags=("x",)), now=NOW)
    gone = await clearings.clear(Selector("t", tag="x"))
    assert [meta.key for meta in gone] == [key_of("a")]
    assert wire.told == [("clear", {"tenant": "t", "tag": "x"})] * 2
    assert clearings.cover(entry_of("b", tags=("x",)).meta, since=0)
    assert not clearings.cover(entry_of("b", tags=("x",)).meta, since=clearings.count)
    assert not clearings.cover(entry_of("b").meta, since=0)


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
    clearings = Clearings(store, recall, wire)
    await store.put(entry_of("a", tags=("x",)), now=NOW)
    await store.put(entry_of("b"), now=NOW)
    await wire.listeners["clear"]({"tenant": "t", "tag": "x"})
    assert await store.get(key_of("a"), now=NOW) is None
    assert await store.get(key_of("b"), now=NOW) is not None
    assert recall.departure(key_of("a")) == "invalidated"
    assert clearings.cover(entry_of("c", tags=("x",)).meta, since=0)
    assert wire.told == []


async def test_who_may_have_missed_something_forgets_what_it_has_in_memory() -> None:
    store, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Wire()
    clearings = Clearings(store, Recall(), wire)
    await store.put(entry_of("a"), now=NOW)
    await wire.listeners[MISSED]({})
    assert await store.get(key_of("a"), now=NOW) is None
    assert repr(clearings) == "<Clearings 1 so far>"


async def test_what_was_computed_anew_the_others_forget_and_only_that() -> None:
    store, wire = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Wire()
    clearings = Clearings(store, Recall(), wire)
    await store.put(entry_of("a"), now=NOW)
    await store.put(entry_of("b"), now=NOW)
    await clearings.replaced(key_of("a"))
    ((topic, message),) = wire.told
    assert await store.get(key_of("a"), now=NOW) is not None
    await wire.listeners[topic](message)
    assert await store.get(key_of("a"), now=NOW) is None
    assert await store.get(key_of("b"), now=NOW) is not None
    assert clearings.count == 0


async def test_that_the_others_could_not_be_told_of_a_new_answer_fails_nothing() -> None:
    class Silent(Wire):
        async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
            raise StoreError("scripted")

    store = Tiers({"warm": MemoryStore("warm", max_bytes=10_000)})
    await Clearings(store, Recall(), Silent()).replaced(key_of("a"))
    await Clearings(store, Recall(), None).replaced(key_of("a"))


async def test_more_clearings_than_are_remembered_cover_everything_that_began_before() -> None:
    clearings = Clearings(Tiers({"warm": MemoryStore("warm", max_bytes=10_000)}), Recall(), None)
    await clearings.clear(Selector("t", tag="secret"))
    for number in range(MOST_REMEMBERED):
        assert clearings.cover(entry_of("a", tags=("secret",)).meta, since=0)
        await clearings.clear(Selector("t", cache_key=str(number)))
    assert clearings.cover(entry_of("a", tags=("secret",)).meta, since=0)
    assert not clearings.cover(entry_of("a", tags=("secret",)).meta, since=1)
