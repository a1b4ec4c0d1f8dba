"""How many threads a step has: all, fewer while the cores are wanted by others, all again."""

import pytest

from engine.native.crowd import FIRST_PAUSE, LONGEST_PAUSE, Crowd

CROWDED = {"waited_ns": 60, "took_ns": 100}
CALM = {"waited_ns": 50, "took_ns": 100}


def steps_until_all(crowd: Crowd) -> int:
    """Calm steps until all threads are used again."""
    for steps in range(2000):
        if crowd.next() == crowd.threads:
            return steps
        crowd.learn(waited_ns=0, took_ns=100)
    pytest.fail("never again")


def test_it_begins_with_all_and_stays_there_while_nobody_waits_for_long() -> None:
    crowd = Crowd(8)
    for _ in range(1000):
        assert crowd.next() == 8
        crowd.learn(**CALM)


def test_a_step_that_waited_for_more_than_half_of_its_time_halves_the_threads() -> None:
    crowd = Crowd(8)
    seen = []
    for _ in range(5):
        seen.append(crowd.next())
        crowd.learn(**CROWDED)
    assert seen == [8, 4, 2, 1, 1]
    odd = Crowd(3)
    odd.learn(**CROWDED)
    assert odd.next() == 1


def test_one_thread_waits_for_nobody_and_is_not_judged() -> None:
    crowd = Crowd(1)
    for _ in range(100):
        assert crowd.next() == 1
        crowd.learn(waited_ns=100, took_ns=100)
    assert crowd == Crowd(1)


def test_after_a_pause_it_tries_twice_as_many_until_all_are_back() -> None:
    crowd = Crowd(4)
    for _ in range(2):
        crowd.next()
        crowd.learn(**CROWDED)
    seen = [crowd.next() for _ in range(2 * FIRST_PAUSE + 1)]
    assert seen == [1] * (2 * FIRST_PAUSE - 1) + [2, 4]


def test_each_try_that_did_not_help_doubles_the_pause_up_to_a_bound() -> None:
    crowd = Crowd(2)
    pauses = []
    for _ in range(9):
        crowd.learn(**CROWDED)
        pauses.append(steps_until_all(crowd) + 1)
    assert pauses == [8, 16, 32, 64, 128, 256, 512, 512, 512]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE


def test_a_long_calm_forgives_and_a_short_one_does_not() -> None:
    crowd = Crowd(2)
    for calm, pause in ((63, 16), (64, 8)):
        crowd.learn(**CROWDED)
        steps_until_all(crowd)
        for _ in range(calm):
            crowd.next()
            crowd.learn(**CALM)
        crowd.learn(**CROWDED)
        assert steps_until_all(crowd) + 1 == pause
        crowd = Crowd(2)
