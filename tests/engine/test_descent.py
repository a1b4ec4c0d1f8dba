"""What goes down, what is not worth it, and what is written ahead."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.kv.retention import Retention
from engine.kv.stock import FAILURES_UNTIL_OFF, PAUSE_AFTER_FAILURES_S
from tests.kit.tiered import Tiered

PROMPT = list(range(1, 18))


def on_disk(tiered: Tiered, salt: str = "") -> int:
    """How many blocks of the prompt are there."""
    assert tiered.cold is not None
    chain = tiered.index.chain(PROMPT, salt)
    return sum(key in tiered.cold.shelf for key in chain)


def test_blocks_are_written_ahead_while_steps_run_and_not_again_when_they_are_evicted(
    tmp_path: Path,
) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT, max_tokens=3)
    assert on_disk(tiered) == 2 * 2, "two steps after the one that computed them"
    assert tiered.index.lookup(PROMPT, "") == 16, "they are in the pool too"
    exported = len(tiered.store.exported)
    tiered.push_out()
    assert on_disk(tiered) == 4
    assert len(tiered.store.exported) == exported
    moved = [e for e in tiered.index.keeper.events.after(0, limit=99).events if e.kind == "moved"]
    assert [event.cause for event in moved] == ["cold"] * 4


def test_an_idle_engine_writes_the_rest_high_priority_first(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, blocks=16, queue_blocks=1)
    tiered.writes.at_once = False
    tiered.ask(PROMPT, salt="m")
    tiered.ask(PROMPT, salt="h", priority="high")
    counts = []
    while tiered.tiers.idle(now=tiered.clock.monotonic()) or tiered.writes.waiting:
        counts.append((on_disk(tiered, "h"), on_disk(tiered, "m")))
        tiered.writes.do()
    assert on_disk(tiered, "m") == 4
    # one of the other was begun before there was any of high priority
    assert counts == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 3), (4, 4)]


def test_what_is_published_while_a_disk_rests_is_written_ahead_afterwards(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, blocks=16)
    assert tiered.cold is not None
    for _ in range(FAILURES_UNTIL_OFF):
        tiered.cold._failed(OSError("it is full"), now=tiered.clock.now())
    tiered.ask(PROMPT)
    tiered.settle()
    assert on_disk(tiered) == 0
    tiered.clock.advance(PAUSE_AFTER_FAILURES_S)
    tiered.settle()
    assert on_disk(tiered) == 4


def test_low_priority_is_written_only_when_it_is_evicted_and_there_is_room(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, cold_blocks=4)
    tiered.ask(PROMPT, priority="low")
    assert not tiered.tiers.idle(now=tiered.clock.monotonic())
    assert on_disk(tiered) == 0
    tiered.push_out()
    assert on_disk(tiered) == 4
    tiered.ask(PROMPT, salt="other", priority="low")
    tiered.push_out(seed=9)
    assert on_disk(tiered, "other") == 0
    assert on_disk(tiered) == 4


@pytest.mark.parametrize("wish", [{"ttl_s": 0.0}, {"ceiling": "hot"}, {"ceiling": "warm"}], ids=str)
def test_what_has_expired_or_may_not_move_that_far_is_never_written(
    tmp_path: Path, wish: dict[str, object]
) -> None:
    tiered = Tiered(tmp_path, warm_blocks=16)
    tiered.ask(PROMPT, **wish)
    tiered.push_out()
    assert on_disk(tiered) == 0
    assert tiered.warm is not None
    assert len(tiered.warm.shelf) == (4 if wish == {"ceiling": "warm"} else 0)


@pytest.mark.parametrize("wish", [{"ceiling": "hot"}, {"ceiling": "warm"}], ids=str)
@pytest.mark.parametrize("warm_blocks", [0, 16])
def test_a_wish_that_forbids_the_disk_takes_away_what_is_there(
    tmp_path: Path, warm_blocks: int, wish: dict[str, object]
) -> None:
    tiered = Tiered(tmp_path, warm_blocks=warm_blocks)
    tiered.ask(PROMPT)
    tiered.settle()
    assert on_disk(tiered) == 4
    tiered.ask(PROMPT, **wish)
    assert on_disk(tiered) == 0, "at once: a kill would leave it there"
    tiered.push_out()
    tiered.push_out(seed=8)
    assert on_disk(tiered) == 0


@pytest.mark.parametrize("warm_blocks", [0, 16])
def test_so_does_a_wish_for_what_is_below_the_pool_or_was_retained(
    tmp_path: Path, warm_blocks: int
) -> None:
    tiered = Tiered(tmp_path, warm_blocks=warm_blocks)
    tiered.ask(PROMPT)
    tiered.settle()
    tiered.push_out()
    tiered.ask(PROMPT, ceiling="hot")  # brought up
    assert on_disk(tiered) == 0
    assert tiered.warm is None or not any(
        key in tiered.warm.shelf for key in tiered.index.chain(PROMPT, "")
    )
    tiered.ask(PROMPT, salt="b")
    tiered.settle()
    assert on_disk(tiered, "b") == 4
    chain = tiered.index.chain(PROMPT, "b")
    for entry in tiered.index.path(chain, PROMPT, "b", most=2):
        tiered.index.retain(entry, Retention(ceiling="hot"))
    assert on_disk(tiered, "b") == 2


def test_a_disk_that_fails_while_it_is_taken_away_does_not_fail_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT)
    tiered.settle()
    assert tiered.cold is not None

    def broken(slot: int) -> None:
        raise OSError(f"slot {slot} cannot be written")

    monkeypatch.setattr(tiered.cold.file, "clear", broken)
    tiered.ask(PROMPT, ceiling="hot")
    assert on_disk(tiered) == 0
    assert "cannot be written" in caplog.text


def test_a_ttl_goes_on_below_the_pool(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT, ttl_s=100.0)
    tiered.push_out()
    tiered.clock.advance(99.0)
    assert tiered.ask(PROMPT, ttl_s=1.0)[1].hit_tokens == 16
    tiered.push_out(seed=8)
    tiered.clock.advance(1.0)
    assert tiered.ask(PROMPT)[1].hit_tokens == 0


def test_what_memory_has_no_room_for_goes_on_to_the_disk(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, warm_blocks=2)
    tiered.ask(PROMPT, priority="low")  # which is not written ahead
    tiered.push_out()
    assert tiered.warm is not None
    assert len(tiered.warm.shelf) == 2
    assert on_disk(tiered) == 2
    assert tiered.ask(PROMPT)[1].tier_tokens == {"hot": 0, "warm": 8, "cold": 8}


def test_a_writer_that_cannot_keep_up_costs_copies_not_steps(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path, queue_blocks=1)
    tiered.writes.at_once = False
    tiered.ask(PROMPT)
    tiered.push_out()
    assert len(tiered.store.exported) == 1
    assert tiered.cold is not None
    assert tiered.cold.counts.dropped >= 3


def test_a_pin_below_the_pool_means_high_and_never_expires(tmp_path: Path) -> None:
    tiered = Tiered(tmp_path)
    tiered.ask(PROMPT, ttl_s=10.0)
    chain = tiered.index.chain(PROMPT, "")
    for entry in tiered.index.path(chain, PROMPT, "", most=4):
        wanted = entry.retention.__class__("low", 10.0, pinned_until=float("inf"))
        tiered.index.retain(entry, wanted)
    tiered.push_out()
    assert tiered.cold is not None
    items = [tiered.cold.shelf.get(key) for key in chain]
    kept = [(item.wanted.priority, item.wanted.expires_at) for item in items if item]
    assert set(kept) <= {("high", float("inf")), ("medium", tiered.clock.now() + 10.0)}
