"""When a backend is left alone, for how long, and what brings it back."""

import pytest

from gateway.backends.health import (
    FEWEST,
    LEFT_OUT_S,
    LONGEST_PAUSE_S,
    LONGEST_REST_S,
    TOLD_AGAIN_S,
    WINDOW,
    Health,
)
from tests.kit.clock import Clock


class Ward:
    """A health under a scripted clock, without jitter unless given."""

    def __init__(self, draw: float = 0.0, **options: float) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.health = Health(
            clock=self.clock.monotonic,
            draw=lambda: draw,
            changed=lambda name: self.told.append(f"{name} {self.health.state(name)}"),
            **{"failures": 3, "pause_s": 5.0, **options},  # type: ignore[arg-type]  # by name
        )

    def fail(self, name: str = "a", times: int = 3) -> None:
        for _ in range(times):
            self.health.enter(name)
            self.health.lost(name, reached=False)

    def answer(self, name: str = "a", times: int = 1, waited_s: float = 0.1) -> None:
        for _ in range(times):
            assert self.health.enter(name)
            self.health.began(name, waited_s)
            self.health.succeeded(name)


def test_a_backend_nobody_has_asked_is_up() -> None:
    health = Ward().health
    assert (health.state("a"), health.is_open("a"), health.wait_s("a")) == ("up", True, 0.0)


def test_failures_in_a_row_bring_it_down_and_fewer_do_not() -> None:
    ward = Ward()
    ward.fail(times=2)
    ward.answer()
    ward.fail(times=2)
    assert ward.health.is_open("a")
    ward.fail(times=1)
    assert ward.health.state("a") == "down"
    assert not ward.health.is_open("a")
    assert not ward.health.enter("a")
    assert ward.health.wait_s("a") == 5.0
    assert ward.told == ["a down"]
    assert ward.health.is_open("b")  # each for itself
    assert repr(ward.health) == "<Health a=down b=up>"


