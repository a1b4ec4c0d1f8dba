"""The scripted clock."""

import pytest

from tests.kit.clock import Clock


def test_time_moves_only_when_told() -> None:
    clock = Clock(100.0)
    assert (clock.now(), clock.now(), clock.monotonic()) == (100.0, 100.0, 0.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 2.5)


def test_setting_the_wall_clock_does_not_touch_the_monotonic_one() -> None:
    clock = Clock(100.0)
    clock.advance(1)
    clock.set(50.0)
    assert (clock.now(), clock.monotonic()) == (50.0, 1.0)
    assert repr(clock) == "<Clock 50.000, 1.000 s on>"


def test_time_cannot_be_advanced_backwards() -> None:
    with pytest.raises(AssertionError):
        Clock().advance(-1)
