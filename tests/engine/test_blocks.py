"""Who holds which block."""

import pytest

from engine.kv.blocks import BlockPool


def test_a_block_goes_from_free_to_held_to_idle_and_back() -> None:
    pool = BlockPool(4)
    assert repr(pool) == "BlockPool(total=4 free=4 held=0 idle=0)"
    block = pool.take()
    assert repr(pool) == "BlockPool(total=4 free=3 held=1 idle=0)"
    pool.hold(block)
    assert pool.drop(block) == 1
    assert pool.drop(block) == 0
    assert repr(pool) == "BlockPool(total=4 free=3 held=0 idle=1)"
    pool.hold(block)
    assert pool.references(block) == 1
    assert pool.drop(block) == 0
    pool.give_back(block)
    assert repr(pool) == "BlockPool(total=4 free=4 held=0 idle=0)"
    pool.check_integrity()


def test_low_ids_are_handed_out_first_and_the_last_freed_again_first() -> None:
    pool = BlockPool(3)
    assert [pool.take(), pool.take()] == [0, 1]
    pool.drop(0)
    pool.give_back(0)
    assert pool.take() == 0


def test_what_nobody_holds_cannot_be_dropped() -> None:
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="dropped more often"):
        pool.drop(0)


def test_a_free_block_cannot_be_held() -> None:
    with pytest.raises(AssertionError, match="is free"):
        BlockPool(1).hold(0)


def test_the_check_finds_a_count_that_lies() -> None:
    pool = BlockPool(2)
    pool.take()
    pool._held = 2
    with pytest.raises(AssertionError, match="1 blocks are held, counted 2"):
        pool.check_integrity()
