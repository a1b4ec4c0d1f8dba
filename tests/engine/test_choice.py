"""Load or compute, with scripted costs."""

from __future__ import annotations

import logging

import pytest

from engine.kv.choice import Choice
from engine.kv.costs import FIRST_PAUSE_S, LOSSES_UNTIL_OFF
from engine.request import Tier


def made() -> Choice:
    return Choice(("warm", "cold"), block_bytes=1000)


def test_what_was_never_measured_is_tried() -> None:
    choice = made()
    assert choice.cheaper_to_load({"cold": 3}, compute_s=None, queued=0, now=0.0)
    assert choice.cheaper_to_load({"cold": 3}, compute_s=0.001, queued=0, now=0.0)


def test_the_cheaper_way_wins_by_request() -> None:
    choice = made()
    choice.learn({"cold": [0.5, 0.1]}, compute_s=5.0, probes=(), now=0.0)
    many: dict[Tier, int] = {"cold": 10}
    few: dict[Tier, int] = {"cold": 1}  # 0.5 + 9 * 0.1; 0.5
    assert choice.cheaper_to_load(many, compute_s=2.0, queued=0, now=0.0)
    assert not choice.cheaper_to_load(few, compute_s=0.2, queued=0, now=0.0)
    assert not choice.cheaper_to_load(many, compute_s=2.0, queued=20, now=0.0)
    choice.landed(0.2)
    assert not choice.cheaper_to_load(many, compute_s=2.0, queued=0, now=0.0)
    assert choice.cheaper_to_load(many, compute_s=None, queued=0, now=0.0)


def test_a_request_that_needs_two_tiers_pays_for_both() -> None:
    choice = made()
    choice.learn({"cold": [0.5], "warm": [0.1]}, compute_s=5.0, probes=(), now=0.0)
    assert choice.cheaper_to_load({"cold": 1, "warm": 1}, compute_s=0.7, queued=0, now=0.0)
    assert not choice.cheaper_to_load({"cold": 1, "warm": 1}, compute_s=0.55, queued=0, now=0.0)


def test_a_loser_switches_itself_off_says_so_and_comes_back_by_a_probe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    choice = made()
    choice.learn({"cold": [9.0]}, compute_s=1.0, probes=(), now=0.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(LOSSES_UNTIL_OFF - 1):
            assert not choice.cheaper_to_load({"cold": 1}, compute_s=1.0, queued=0, now=0.0)
    assert "the cold tier is slower than computing: off for 30 s" in caplog.text
    assert choice.is_off("cold")
    assert not choice.is_off("warm")
    assert not choice.may_ask("cold", now=0.0)
    assert choice.stats("cold", now=0.0)["on"] is False
    assert choice.stats("cold", now=0.0)["off_for_s"] == FIRST_PAUSE_S

    now = FIRST_PAUSE_S
    assert choice.may_ask("cold", now=now)
    assert choice.cheaper_to_load({"cold": 1}, compute_s=1.0, queued=0, now=now), "to find out"
    assert choice.probing(("warm", "cold"), now=now) == ("cold",)
    assert not choice.may_ask("cold", now=now)
    choice.learn({"cold": [0.1]}, compute_s=1.0, probes=("cold",), now=now)
    assert not choice.is_off("cold")
    assert choice.cheaper_to_load({"cold": 1}, compute_s=1.0, queued=0, now=now)
    assert choice.stats("cold", now=now)["read_latency_ms"] == 100.0


def test_a_probe_without_a_result_leaves_the_question_open() -> None:
    choice = made()
    choice.learn({"cold": [9.0]}, compute_s=1.0, probes=(), now=0.0)
    for _ in range(LOSSES_UNTIL_OFF):
        choice.cheaper_to_load({"cold": 1}, compute_s=1.0, queued=0, now=0.0)
    now = FIRST_PAUSE_S
    assert choice.probing(("cold",), now=now) == ("cold",)
    choice.left(("cold",))
    assert choice.may_ask("cold", now=now)
    assert choice.probing(("cold",), now=now) == ("cold",)
    choice.learn({}, compute_s=1.0, probes=("cold",), now=now)
    assert choice.may_ask("cold", now=now)


def test_a_step_of_several_prompts_is_divided_by_rows() -> None:
    choice = made()
    choice.computed([(0, 30), (4096, 10)], 4.0)
    assert choice.prefill.seconds(0, 1) == pytest.approx(0.1)
    assert choice.prefill.seconds(4096, 4097) == pytest.approx(0.1)
    choice.computed([], 4.0)
    choice.computed([(0, 1)], 4.0)
    assert choice.prefill.tokens_per_s == pytest.approx(10)
