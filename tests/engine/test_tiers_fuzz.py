"""Random traffic over small tiers: whatever goes down and comes up, every answer is that of a lonely engine.

The scripted runner checks the whole history of each row it computes, so one wrong block fails the step
that reads it; `solo` is the oracle of the answers.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.kit.scripted_runner import solo
from tests.kit.tiered import Tiered

STEPS = 1500
SALTS = ("", "a", "b")


class Traffic:
    """Requests that share beginnings; threads that work when chance wants it; restarts."""

    def __init__(self, folder: Path, seed: int, *, warm: int, cold: int) -> None:
        self.dice = random.Random(seed)
        self.folder, self.warm, self.cold = folder, warm, cold
        self.open: dict[str, tuple[Any, list[int]]] = {}
        self.trunks = [[100 * n + at for at in range(24)] for n in range(1, 4)]
        self.found = self.restarts = self.invalidated = 0
        self.tiered = self.fresh()

    def fresh(self) -> Tiered:
        tiered = Tiered(
            self.folder,
            blocks=14,
            queue_blocks=6,
            chunk_tokens=8,
            warm_blocks=self.warm,
            cold_blocks=self.cold,
        )
        tiered.runner.before_step = lambda schedule: tiered.clock.advance(0.01 * schedule.rows)
        tiered.reads.at_once = tiered.writes.at_once = False
        return tiered

    def step(self) -> None:
        dice, tiered = self.dice, self.tiered
        if len(self.open) < 5 and dice.random() < 0.3:
            self.ask()
        if dice.random() < 0.5:
            tiered.reads.do(min(len(tiered.reads.waiting), dice.randrange(1, 4)))
        if dice.random() < 0.5:
            tiered.writes.do(min(len(tiered.writes.waiting), dice.randrange(1, 4)))
        if dice.random() < 0.02:
            self.invalidated += tiered.index.invalidate(dice.choice(SALTS))
        if self.open and dice.random() < 0.03:
            name = dice.choice(list(self.open))
            tiered.scheduler.abort(name, now=tiered.clock.monotonic())
            del self.open[name]
        tiered.clock.advance(dice.random())
        for event in tiered.engine.step():
            sequence, tokens = self.open[event.request_id]
            if event.token is not None:
                tokens.append(event.token)
            if event.finish is not None:
                self.ended(sequence, tokens)
        tiered.check()
        if dice.random() < 0.005:
            self.restart()

    def ask(self) -> None:
        dice = self.dice
        trunk = dice.choice(self.trunks)
        prompt = trunk[: dice.choice([3, 4, 5, 8, 15, 16, 17, 24])]
        prompt = prompt + [dice.randrange(900, 903) for _ in range(dice.choice([1, 3, 4, 5]))]
        wishes: dict[str, Any] = {
            "max_tokens": dice.choice([1, 2, 5, 9]),
            "salt": dice.choice(SALTS),
            "priority": dice.choice(["high", "medium", "low"]),
            "ttl_s": dice.choice([float("inf"), 5.0, 60.0]),
            "ceiling": dice.choice(["cold", "cold", "cold", "warm", "hot"]),
            "lane": dice.choice(["interactive", "batch"]),
            "reuse": dice.random() < 0.95,
        }
        sequence = self.tiered.add(prompt, **wishes)
        self.open[sequence.id] = (sequence, [])

    def ended(self, sequence: Any, tokens: list[int]) -> None:
        del self.open[sequence.id]
        asked = list(sequence.request.prompt)
        assert tokens == solo(asked, len(tokens)), sequence
        assert sequence.fetch is None
        told = sequence.tier_tokens
        assert sum(told.values()) <= sequence.hit_tokens
        self.found += told.get("warm", 0) + told.get("cold", 0)

    def restart(self) -> None:
        """A kill: what the writer had not done is lost, who was there hears nothing more."""
        self.tiered.close()
        self.open.clear()
        self.restarts += 1
        self.tiered = self.fresh()

    def drain(self) -> None:
        tiered = self.tiered
        for _ in range(5000):
            tiered.reads.do()
            tiered.writes.do()
            if not self.open:
                break
            for event in tiered.engine.step():
                sequence, tokens = self.open[event.request_id]
                if event.token is not None:
                    tokens.append(event.token)
                if event.finish is not None:
                    self.ended(sequence, tokens)
        tiered.tiers.begin_step(now=tiered.clock.monotonic())
        assert not self.open
        assert tiered.index.pool.held_blocks == 0
        for stock in (tiered.warm, tiered.cold):
            if stock is not None:
                assert all(item.readers == 0 for item in stock.shelf)
        tiered.index.invalidate()
        assert tiered.index.pool.free_blocks == 14
        assert tiered.cold is not None
        tiered.tiers.begin_step(now=tiered.clock.monotonic())
        assert tiered.cold.free_slots == tiered.cold.file.slots, "no slot was lost"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("warm", "cold"), [(0, 12), (6, 12), (0, 60)])
def test_every_answer_is_that_of_a_lonely_engine(
    tmp_path: Path, seed: int, warm: int, cold: int
) -> None:
    traffic = Traffic(tmp_path, seed, warm=warm, cold=cold)
    for _ in range(STEPS):
        traffic.step()
    traffic.drain()
    assert traffic.found > 50, "nothing came up: this proves nothing"
    assert traffic.restarts
    assert traffic.invalidated