def test_one_that_fails_half_of_its_calls_is_passed_over_and_never_closed() -> None:
    ward = Ward(outlier_factor=0)
    ward.health.together(["a", "b"])
    for _ in range(FEWEST // 2):
        assert ward.health.is_open("a")
        ward.answer()
        ward.fail(times=1)
    assert ward.health.state("a") == "left out"
    assert ward.health.enter("a")


def test_what_is_long_ago_does_not_count() -> None:
    ward = Ward(failures=100)
    for _ in range(FEWEST // 2 - 1):
        ward.answer()
        ward.fail(times=1)
    ward.answer(times=WINDOW)
    ward.fail(times=FEWEST - 1)
    assert ward.health.state("a") == "up"


def test_after_the_pause_one_call_probes_it_and_no_second_one() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.is_open("a")
    assert ward.health.enter("a")
    assert ward.health.state("a") == "probing"
    assert not ward.health.enter("a")
    assert not ward.health.is_open("a")
    assert ward.health.wait_s("a") > 0


def test_a_probe_that_takes_long_keeps_nobody_out_for_longer_than_a_pause() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.enter("a")
    ward.clock.advance(4.0)
    assert (ward.health.enter("a"), ward.health.wait_s("a")) == (False, 1.0)
    ward.clock.advance(1.0)
    assert ward.health.enter("a")
    assert not ward.health.enter("a")
    ward.health.began("a", 0.1)
    assert ward.health.state("a") == "up"


def test_the_first_piece_of_the_probe_brings_it_up_and_its_past_is_forgotten() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.enter("a")
    ward.health.began("a", 0.1)
    assert ward.health.state("a") == "up"
    ward.fail(times=2)
    assert ward.health.state("a") == "up"
    assert ward.told == ["a down", "a up"]


def test_a_probe_refused_for_the_clients_fault_shows_that_it_lives() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.enter("a")
    ward.health.succeeded("a")
    assert ward.health.state("a") == "up"


def test_a_probe_that_fails_doubles_the_pause_up_to_a_limit() -> None:
    ward = Ward()
    ward.fail()
    pauses = []
    for _ in range(6):
        pauses.append(ward.health.wait_s("a"))
        ward.clock.advance(pauses[-1])
        ward.fail(times=1)
        assert ward.health.state("a") == "down"
    assert pauses == [5.0, 10.0, 20.0, 40.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    ward.clock.advance(LONGEST_PAUSE_S)
    ward.answer()
    ward.fail()
    assert ward.health.wait_s("a") == 5.0


def test_a_probe_that_is_given_up_says_nothing_and_frees_its_place() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.enter("a")
    ward.health.left("a")
    assert ward.health.state("a") == "down"
    assert ward.health.enter("a")


def test_calls_from_before_that_fail_while_it_is_down_do_not_lengthen_the_pause() -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(1.0)
    ward.health.lost("a", reached=False)
    assert ward.health.wait_s("a") == 4.0


def test_the_pause_is_shortened_by_chance() -> None:
    ward = Ward(draw=1.0)
    ward.fail()
    assert ward.health.wait_s("a") == pytest.approx(3.75)


def test_with_0_failures_nothing_is_ever_brought_down() -> None:
    ward = Ward(failures=0)
    ward.fail(times=100)
    assert ward.health.state("a") == "up"


def test_one_that_asks_for_rest_is_passed_over_but_not_refused() -> None:
    ward = Ward()
    ward.health.together(["a", "b"])
    ward.health.rest("a", 7.0)
    assert ward.health.state("a") == "left out"
    assert not ward.health.is_open("a")
    assert ward.health.enter("a")  # where there is no choice
    ward.clock.advance(7.0)
    assert ward.health.is_open("a")


def test_a_rest_has_a_limit_and_the_last_one_gets_none() -> None:
    ward = Ward()
    ward.health.together(["a", "b"])
    ward.health.rest("alone", 7.0)
    assert ward.health.is_open("alone")
    ward.health.rest("a", 1e9)
    ward.health.rest("b", 1.0)
    assert not ward.health.is_open("a")
    assert ward.health.is_open("b")
    ward.clock.advance(LONGEST_REST_S)
    assert ward.health.is_open("a")


def grouped(**options: float) -> Ward:
    ward = Ward(failures=100, **options)
    ward.health.together(["a", "b", "c"])
    return ward


def test_one_much_slower_than_its_fellows_is_left_out_for_a_while() -> None:
    ward = grouped()
    for name in ("b", "c"):
        ward.answer(name, FEWEST)
    ward.answer("a", FEWEST - 1, waited_s=1.0)
    assert ward.health.is_open("a")
    ward.answer("a", 1, waited_s=1.0)
    assert ward.health.state("a") == "left out"
    assert ward.told == ["a left out"]
    ward.clock.advance(LEFT_OUT_S)
    assert ward.health.is_open("a")
    ward.answer("a", 1, waited_s=1.0)
    assert ward.health.is_open("a")  # it is judged by what it does from now on


@pytest.mark.parametrize(("usual_s", "waited_s"), [(0.001, 0.2), (1.0, 2.9)])
def test_a_little_slower_is_no_outlier(usual_s: float, waited_s: float) -> None:
    ward = grouped()
    for name in ("b", "c"):
        ward.answer(name, FEWEST, usual_s)
    ward.answer("a", WINDOW, waited_s)
    assert ward.health.is_open("a")


def test_one_that_fails_more_than_its_fellows_is_left_out() -> None:
    ward = grouped()
    ward.answer("b", FEWEST)
    for _ in range(FEWEST // 4):
        ward.answer("a", 3)
        ward.fail("a", 1)
    assert ward.health.state("a") == "left out"


def test_where_all_fail_alike_none_is_an_outlier() -> None:
    ward = grouped()
    for _ in range(FEWEST // 4):
        for name in ("a", "b", "c"):
            ward.answer(name, 3)
            ward.fail(name, 1)
    assert all(map(ward.health.is_open, "abc"))


def test_the_last_one_that_is_open_is_never_left_out() -> None:
    ward = Ward()
    ward.health.together(["a", "b"])
    ward.answer("b", FEWEST)
    ward.fail("b")
    assert not ward.health.is_open("b")
    ward.answer("a", WINDOW, waited_s=100.0)
    assert ward.health.is_open("a")


def test_with_factor_0_there_are_no_outliers() -> None:
    ward = grouped(outlier_factor=0)
    ward.answer("b", FEWEST)
    ward.answer("a", WINDOW, waited_s=100.0)
    assert ward.health.is_open("a")


def test_one_that_answers_with_errors_is_alive_and_the_last_one_is_never_closed() -> None:
    ward = Ward()
    for _ in range(100):
        assert ward.health.enter("a")
        ward.health.erred("a")
    assert ward.health.state("a") == "up"


def test_one_that_errs_in_a_row_is_passed_over_for_its_fellow_and_checked() -> None:
    ward = Ward()
    ward.health.together(["a", "b"])
    doubts: list[str] = []
    ward.health.doubted = doubts.append
    for _ in range(3):
        ward.health.erred("a")
    assert (ward.health.state("a"), doubts) == ("left out", ["a"])
    for _ in range(3):
        ward.health.erred("b")
    assert ward.health.is_open("b")
    ward.clock.advance(5.0)
    assert ward.health.is_open("a")


def test_a_broken_connection_is_a_doubt_and_only_a_check_brings_it_down() -> None:
    ward = Ward()
    doubts: list[str] = []
    ward.health.doubted = doubts.append
    for _ in range(10):
        ward.health.lost("a", reached=True)
    assert (ward.health.state("a"), ward.health.is_missing("a")) == ("up", False)
    assert ward.health.is_doubtful("a")
    assert doubts == ["a"] * 10
    ward.health.alive("a")
    assert not ward.health.is_doubtful("a")
    ward.health.lost("a", reached=True)
    ward.health.dead("a")
    assert (ward.health.state("a"), ward.health.is_missing("a")) == ("down", True)


def test_while_checks_find_it_dead_no_call_tries_it_and_the_first_good_one_brings_it_up() -> None:
    ward = Ward()
    for _ in range(60):
        ward.health.dead("a")
        ward.clock.advance(1.0)
        assert not ward.health.enter("a")
    ward.health.alive("a")
    assert ward.health.enter("a")
    assert ward.told == ["a down", "a up"]


@pytest.mark.parametrize("said", ["erred", "refused", "rest"])
def test_any_answer_to_the_probe_brings_it_up(said: str) -> None:
    ward = Ward()
    ward.fail()
    ward.clock.advance(5.0)
    assert ward.health.enter("a")
    match said:
        case "erred":
            ward.health.erred("a")
        case "refused":
            ward.health.refused_key("a", "HTTP 401 no")
        case _:
            ward.health.rest("a", 1.0)
    assert ward.health.state("a") == "up"


def test_a_refused_key_is_told_once_and_again_when_the_words_change() -> None:
    told: list[str] = []
    clock = Clock()
    health = Health(
        clock=clock.monotonic,
        draw=lambda: 0.0,
        failures=1,
        key_refused=lambda name, words: told.append(f"{name}: {words}"),
    )
    for number in range(5):
        health.refused_key("a", f"HTTP 401 wrong key, request {number}")
    health.refused_key("a", "HTTP 402 no credit")
    health.succeeded("a")
    assert health.complaints() == {}
    health.refused_key("a", "HTTP 402 no credit")
    assert health.complaints() == {"a": "key refused (HTTP 402)"}
    assert told == ["a: HTTP 401 wrong key, request 0", "a: HTTP 402 no credit"]
    health.succeeded("a")
    clock.advance(TOLD_AGAIN_S + 1)
    health.refused_key("a", "HTTP 402 no credit")
    assert len(told) == 3
    assert health.state("a") == "up"


def test_with_0_failures_a_dead_one_is_missing_and_asked_all_the_same() -> None:
    ward = Ward(failures=0)
    ward.health.dead("a")
    assert ward.health.enter("a")
    assert ward.health.complaints() == {"a": "unreachable"}
    ward.health.succeeded("a")
    assert ward.health.complaints() == {}
