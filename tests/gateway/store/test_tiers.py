"""Three tiers as one place: a key has one answer, wherever it lies."""

import pytest

from gateway.store.base import Selector, StoreError
from gateway.store.memory import MemoryStore
from gateway.store.tiers import Tiers
from policies.rules import TierName
from tests.kit.entries import NOW, entry_of, key_of

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


async def test_a_new_answer_that_finds_no_room_does_not_leave_the_old_one_standing() -> None:
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
