"""The arithmetic of the engine's benchmark; the rest of it is run by hand."""

from __future__ import annotations

import pytest

from loadtest.bench_engine import new_nonce, rate
from loadtest.prompts import example


def test_one_stream_counts_from_its_first_word_on() -> None:
    assert rate([[1.0, 1.5, 2.0, 2.5, 3.0]], [5]) == pytest.approx(2.0)


def test_only_the_time_when_all_streams_run_counts() -> None:
    early, late = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0, 6.0]
    assert rate([early, late], [5, 5]) == pytest.approx(2.0)


def test_a_piece_of_several_tokens_counts_as_many() -> None:
    assert rate([[0.0, 1.0, 2.0, 3.0]], [8]) == pytest.approx(2.0)


def test_streams_that_never_ran_together_have_no_common_rate() -> None:
    with pytest.raises(ValueError, match="same time"):
        rate([[0.0, 1.0], [2.0, 3.0]], [2, 2])


def test_a_nonce_changes_the_first_line_and_nothing_after_it() -> None:
    one, other = (example(new_nonce(), "How old?")[0]["content"] for _ in range(2))
    assert one != other
    assert one.partition("\n")[2] == other.partition("\n")[2]
    assert one.count("Jane Smith") == 50
