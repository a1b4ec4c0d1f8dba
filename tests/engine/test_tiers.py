"""What leaves the pool comes back from below, exact or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.scripted_runner import solo
from tests.kit.tiered import Tiered

PROMPT = list(range(1, 18))  # four whole blocks of four, and one token


@pytest.fixture(params=["cold", "warm", "both"])
def tiered(request: pytest.FixtureRequest, tmp_path: Path) -> Tiered:
    if request.param == "warm":
        return Tiered(None, warm_blocks=16)
    return Tiered(tmp_path, warm_blocks=2 if request.param == "both" else 0)


def test_what_was_evicted_comes_back_and_is_not_computed_again(tiered: Tiered) -> None:
    answer, first = tiered.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert first.tier_tokens == {"hot": 0}
    tiered.push_out()
    assert tiered.index.lookup(PROMPT, "") == 0
    before = tiered.runner.rows_computed
    answer, again = tiered.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert again.hit_tokens == 16
    assert sum(again.tier_tokens.values()) == 16
    assert again.tier_tokens["hot"] == 0
    assert again.moved_bytes == 4 * tiered.store.block_bytes
    assert (
        tiered.runner.rows_computed - before == 1 + 2
    )  # the prompt's last token, two of the answer
    assert tiered.index.lookup(PROMPT, "") == 16


def test_a_restart_finds_on_disk_what_the_process_before_had_written(tmp_path: Path) -> None:
    before = Tiered(tmp_path)
    before.ask(PROMPT, max_tokens=3)
    before.push_out()
    before.close()
    after = Tiered(tmp_path)
    answer, sequence = after.ask(PROMPT, max_tokens=3)
    assert answer == solo(PROMPT, 3)
    assert sequence.tier_tokens == {"hot": 0, "cold": 16}


def test_another_salt_finds_nothing(tiered: Tiered) -> None:
    tiered.ask(PROMPT, salt="a")
    tiered.push_out()
    _, sequence = tiered.ask(PROMPT, salt="b")
    assert sequence.hit_tokens == 0


def test_what_is_invalidated_does_not_come_back(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, warm_blocks=2)
    tiered.ask(PROMPT, salt="a")
    tiered.ask(PROMPT, salt="b")
    tiered.push_out()
    assert tiered.index.invalidate("a") == 16
    assert tiered.ask(PROMPT, salt="a")[1].hit_tokens == 0
    tiered.push_out(seed=8)
    assert tiered.index.invalidate("a") == 16
    tiered.close()
    after = Tiered(tmp_path)
    assert after.ask(PROMPT, salt="a")[1].hit_tokens == 0
    assert after.ask(PROMPT, salt="b")[1].hit_tokens > 0


def test_another_model_begins_anew(tmp_path: Path) -> None:
    before = Tiered(tmp_path)
    before.ask(PROMPT)
    before.push_out()
    before.close()
    after = Tiered(tmp_path, fingerprint=b"x" * 32)
    assert after.ask(PROMPT)[1].hit_tokens == 0
