"""Ten thousand steps of random traffic on a pool that is always short, each answer against a solo oracle.

The recipe by which corrupted keys and values were found in other engines: prompts from a tree of common
beginnings with lengths around the block size, a pool of 1.1 times one request, clients that leave at any
moment, salts that alternate, pins and quotas, guesses beside every token, and tiers below the pool that blocks are spilled
to and restored from while others run. At the end every block is free and nobody holds
one. The model is made of digests of what its blocks really hold (`tests.kit.hashing_model`), so it runs
in seconds; the same with tensors is `tests/numerics/test_fuzz_reuse.py`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.kv.blob import fingerprint_of
from engine.kv.blocks import BlockPool
from engine.kv.disk import BlockFile, Geometry
from engine.kv.prefix import PrefixIndex
from engine.kv.retention import Wish
from engine.kv.salts import Layered, Salt
from engine.kv.stock import Disk, Memory
from engine.kv.tiers import Tiers
from engine.request import GenerationRequest, SamplingParams, Tier, TokenEvent
from engine.scheduler import Limits, Scheduler
from tests.kit.hashing_model import END, HashingModel, solo
from tests.kit.tiered import Later

P = 4
LENGTHS = (P - 1, P, P + 1, 2 * P)
LONGEST_PROMPT = 3 * 2 * P
LONGEST_ANSWER = 4 * P
BLOCKS = -(-(LONGEST_PROMPT + LONGEST_ANSWER) * 11 // (10 * P))
STEPS = 10_000
FINGERPRINT = fingerprint_of(["hashing"])
SALTS: tuple[Salt, ...] = ("", "s", Layered("base", "s", 1), Layered("base", "t", 2))


class Fuzz:
    """Traffic drawn from one seed; every answer is checked as it ends."""

    def __init__(
        self,
        seed: int,
        *,
        exact_decode: bool = True,
        warm_blocks: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.dice = random.Random(seed)
        self.model = HashingModel(blocks=BLOCKS, block_tokens=P)
        index = PrefixIndex(BlockPool(BLOCKS), block_tokens=P)
        limits = Limits(
            chunk_tokens=8,
            max_sequences=4,
            max_model_len=10_000,
            idle_tiles=2,
            exact_decode=exact_decode,
            speculate_tokens=6,
        )
        self.now = 0.0
        self.reads, self.writes = Later(at_once=False), Later(at_once=False)
        tiers = self._tiers(index, warm_blocks, folder)
        self.scheduler = Scheduler(index, limits, end_tokens=frozenset({END}), tiers=tiers)
        self.engine = Engine(self.scheduler, self.model, self.model, clock=self._clock)
        self.requests: dict[str, GenerationRequest] = {}
        self.said: dict[str, list[int]] = {}
        self.ends: Counter[str] = Counter()
        self.arrived = 0
        trunk = [self._tokens() for _ in range(2)]
        twigs = [one + self._tokens() for one in trunk for _ in range(2)]
        self.tree = [[], *trunk, *twigs]

    def _tiers(self, index: PrefixIndex, warm_blocks: int, folder: Path | None) -> Tiers:
        """Reading and writing take no time by the clock, so both are always worth it."""
        warm = cold = None
        if folder is not None:
            geometry = Geometry(FINGERPRINT, P, self.model.block_bytes)
            file = BlockFile(folder, geometry, max_bytes=24 * (geometry.slot_bytes + 128))
            cold = Disk(file, run=self.writes, queue_blocks=16, now=0.0)
        if warm_blocks:
            below: tuple[Tier, ...] = ("cold",) if cold else ()
            warm = Memory(warm_blocks, fingerprint=FINGERPRINT, tiers_below=below)
        return Tiers(
            index,
            self.model,
            fingerprint=FINGERPRINT,
            block_bytes=self.model.block_bytes,
            clock=lambda: self.now,
            wall=lambda: self.now,
            warm=warm,
            cold=cold,
            read=self.reads,
        )

    def _clock(self) -> float:
        self.now += 0.01
        return self.now

    def _tokens(self) -> list[int]:
        return [self.dice.randrange(1, 5) for _ in range(self.dice.choice(LENGTHS))]

    def arrive(self) -> None:
        dice = self.dice
        self.arrived += 1
        prompt = (dice.choice(self.tree) + self._tokens())[: dice.choice([P, LONGEST_PROMPT])]
        request = GenerationRequest(
            id=f"r{self.arrived}",
            prompt=tuple(prompt),
            sampling=SamplingParams(
                max_tokens=dice.choice([0, 1, *LENGTHS, LONGEST_ANSWER]), seed=dice.randrange(2)
            ),
            salt=SALTS[self.arrived % len(SALTS)],
            lane=dice.choice(["interactive", "interactive", "batch", "warm"]),
            priority=dice.choice(["high", "medium", "low"]),
            ttl_s=dice.choice([0.5, 1000.0]),
            reuse=dice.random() < 0.9,
            session=dice.choice([None, None, "talk"]),
            floor=dice.choice([None, None, "hot", "cold"]),
            ceiling=dice.choice(["cold", "cold", "warm", "hot"]),
            quota_bytes=dice.choice([*[None] * 9, 0, 3, BLOCKS]),  # of blocks of one byte
        )
        self.requests[request.id], self.said[request.id] = request, []
        self.scheduler.add(request, now=self.now)

    def retain(self) -> None:
        """Pin a prompt of the tree, or let it go, or give it a time."""
        index, dice = self.scheduler.index, self.dice
        tokens, salt = [*dice.choice(self.tree), 1], dice.choice(SALTS)
        chain = index.chain(tokens, salt)
        wish = Wish(pin=dice.random() < 0.5, pin_s=dice.choice([0.1, math.inf]), priority="high")
        for entry in index.path(chain, tokens, salt, most=len(chain)):
            may_pin = index.keeper.pins.may(entry.key)
            index.retain(entry, wish.applied(entry.retention, now=self.now, may_pin=may_pin))

    def leave(self) -> None:
        name = self.dice.choice(list(self.requests))
        event = self.scheduler.abort(name, now=self.now)
        self.take([event] if event else [])

    def step(self) -> None:
        """A step, and some of the reading and writing that other threads would do meanwhile."""
        self.take(self.engine.step())
        for work in (self.reads, self.writes):
            work.do(self.dice.randrange(len(work.waiting) + 1))

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            name = event.request_id
            if event.token is not None:
                self.said[name].append(event.token)
            if event.finish is None:
                continue
            request, said = self.requests.pop(name), self.said.pop(name)
            assert event.finish != "error", event.error
            self.ends[event.finish] += 1
            expected = solo(request)
            if event.finish == "abort":
                expected = expected[: len(said)]
            assert said == expected, f"{name} after {self.engine.stats().steps} steps"
        self.scheduler.check_integrity()

    def run(self, steps: int) -> None:
        """So many steps of traffic, and then until everybody has heard an end."""
        dice = self.dice
        until = self.engine.stats().steps + steps
        while self.engine.stats().steps < until:
            if len(self.requests) < 6 and dice.random() < 0.5:
                self.arrive()
            if self.requests and dice.random() < 0.02:
                self.leave()
            if dice.random() < 0.002:
                salt = dice.choice(["", "s", "base", None])
                self.scheduler.forget_answers(salt)
                self.scheduler.index.invalidate(salt)
            if dice.random() < 0.02:
                self.retain()
            if dice.random() < 0.002:
                tokens = dice.choice(self.tree)
                self.scheduler.index.invalidate_from(tokens, dice.choice(SALTS), from_token=P)
            self.step()
        while self.scheduler.busy:
            self.step()
        assert not self.requests, "somebody heard no end"


@pytest.mark.parametrize("what", ["exact", "decode is not exact", "warm and cold"])
def test_ten_thousand_steps_say_exactly_what_each_request_alone_would(
    what: str, tmp_path: Path
) -> None:
    fuzz = Fuzz(
        7,
        exact_decode="not" not in what,
        warm_blocks=8 * ("warm" in what),
        folder=tmp_path if "cold" in what else None,
    )
    fuzz.run(STEPS + STEPS // 5 * ("cold" in what))  # enough for the disk to be asked often

    scheduler, index = fuzz.scheduler, fuzz.scheduler.index
    assert fuzz.ends["stop"] > 100
    assert fuzz.ends["abort"] > 50
    assert scheduler.preemptions > 100, "the pool was never short: this proves nothing"
    assert index.stats().hit_tokens > 1000
    assert index.stats().evicted_blocks > 1000
    guesses = scheduler.speculation.as_json()
    tried = [guesses[source] for source in ("prompt", "answers")]
    if "not" not in what:
        assert all(source["accepted"] > 300 for source in tried), tried
        assert all(source["accepted"] < source["drafted"] for source in tried), tried
    assert index.pool.held_blocks == 0
    assert all(index.pool.references(block) == 0 for block in range(BLOCKS))
    tiers = scheduler.tiers
    assert tiers is not None
    for name, stock in {"warm": tiers.warm, "cold": tiers.cold}.items():
        assert (stock is not None) == (name in what)
        if stock is not None:
            stock.shelf.check_integrity()
            assert stock.counts.hits > 300
            assert stock.counts.quarantined == 0
    index.invalidate()
    assert index.pool.free_blocks == BLOCKS


def test_a_process_that_is_killed_again_and_again_says_exactly_the_same(tmp_path: Path) -> None:
    restored = 0
    for life in range(8):
        fuzz = Fuzz(life, folder=tmp_path)
        fuzz.tree = [[1, 2, 3, 4, 1], [2, 3, 2, 3, 2, 3, 2, 3, 4]]  # the same in every life
        fuzz.run(300)
        tiers = fuzz.scheduler.tiers
        assert tiers is not None
        assert tiers.cold is not None
        restored += tiers.cold.counts.hits if life else 0
        tiers.cold.file.close()  # what waits to be written is lost
    assert restored > 50
