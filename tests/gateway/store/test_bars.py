"""What the generations of a store refuse, and what they remember of a tenant."""

import pytest

from gateway.store.bars import MOST_BARS, Bars, any_means, packed
from gateway.store.base import Selector
from tests.kit.entries import key_of, meta_of


def test_an_older_write_of_what_was_cleared_is_refused_and_a_newer_one_is_not() -> None:
    bars = Bars()
    before = bars.number
    number = bars.add(Selector("t", tag="x"))
    assert bars.refuse(meta_of("a", tags=("x",)), before)
    assert not bars.refuse(meta_of("a", tags=("x",)), number)
    assert not bars.refuse(meta_of("a"), before)
    assert not bars.refuse(meta_of("a", tags=("x",)), None)


def test_clearings_of_one_tenant_refuse_nothing_of_another_however_many_they_are() -> None:
    bars = Bars()
    before = bars.number
    for number in range(3 * MOST_BARS):
        bars.add(Selector("a", cache_key=str(number)))
    assert not bars.refuse(meta_of(tenant="b"), before)
    assert bars.refuse(meta_of(tenant="a"), before)
    assert not bars.refuse(meta_of(tenant="a"), bars.number - MOST_BARS)


def test_what_is_no_longer_remembered_bars_everything_of_its_tenant_that_is_older() -> None:
    bars = Bars()
    oldest = bars.add(Selector("t", tag="secret"))
    for number in range(MOST_BARS - 1):
        bars.add(Selector("t", cache_key=str(number)))
    assert not bars.refuse(meta_of("a"), oldest - 1)
    bars.add(Selector("t", cache_key="one more"))
    assert bars.refuse(meta_of("a"), oldest - 1)
    assert not bars.refuse(meta_of("a"), oldest)


def test_a_clearing_of_all_tenants_bars_every_tenant() -> None:
    bars = Bars()
    before = bars.number
    bars.add(Selector(None))
    assert bars.refuse(meta_of(tenant="a"), before)


def test_a_generation_that_is_drawn_bars_a_key_only_once_it_is_taken_up() -> None:
    bars, key = Bars(), Selector("t", key=key_of("a"))
    before = bars.number
    drawn = bars.add(None)
    assert not bars.refuse(meta_of("a"), before)
    assert bars.add(key, at=drawn) == drawn
    assert bars.refuse(meta_of("a"), before)
    assert not bars.refuse(meta_of("a"), drawn)
    assert not bars.refuse(meta_of("b"), before)
    bars.add(key, at=before)  # the older of two that replace the same ends last
    assert bars.refuse(meta_of("a"), before)
    assert repr(bars) == f"<Bars at {drawn}, of 1 tenants>"


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"[]", b'{"key": "no"}', b'{"unknown": 1}'])
def test_a_stored_bar_that_cannot_be_read_means_everything(damaged: bytes) -> None:
    assert any_means([packed(Selector("other")), damaged], meta_of("a"))
    assert not any_means([packed(Selector("other"))], meta_of("a"))


def test_a_bar_may_name_what_is_no_valid_unicode() -> None:
    assert any_means([packed(Selector("t", cache_key="\ud800"))], meta_of("a", cache_key="\ud800"))
