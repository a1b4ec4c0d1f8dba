"""A salt at its quota gives its own blocks, and nobody else's."""

import pytest

from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex
from engine.kv.quotas import MOST_SALTS, Quotas
from engine.kv.retention import Retention
from tests.kit.holder import Holder, P, kept

BYTES = 100


def make(blocks: int = 16) -> PrefixIndex:
    return PrefixIndex(BlockPool(blocks), block_tokens=P, block_bytes=BYTES)


def found(index: PrefixIndex, salt: str, *firsts: int) -> list[int]:
    return [index.lookup([first] * P + [0], salt) // P for first in firsts]


def test_a_salt_at_its_quota_gives_its_longest_unused_block_for_a_new_one() -> None:
    index = make()
    index.set_quota("a", 2 * BYTES)
    kept(index, [7] * P, "b")
    for first in (1, 2, 3):
        kept(index, [first] * P, "a")
    assert found(index, "a", 1, 2, 3) == [0, 1, 1]
    assert found(index, "b", 7) == [1]
    assert index.pool.free_blocks == 13, "there was room: only the quota was short"
    assert index.stats().evicted_by == {"quota": 1}
    index.check_integrity()


def test_what_a_salt_may_not_keep_is_still_computed_and_not_kept() -> None:
    index = make()
    index.set_quota("a", 1 * BYTES)
    holder = Holder(index, list(range(12)), "a")
    assert holder.publish() == [holder.blocks[0], None]
    holder.leave()
    assert index.lookup(list(range(13)), "a") == P
    assert index.keeper.quotas.used_bytes("a") == BYTES
    index.set_quota("none", 0)
    kept(index, [1] * P, "none")
    assert found(index, "none", 1) == [0]
    index.check_integrity()


def test_room_for_a_salt_at_its_quota_is_made_of_its_own_blocks() -> None:
    index = make(6)
    for first in (1, 2, 3):
        kept(index, [first] * P, "b")  # longest unused: they would go first
    index.set_quota("a", 3 * BYTES)
    for first in (1, 2, 3):
        kept(index, [first] * P, "a")
    assert index.pool.free_blocks == 0
    assert index.take(3, now=0.0, salt="a") is not None
    assert found(index, "a", 1, 2, 3) == [0, 0, 0]
    assert found(index, "b", 1, 2, 3) == [1, 1, 1]
    index.check_integrity()


def test_below_its_quota_a_salt_takes_what_is_worth_least_like_everybody() -> None:
    index = make(2)
    index.set_quota("a", 5 * BYTES)
    kept(index, [1] * P, "b")
    kept(index, [1] * P, "a")
    assert index.take(1, now=0.0, salt="a") is not None
    assert (found(index, "a", 1), found(index, "b", 1)) == ([1], [0])


def test_a_smaller_quota_is_met_at_once_tails_before_heads() -> None:
    index = make()
    kept(index, list(range(16)), "a")
    kept(index, list(range(16)), "b")
    index.set_quota("a", 3 * BYTES + 50)
    assert index.lookup(list(range(17)), "a") == 3 * P
    index.set_quota("a", 0)
    assert index.lookup(list(range(17)), "a") == 0
    assert index.lookup(list(range(17)), "b") == 4 * P
    index.set_quota("a", None)
    kept(index, list(range(16)), "a")
    assert index.lookup(list(range(17)), "a") == 4 * P
    index.check_integrity()


def test_blocks_in_use_and_pinned_ones_do_not_go_for_a_quota() -> None:
    index = make()
    holder = Holder(index, [1] * P, "a")
    holder.publish()
    kept(index, [2] * P, "a")
    (pinned,) = index.path(index.chain([2] * P, "a"), [2] * P, "a", most=1)
    index.retain(pinned, Retention(pinned_until=5.0))
    index.set_quota("a", 0)
    assert found(index, "a", 1, 2) == [1, 1]
    index.take(1, now=6.0)  # the pin's time is over
    kept(index, [3] * P, "a")
    assert found(index, "a", 1, 2, 3) == [1, 0, 0]
    holder.leave()
    index.check_integrity()


def test_quotas_without_end_are_forgotten_from_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_SALTS > 1000
    monkeypatch.setattr("engine.kv.quotas.MOST_SALTS", 2)
    quotas = Quotas(BYTES)
    for salt in ("a", "b", "a", "c"):
        quotas.set(salt, 5)
    assert [quotas.limit_bytes(salt) for salt in "abc"] == [5, None, 5]
    assert repr(quotas) == "Quotas(0 salts keep blocks, 2 have a quota)"


def test_who_says_the_same_quota_again_is_not_the_one_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.kv.quotas.MOST_SALTS", 2)
    index = make()
    for salt in ("a", "b", "a", "c"):
        index.set_quota(salt, 5 * BYTES)
    quotas = index.keeper.quotas
    assert [quotas.limit_bytes(salt) for salt in "abc"] == [5 * BYTES, None, 5 * BYTES]
