"""Which blocks are found again, which are kept, and which go."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex, Retention
from engine.kv.salts import Layered, Salt
from tests.kit.holder import MEDIUM, Holder, P, kept, make


@pytest.mark.parametrize(
    ("length", "found"), [(P - 1, 0), (P, 0), (P + 1, P), (2 * P, P), (2 * P + 1, 2 * P)]
)
def test_only_full_blocks_are_found_and_never_the_last_token(length: int, found: int) -> None:
    index = make()
    kept(index, list(range(20)))
    assert index.lookup(list(range(length)), "") == found
    index.check_integrity()


def test_the_same_salt_finds_and_another_does_not() -> None:
    index = make()
    kept(index, list(range(9)), "acme")
    assert index.lookup(list(range(9)), "acme") == 8
    assert index.lookup(list(range(9)), "other") == 0
    assert index.lookup(list(range(9)), "") == 0


def test_another_model_has_other_keys() -> None:
    one, other = make(), PrefixIndex(BlockPool(1), block_tokens=P, fingerprint=b"other")
    assert one.root("s") != other.root("s")
    assert one.root("s") == make().root("s")


def test_a_key_with_other_tokens_is_a_miss_not_a_wrong_answer() -> None:
    index = make()
    kept(index, [1, 2, 3, 4, 5])
    entry = next(iter(index._entries.values()))
    entry.content = b"\0" * 16
    assert index.lookup([1, 2, 3, 4, 5], "") == 0
    holder = Holder(index, [1, 2, 3, 4, 5])
    assert holder.publish() == [None]
    holder.leave()


def test_equal_blocks_computed_twice_are_kept_once() -> None:
    index = make()
    one, two = Holder(index, list(range(9))), Holder(index, list(range(9)))
    assert one.publish() == [0, 1]
    assert two.publish() == [0, 1]
    assert repr(index.pool) == "BlockPool(total=8 free=4 held=4 idle=0)"
    one.leave()
    two.leave()
    assert repr(index) == "PrefixIndex(blocks=2 idle=2 hit_tokens=0 miss_tokens=0 evicted=0)"
    index.check_integrity()


def test_the_tail_goes_before_the_head() -> None:
    index = make(4)
    kept(index, list(range(16)))
    index.take(1, now=1.0)
    assert index.lookup(list(range(17)), "") == 12
    index.take(2, now=1.0)
    assert index.lookup(list(range(17)), "") == 4
    index.check_integrity()


def test_only_the_shortfall_is_evicted() -> None:
    index = make(4)
    kept(index, list(range(12)))
    assert index.take(2, now=1.0) is not None
    assert index.stats().evicted_blocks == 1
    assert index.take(3, now=1.0) is None
    assert index.stats().evicted_blocks == 1


def test_low_priority_goes_before_high_and_expired_before_all() -> None:
    index = make(6)
    kept(index, [1] * 4, priority="high", expires_at=5.0)
    kept(index, [2] * 4, priority="low")
    kept(index, [3] * 4, priority="high")
    index.take(4, now=1.0)
    assert [index.lookup([n] * 5, "") for n in (1, 2, 3)] == [4, 0, 4]
    index.take(1, now=6.0)
    assert [index.lookup([n] * 5, "") for n in (1, 2, 3)] == [0, 0, 4]


def test_a_head_shared_by_two_lives_as_long_as_the_longer_wish() -> None:
    index = make(8)
    kept(index, [1] * 4 + [2] * 4, priority="low", expires_at=5.0)
    kept(index, [1] * 4 + [3] * 4, priority="high", expires_at=50.0)
    index.take(6, now=6.0)
    assert index.lookup([1] * 4 + [2] * 5, "") == 4
    assert index.lookup([1] * 4 + [3] * 5, "") == 8


def test_an_expired_wish_counts_for_nothing_in_a_merge() -> None:
    old = Retention("high", 5.0)
    assert old.merged(Retention("low", 9.0), now=6.0) == Retention("low", 9.0)
    assert old.merged(Retention("low", 9.0), now=4.0) == Retention("high", 9.0)


def test_a_block_goes_only_when_nothing_builds_on_it() -> None:
    index = make(4)
    kept(index, list(range(12)), priority="low", expires_at=1.0)
    kept(index, [*range(8), *range(20, 24)], priority="high")
    assert repr(index.keeper.order).startswith("<ReuseOrder 2 offered, 4 cached")
    lost = []
    while index.take(1, now=9.0):
        index.check_integrity()
        lost.append(index.stats().blocks)
    assert lost == [3, 2, 1, 0]


def test_a_prompt_that_goes_on_where_another_ended_is_a_later_turn() -> None:
    index = make(8)
    assert index.turn(_asked(index, list(range(8)))[0]) == 1
    kept(index, list(range(8)))
    chain, _ = _asked(index, list(range(16)))
    assert index.turn(chain) == 2


def _asked(index: PrefixIndex, tokens: list[int]) -> tuple[list[bytes], list[int]]:
    chain: list[bytes] = []
    index.extend_chain(chain, tokens, "")
    return chain, tokens


def test_invalidation_takes_one_salt_and_leaves_the_others() -> None:
    index = make()
    kept(index, list(range(9)), "a")
    kept(index, list(range(9)), "b")
    assert index.invalidate("a") == 8
    assert index.lookup(list(range(9)), "a") == 0
    assert index.lookup(list(range(9)), "b") == 8
    assert index.invalidate() == 8
    assert repr(index.pool) == "BlockPool(total=8 free=8 held=0 idle=0)"
    index.check_integrity()


def test_a_running_sequence_survives_invalidation_and_publishes_no_more() -> None:
    index = make()
    holder = Holder(index, list(range(8)))
    holder.publish()
    index.invalidate()
    other = Holder(index, list(range(4)))
    assert other.publish() == [other.blocks[0]]
    # its second block must not hang below a first block that is not its own
    assert (
        index.publish(holder.chain, 1, holder.tokens, holder.blocks, salt="", retention=MEDIUM)
        is None
    )
    other.leave()
    holder.leave()
    index.check_integrity()


def test_a_salt_that_is_forgotten_takes_what_others_built_on_it_along() -> None:
    index = make()
    kept(index, list(range(9)), Layered("base", "ann", 1))
    kept(index, list(range(9)), "ann")
    assert index.invalidate("base") == 8
    assert index.lookup(list(range(9)), "ann") == 8
    index.check_integrity()


def test_a_prompt_is_forgotten_from_a_token_on_and_what_else_builds_there() -> None:
    index = make(8)
    kept(index, list(range(16)))
    kept(index, [*range(8), *range(90, 98)])
    assert index.invalidate_from(list(range(16)), "", from_token=5) == 5 * P
    assert index.lookup(list(range(17)), "") == 4
    assert index.invalidate_from(list(range(16)), "", from_token=4) == 0
    assert index.invalidate_from(list(range(16)), "other", from_token=0) == 0
    index.check_integrity()


def test_two_users_of_one_base_keep_it_once_and_find_nothing_of_each_other() -> None:
    index = make(16)
    base, question = list(range(8)), list(range(20, 29))
    ann, bob = Layered("base", "ann", 2), Layered("base", "bob", 2)
    kept(index, base + question, ann)
    assert index.lookup(base + question, ann) == 16
    assert index.lookup(base + question, bob) == 8
    assert index.lookup(base + question, "base") == 8
    assert index.lookup(base + question, "ann") == index.lookup(base + question, "bob") == 0
    kept(index, base + question, bob)
    assert index.stats().blocks == 2 + 2 + 2, "the base once"
    index.check_integrity()


def test_without_a_block_of_the_base_all_is_under_ones_own_salt() -> None:
    index = make()
    kept(index, list(range(9)), Layered("base", "ann", 0))
    assert index.lookup(list(range(9)), "ann") == 8
    assert index.lookup(list(range(9)), "base") == 0


SALTS: list[Salt] = ["", "s", Layered("s", "", 1), Layered("s", "t", 2)]


class IndexMachine(RuleBasedStateMachine):
    """Sequences of few distinct tokens come, publish, leave and are invalidated in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(BlockPool(7), block_tokens=2)
        self.holders: list[Holder] = []
        self.now = 0.0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), salt=st.sampled_from(SALTS))
    def come(self, tokens: list[int], salt: Salt) -> None:
        try:
            self.holders.append(Holder(self.index, tokens, salt, now=self.now))
        except MemoryError:
            assert self.index.available_blocks() < 5

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.holders)).publish()

    @precondition(lambda self: self.holders)
    @rule(
        data=st.data(),
        priority=st.sampled_from(["low", "medium", "high"]),
        ttl_s=st.sampled_from([0.0, 2.0, math.inf]),
    )
    def leave(self, data: st.DataObject, priority: str, ttl_s: float) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.holders.remove(holder)
        self.now += 1
        wish = Retention(priority, self.now + ttl_s)  # type: ignore[arg-type]
        holder.leave(now=self.now, retention=wish)

    @rule(salt=st.sampled_from(["", "s", "t"]), blocks=st.sampled_from([None, 0, 1, 3]))
    def allow(self, salt: str, blocks: int | None) -> None:
        before = Counter(self.index.keeper.quotas.blocks_kept)
        self.index.set_quota(salt, blocks)
        after = self.index.keeper.quotas.blocks_kept
        assert {one for one in before if before[one] != after[one]} <= {salt}, "another's went"

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=2, max_size=9),
        salt=st.sampled_from(SALTS),
        until=st.sampled_from([-math.inf, 1.0, 3.0, math.inf]),
        floor=st.sampled_from([None, "hot", "cold"]),
    )
    def retain(self, tokens: list[int], salt: Salt, until: float, floor: Any) -> None:
        chain = self.index.chain(tokens, salt)
        for entry in self.index.path(chain, tokens, salt, most=9):
            wanted = replace(entry.retention, pinned_until=self.now + until, floor=floor)
            self.index.retain(entry, wanted)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def supersede(self, data: st.DataObject) -> None:
        for key in data.draw(st.sampled_from(self.holders)).chain:
            self.index.supersede(key)

    @rule(salt=st.sampled_from([None, "", "s"]))
    def invalidate(self, salt: str | None) -> None:
        self.index.invalidate(salt)

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from(SALTS),
        start=st.integers(0, 9),
    )
    def invalidate_from(self, tokens: list[int], salt: Salt, start: int) -> None:
        self.index.invalidate_from(tokens, salt, from_token=start)

    @invariant()
    def the_books_agree(self) -> None:
        self.index.check_integrity()
        for block in range(7):
            count = sum(holder.blocks.count(block) for holder in self.holders)
            assert self.index.pool.references(block) == count

    def teardown(self) -> None:
        for holder in self.holders:
            holder.leave()
        self.index.invalidate()
        assert repr(self.index.pool) == "BlockPool(total=7 free=7 held=0 idle=0)"


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestIndexMachine = IndexMachine.TestCase
