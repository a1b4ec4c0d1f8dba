"""How many threads a step has: all, fewer while the cores are wanted by others, all again."""

import pytest

from engine.native.crowd import FIRST_PAUSE, LONGEST_PAUSE, MANY_ROWS, Crowd

CROWDED = {"waited_ns": 60, "took_ns": 100}
CALM = {"waited_ns": 50, "took_ns": 100}


def steps_until_all(crowd: Crowd) -> int:
    """Calm steps until all threads are used again."""
    for steps in range(1, 2000):
        if crowd.next(1) == crowd.threads:
            return steps
        crowd.learn(1, waited_ns=0, took_ns=100)
    pytest.fail("never again")


def crowd_it(crowd: Crowd) -> None:
    """Crowded steps until it uses fewer threads."""
    before = crowd.active
    for _ in range(5):
        assert crowd.active == before
        crowd.learn(1, **CROWDED)
    assert crowd.active < before


def test_it_begins_with_all_and_stays_there_while_nobody_waits_for_long() -> None:
    crowd = Crowd(8)
    for _ in range(1000):
        assert crowd.next(1) == 8
        crowd.learn(1, **CALM)


def test_one_slow_step_shows_nothing() -> None:
    crowd = Crowd(2)
    for step in range(200):
        assert crowd.next(1) == 2
        slow = step % 10 == 0
        crowd.learn(1, waited_ns=150 if slow else 5, took_ns=200 if slow else 50)


def test_some_steps_that_waited_for_more_than_half_of_their_time_halve_the_threads() -> None:
    crowd = Crowd(8)
    seen = []
    for _ in range(16):
        seen.append(crowd.next(1))
        crowd.learn(1, **CROWDED)
    assert seen == [8] * 5 + [4] * 5 + [2] * 5 + [1]
    odd = Crowd(3)
    crowd_it(odd)
    assert odd.next(1) == 1


def test_a_step_of_many_rows_has_all_threads_and_says_nothing_of_the_others() -> None:
    crowd = Crowd(2)
    for _ in range(100):
        crowd.learn(MANY_ROWS, **CROWDED)
    assert crowd == Crowd(2)
    crowd_it(crowd)
    assert crowd.next(MANY_ROWS - 1) == 1
    assert crowd.next(MANY_ROWS) == 2


def test_one_thread_waits_for_nobody_and_is_not_judged() -> None:
    crowd = Crowd(1)
    for _ in range(100):
        assert crowd.next(1) == 1
        crowd.learn(1, waited_ns=100, took_ns=100)
    assert crowd == Crowd(1)


def test_after_a_pause_it_tries_twice_as_many_until_all_are_back() -> None:
    crowd = Crowd(4)
    crowd_it(crowd)
    crowd_it(crowd)
    seen = [crowd.next(1) for _ in range(2 * FIRST_PAUSE + 1)]
    assert seen == [1] * (2 * FIRST_PAUSE - 1) + [2, 4]


def test_each_try_that_did_not_help_doubles_the_pause_up_to_a_bound() -> None:
    crowd = Crowd(2)
    pauses = []
    for _ in range(8):
        crowd_it(crowd)
        pauses.append(steps_until_all(crowd))
    assert pauses == [16, 32, 64, 128, 256, 512, 512, 512]
    assert pauses[0] == FIRST_PAUSE
    assert pauses[-1] == LONGEST_PAUSE


def test_a_long_calm_forgives_and_a_short_one_does_not() -> None:
    for calm, pause in ((63, 32), (64, 16)):
        crowd = Crowd(2)
        crowd_it(crowd)
        steps_until_all(crowd)
        for _ in range(calm):
            crowd.next(1)
            crowd.learn(1, waited_ns=0, took_ns=100)
        while crowd.active == 2:
            crowd.learn(1, waited_ns=1000, took_ns=1000)
        assert steps_until_all(crowd) == pause
