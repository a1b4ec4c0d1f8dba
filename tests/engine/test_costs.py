"""Averages, curves and trials, by scripted seconds."""

from __future__ import annotations

import pytest

from engine.kv.costs import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LOSSES_UNTIL_OFF,
    Average,
    PrefillCurve,
    ReadCurve,
    Trial,
)


def test_an_average_begins_with_what_is_seen_and_moves_towards_the_newest() -> None:
    average = Average()
    assert average.value is None
    average.note(10.0)
    average.note(20.0, share=0.5)
    assert average.value == 15.0


def test_prefill_is_measured_by_position() -> None:
    curve = PrefillCurve()
    assert curve.seconds(0, 100) is None
    assert curve.tokens_per_s is None
    curve.note(start=0, rows=100, seconds=0.1)
    assert curve.tokens_per_s == pytest.approx(1000)
    assert curve.seconds(0, 512) == pytest.approx(0.512)
    assert curve.seconds(2000, 3000) == pytest.approx(1.0)  # the nearest that is known
    curve.note(start=2048, rows=100, seconds=0.4)
    assert curve.seconds(2048, 2148) == pytest.approx(0.4)
    assert curve.seconds(0, 512) == pytest.approx(0.512)
    curve.note(start=10**9, rows=1, seconds=1.0)  # beyond the last edge
    assert curve.seconds(10**9, 10**9 + 2) == pytest.approx(2.0)


def test_a_span_over_several_buckets_is_the_sum_of_its_parts() -> None:
    curve = PrefillCurve()
    curve.note(start=0, rows=1, seconds=1.0)
    curve.note(start=512, rows=1, seconds=10.0)
    assert curve.seconds(500, 520) == pytest.approx(12 * 1.0 + 8 * 10.0)


def test_reads_cost_a_first_block_and_further_ones_behind_what_is_queued() -> None:
    curve = ReadCurve(block_bytes=1000)
    assert curve.seconds(1) is None
    assert curve.bytes_per_s is None
    curve.note(0.5, first=True)
    assert curve.seconds(3) == pytest.approx(1.5)
    curve.note(0.1, first=False)
    assert curve.seconds(3) == pytest.approx(0.7)
    assert curve.seconds(1, queued=4) == pytest.approx(0.9)
    assert curve.bytes_per_s == pytest.approx(10_000)


def test_a_tier_that_loses_in_a_row_is_off_and_probed_after_a_pause_that_doubles() -> None:
    trial = Trial()
    for _ in range(LOSSES_UNTIL_OFF - 1):
        trial.judge(lost=True, now=0.0)
    trial.judge(lost=False, now=0.0)  # one win, and the row begins anew
    for _ in range(LOSSES_UNTIL_OFF - 1):
        trial.judge(lost=True, now=0.0)
    assert trial.may_ask(now=0.0)
    trial.judge(lost=True, now=0.0)
    assert not trial.may_ask(now=0.0)
    assert trial.off_for_s(now=10.0) == FIRST_PAUSE_S - 10.0
    assert not trial.probe(now=0.0)

    now = FIRST_PAUSE_S
    assert trial.may_ask(now=now)
    assert trial.probe(now=now)
    assert not trial.may_ask(now=now), "one request finds out"
    trial.judge(lost=True, now=now)
    assert trial.off_for_s(now=now) == 2 * FIRST_PAUSE_S

    for _ in range(20):
        now = trial.off_until or 0.0
        assert trial.probe(now=now)
        trial.judge(lost=True, now=now)
    assert trial.off_for_s(now=now) == LONGEST_PAUSE_S
    now = trial.off_until or 0.0
    assert trial.probe(now=now)
    trial.judge(lost=False, now=now)
    assert trial.off_until is None
    assert trial.pause_s == FIRST_PAUSE_S


def test_a_probe_that_leaves_makes_room_for_another_and_late_results_change_no_pause() -> None:
    trial = Trial(losses=LOSSES_UNTIL_OFF - 1)
    trial.judge(lost=True, now=0.0)
    assert trial.probe(now=100.0)
    trial.end_probe()
    assert trial.may_ask(now=100.0)
    trial.judge(lost=True, now=100.0)  # of a request from before it was switched off
    assert trial.may_ask(now=100.0)
    assert trial.switched_off == 1
