"""Three tiers as one place: a key has one answer, wherever it lies."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from gateway.flights import Tasks
from gateway.store.base import Entry, Fill, Selector, Stored, StoreError
from gateway.store.memory import MemoryStore, footprint
from gateway.store.tiers import Tiers
from policies.freshness import EntryMeta
from policies.rules import TierName
from tests.kit.entries import NOW, entry_of, key_of
from tests.kit.timer import turns

TIERS: tuple[TierName, ...] = ("hot", "warm", "cold")


def tiers(max_bytes: int = 100_000) -> tuple[Tiers, dict[TierName, MemoryStore]]:
    stores = {tier: MemoryStore(tier, max_bytes=max_bytes) for tier in TIERS}
    return Tiers(dict(stores)), stores


@pytest.mark.parametrize("tier", TIERS)
async def test_an_entry_lies_in_the_tier_its_plan_named(tier: TierName) -> None:
    both, stores = tiers()
    entry = entry_of("a", tier=tier)
    assert (await both.put(entry, now=NOW)).kept
    assert [store.fill().entries for store in stores.values()] == [int(t == tier) for t in TIERS]
    assert await both.get(key_of("a"), now=NOW) == entry


async def test_storing_anew_in_another_tier_leaves_no_older_answer_behind() -> None:
    both, stores = tiers()
    await both.put(entry_of("a", b"old", tier="hot"), now=NOW)
    await both.put(entry_of("a", b"new", tier="cold"), now=NOW)
    found = await both.get(key_of("a"), now=NOW)
    assert found is not None
    assert found.body == b"new"
    assert stores["hot"].fill().entries == 0


async def test_a_new_answer_that_finds_no_room_anywhere_does_not_leave_the_old_one_standing() -> (
    None
):
    both, _ = tiers(max_bytes=5000)
    await both.put(entry_of("a", b"old", tier="hot"), now=NOW)
    assert not (await both.put(entry_of("a", b"x" * 9000, tier="cold"), now=NOW)).kept
    assert await both.get(key_of("a"), now=NOW) is None


async def test_tiers_have_their_own_room() -> None:
    both, _ = tiers(max_bytes=2000)
    for tier in TIERS:
        assert (await both.put(entry_of(tier, tier=tier), now=NOW)).evicted == []
    assert [fill.entries for fill in both.fills()] == [1, 1, 1]


async def test_entries_of_all_tiers_are_listed_in_one_order() -> None:
    both, _ = tiers()
    for number in range(9):
        await both.put(entry_of(str(number), tier=TIERS[number % 3]), now=NOW)
    first = await both.scan(Selector("t"), after=None, limit=5)
    rest = await both.scan(Selector("t"), after=first[-1].key, limit=5)
    keys = [meta.key for meta in (*first, *rest)]
    assert keys == sorted(key_of(str(number)) for number in range(9))


async def test_removing_goes_through_every_tier() -> None:
    both, _ = tiers()
    for tier in TIERS:
        await both.put(entry_of(tier, tier=tier, tags=("x",)), now=NOW)
    await both.put(entry_of("other"), now=NOW)
    gone = await both.remove(Selector("t", tag="x"))
    assert {meta.tier for meta in gone} == set(TIERS)
    assert sum(fill.entries for fill in both.fills()) == 1
    await both.close()
    assert sum(fill.entries for fill in both.fills()) == 0


async def test_a_failing_tier_is_the_callers_to_handle() -> None:
    class Broken(MemoryStore):
        async def get(self, key: bytes, *, now: float) -> None:
            raise StoreError("scripted")

    both = Tiers({"hot": Broken("hot", max_bytes=1)})
    with pytest.raises(StoreError):
        await both.get(b"k", now=NOW)


def test_its_state_can_be_read_off() -> None:
    both, _ = tiers()
    assert repr(both).startswith("<Tiers <MemoryStore hot: 0 entries")


def small() -> tuple[Tiers, dict[TierName, MemoryStore]]:
    """Room for two entries in each tier."""
    return tiers(max_bytes=2 * footprint(entry_of("a", b"x" * 900)))


async def fill_hot(both: Tiers, *names: str, **more: Any) -> list[Stored]:
    return [
        await both.put(entry_of(name, b"x" * 900, tier="hot", **more), now=NOW) for name in names
    ]


def where(stores: dict[TierName, MemoryStore]) -> list[int]:
    return [store.fill().entries for store in stores.values()]


async def test_what_a_full_tier_lets_go_sinks_to_the_bottom_and_only_then_is_lost() -> None:
    both, stores = small()
    stored = await fill_hot(both, *"abcdefg")
    assert where(stores) == [2, 2, 2]
    lost = [meta.key for one in stored for meta in one.evicted]
    assert lost == [key_of("a")]
    found = await both.get(key_of("b"), now=NOW)
    assert found is not None
    assert found.meta.tier == "cold"
    assert found.body == b"x" * 900


async def test_an_answer_that_is_worth_less_than_all_of_its_tier_starts_below() -> None:
    both, stores = small()
    await fill_hot(both, "a", "b", priority="high")
    stored = (await fill_hot(both, "c", priority="low"))[0]
    assert stored.kept
    assert stored.evicted == []
    assert where(stores) == [2, 1, 0]


async def test_what_expired_does_not_sink() -> None:
    both, stores = small()
    await fill_hot(both, "a", "b", ttl_s=1.0)
    late = entry_of("c", b"x" * 900, tier="hot", stored_at=NOW + 5)
    await both.put(late, now=NOW + 5)
    assert where(stores) == [2, 0, 0]


async def test_what_is_read_often_rises_one_tier_and_keeps_its_time() -> None:
    both, stores = tiers()
    entry = entry_of("a", tier="cold")
    await both.put(entry, now=NOW)
    seen = []
    for _ in range(8):
        found = await both.get(key_of("a"), now=NOW)
        assert found is not None
        seen.append(found.meta.tier)
        assert (found.meta.stored_at, found.meta.ttl_s) == (entry.meta.stored_at, entry.meta.ttl_s)
    assert seen == ["cold"] * 3 + ["warm"] * 3 + ["hot"] * 2
    assert where(stores) == [1, 0, 0]


class OnDisk(MemoryStore):
    """Says that it is no memory store; it can be made to fail."""

    broken = False

    def fill(self) -> Fill:
        return replace(super().fill(), store="disk")

    async def put(self, entry: Entry, *, now: float) -> Stored:
        if self.broken:
            raise StoreError("scripted")
        return await super().put(entry, now=now)

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        if self.broken:
            raise StoreError("scripted")
        return await super().get(key, now=now)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        if self.broken:
            raise StoreError("scripted")
        return await super().remove(selector)


def over_disk() -> tuple[Tiers, MemoryStore, OnDisk]:
    room = 2 * footprint(entry_of("a", b"x" * 900))
    hot, cold = MemoryStore("hot", max_bytes=room), OnDisk("cold", max_bytes=100_000)
    return Tiers({"hot": hot, "cold": cold}), hot, cold


async def test_a_copy_that_rose_from_disk_leaves_its_twin_for_other_processes() -> None:
    both, hot, cold = over_disk()
    await both.put(entry_of("a", tier="cold", tags=("x",)), now=NOW)
    for _ in range(4):
        assert await both.get(key_of("a"), now=NOW, likely="cold") is not None
    assert (hot.fill().entries, cold.fill().entries) == (1, 1)
    assert len(await both.scan(Selector("t"), after=None, limit=9)) == 1
    assert len(await both.remove(Selector("t", tag="x"))) == 1
    assert await both.get(key_of("a"), now=NOW) is None


async def test_a_tier_that_fails_costs_the_others_nothing() -> None:
    both, hot, cold = over_disk()
    await fill_hot(both, "a", "b")
    cold.broken = True
    (stored,) = await fill_hot(both, "c")
    assert stored.kept
    assert [meta.key for meta in stored.evicted] == [key_of("a")]
    assert await both.get(key_of("c"), now=NOW, likely="cold") is not None
    with pytest.raises(StoreError):
        await both.get(key_of("a"), now=NOW)
    with pytest.raises(StoreError):
        await both.remove(Selector("t"))
    assert hot.fill().entries == 0


async def test_an_entry_that_cannot_rise_is_read_all_the_same() -> None:
    hot, cold = OnDisk("hot", max_bytes=9000), OnDisk("cold", max_bytes=9000)
    both = Tiers({"hot": hot, "cold": cold})
    await both.put(entry_of("a", tier="cold"), now=NOW)
    hot.broken = True
    for _ in range(5):
        assert await both.get(key_of("a"), now=NOW, likely="cold") is not None


class Shared(MemoryStore):
    """Stands for a tier that other processes write to as well."""

    def fill(self) -> Fill:
        return replace(super().fill(), store="disk")


@pytest.mark.parametrize(
    ("theirs_at", "asked_at", "body"),
    [
        (NOW + 5, NOW + 11, b"theirs"),  # ours is past its time, and theirs is newer
        (NOW + 5, NOW + 9, b"ours"),  # ours is good for a second more
        (NOW - 5, NOW + 11, b"ours"),  # the newest one there is
        (None, NOW + 11, b"ours"),
    ],
)
async def test_what_is_past_its_time_in_memory_may_have_been_computed_anew_by_another_process(
    theirs_at: float | None, asked_at: float, body: bytes
) -> None:
    stores = {"hot": MemoryStore("hot", max_bytes=9000), "cold": Shared("cold", max_bytes=9000)}
    both = Tiers({"hot": stores["hot"], "cold": stores["cold"]}, several=True)
    ours = entry_of("a", b"ours", tier="hot", stored_at=NOW, ttl_s=10.0)
    await stores["hot"].put(ours, now=NOW)
    if theirs_at is not None:
        theirs = entry_of("a", b"theirs", tier="cold", stored_at=theirs_at, ttl_s=10.0)
        await stores["cold"].put(theirs, now=NOW)
    found = await both.get(key_of("a"), now=asked_at)
    assert found is not None
    assert found.body == body


async def test_when_the_shared_tier_fails_what_is_past_its_time_is_better_than_nothing() -> None:
    class Broken(Shared):
        async def get(self, key: bytes, *, now: float) -> Entry | None:
            raise StoreError("scripted")

    hot = MemoryStore("hot", max_bytes=9000)
    both = Tiers({"hot": hot, "cold": Broken("cold", max_bytes=9000)}, several=True)
    entry = entry_of("a", tier="hot", stored_at=NOW, ttl_s=10.0)
    await hot.put(entry, now=NOW)
    assert await both.get(key_of("a"), now=NOW + 60) == entry


class Slow(OnDisk):
    """Begins what changes it when it is let; it can be asked what it holds at any time."""

    def __init__(self, tier: str, *, max_bytes: int) -> None:
        super().__init__(tier, max_bytes=max_bytes)
        self.puts, self.removals = asyncio.Event(), asyncio.Event()
        self.removals.set()

    async def put(self, entry: Entry, *, now: float) -> Stored:
        await self.puts.wait()
        return await super().put(entry, now=now)

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        await self.removals.wait()
        return await super().remove(selector)


async def sinking() -> tuple[Tiers, Slow, asyncio.Task[Stored]]:
    """Two tagged entries and one that is not are on their way down, for one that needs room."""
    hot = MemoryStore("hot", max_bytes=3 * footprint(entry_of("a", b"x" * 900, tags=("x",))))
    cold = Slow("cold", max_bytes=100_000)
    both = Tiers({"hot": hot, "cold": cold})
    for name, tags in (("a", ("x",)), ("b", ("x",)), ("c", ())):
        await hot.put(entry_of(name, b"x" * 900, tier="hot", tags=tags), now=NOW)
    large = entry_of("d", b"x" * 3500, tier="hot", cost_s=99.0)
    storing = asyncio.ensure_future(both.put(large, now=NOW))
    await turns(3)
    assert (hot.fill().entries, cold.fill().entries) == (1, 0)
    return both, cold, storing


async def names_in(both: Tiers) -> set[str]:
    found = {name: await both.get(key_of(name), now=NOW) for name in "abcd"}
    return {name for name, entry in found.items() if entry is not None}


@pytest.mark.parametrize("how", [Tiers.remove, Tiers.forget])
@pytest.mark.parametrize("selector", [Selector("t", tag="x"), Selector(None, tag="x", tier="hot")])
async def test_what_is_sinking_while_a_removal_runs_does_not_come_back(
    how: Callable[[Tiers, Selector], Any], selector: Selector
) -> None:
    both, cold, storing = await sinking()
    await how(both, selector)
    cold.puts.set()
    assert (await storing).kept
    assert await names_in(both) == {"c", "d"}
    assert not both._moves


async def test_what_is_put_into_a_tier_that_is_being_emptied_is_dropped_again() -> None:
    both, cold, storing = await sinking()
    await both.remove(Selector(None, tier="cold"))
    cold.puts.set()
    await storing
    assert await names_in(both) == {"d"}


async def test_a_removal_that_fails_still_stops_what_is_sinking() -> None:
    both, cold, storing = await sinking()
    cold.broken = True
    with pytest.raises(StoreError):
        await both.remove(Selector("t", tag="x"))
    cold.broken = False
    cold.puts.set()
    await storing
    assert await names_in(both) == {"c", "d"}


async def test_an_older_answer_that_is_sinking_does_not_outlive_the_newer_one() -> None:
    both, cold, storing = await sinking()
    await both.put(entry_of("a", b"new", tier="hot"), now=NOW)
    cold.puts.set()
    await storing
    assert await cold.get(key_of("a"), now=NOW) is None
    found = await both.get(key_of("a"), now=NOW)
    assert found is not None
    assert found.body == b"new"


async def test_what_is_read_while_a_removal_runs_does_not_rise_out_of_its_way() -> None:
    hot, cold = MemoryStore("hot", max_bytes=9000), Slow("cold", max_bytes=9000)
    both = Tiers({"hot": hot, "cold": cold})
    cold.puts.set()
    await both.put(entry_of("a", tier="cold", tags=("x",)), now=NOW)
    cold.removals.clear()
    removal = asyncio.ensure_future(both.remove(Selector("t", tag="x")))
    await turns(3)
    for _ in range(3):
        assert await both.get(key_of("a"), now=NOW) is not None
    cold.removals.set()
    await removal
    assert await both.get(key_of("a"), now=NOW) is None


async def rising() -> tuple[Tiers, MemoryStore, Slow, Tasks]:
    """An entry that has been read often enough to rise, which it has not begun to."""
    tasks = Tasks()
    hot = MemoryStore("hot", max_bytes=2 * footprint(entry_of("a", b"x" * 900)))
    cold = Slow("cold", max_bytes=100_000)
    both = Tiers({"hot": hot, "cold": cold}, tasks=tasks)
    cold.puts.set()
    await both.put(entry_of("c", b"x" * 900, tier="cold", cost_s=99.0, tags=("x",)), now=NOW)
    await fill_hot(both, "a", "b")
    cold.puts.clear()
    async with asyncio.timeout(5):
        for _ in range(3):
            assert await both.get(key_of("c"), now=NOW) is not None
    assert len(tasks) == 1
    return both, hot, cold, tasks


async def test_no_reader_waits_for_an_entry_that_rises_and_for_those_that_make_room() -> None:
    both, hot, cold, tasks = await rising()
    await turns(3)
    assert await hot.get(key_of("c"), now=NOW) is not None
    assert await cold.get(key_of("a"), now=NOW) is None, "it is on its way"
    cold.puts.set()
    await turns(3)
    assert await cold.get(key_of("a"), now=NOW) is not None
    assert len(tasks) == len(both._moves) == 0


async def test_what_was_removed_before_it_began_to_rise_stays_away() -> None:
    both, hot, _, _ = await rising()
    await both.remove(Selector("t", tag="x"))
    await turns(3)
    assert await both.get(key_of("c"), now=NOW) is None
    assert hot.fill().entries == 2


async def test_what_was_computed_anew_before_it_began_to_rise_is_not_replaced() -> None:
    both, hot, cold, _ = await rising()
    cold.puts.set()
    await both.put(entry_of("c", b"new", tier="hot", cost_s=99.0), now=NOW)
    await turns(3)
    found = await hot.get(key_of("c"), now=NOW)
    assert found is not None
    assert found.body == b"new"


async def test_entries_that_are_moving_when_the_gateway_closes_leave_nothing_behind() -> None:
    both, _, _, tasks = await rising()
    await turns(3)
    await tasks.close()
    await both.close()
    assert len(tasks) == len(both._moves) == 0
