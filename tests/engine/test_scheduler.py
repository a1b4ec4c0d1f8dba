"""Who runs, who waits, who steps back. The scripted model checks every block it is given."""

import random
from typing import Any

import pytest

from engine.engine import Engine
from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.scheduler import Limits, Schedule, Scheduler
from tests.kit.scripted_runner import END, ScriptedRunner, choose, solo

P = 4


class Bench:
    """An engine whose steps the test makes itself."""

    def __init__(self, *, blocks: int = 32, sequences: int = 8, **limits: Any) -> None:
        self.runner = ScriptedRunner(blocks=blocks, block_tokens=P)
        self.now = 0.0
        limits = {"chunk_tokens": 8, "max_model_len": 10_000, "idle_tiles": 2, **limits}
        self.scheduler = Scheduler(
            PrefixIndex(BlockPool(blocks), block_tokens=P),
            Limits(max_sequences=sequences, **limits),
            end_tokens=frozenset({END}),
        )
        self.engine = Engine(self.scheduler, self.runner, self.runner, clock=self.clock)
        self.answers: dict[str, list[int]] = {}
        self.ends: dict[str, TokenEvent] = {}

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def add(self, name: str, prompt: list[int], count: int = 3, **how: Any) -> None:
        sampling = SamplingParams(max_tokens=count)
        self.answers[name] = []
        self.scheduler.add(
            GenerationRequest(id=name, prompt=tuple(prompt), sampling=sampling, **how)
        )

    def step(self) -> Schedule:
        before = len(self.runner.schedules)
        self.take(self.engine.step())
        self.scheduler.check_integrity()
        done = self.runner.schedules[before:]
        return done[0] if done else Schedule(())

    def take(self, events: list[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.ends, "an event after the end"
            if event.token is not None:
                self.answers[event.request_id].append(event.token)
            if event.finish is not None:
                self.ends[event.request_id] = event

    def abort(self, name: str) -> None:
        event = self.scheduler.abort(name, now=self.clock())
        self.take([event] if event else [])
        self.scheduler.check_integrity()

    def drain(self, limit: int = 10_000) -> int:
        steps = 0
        while self.scheduler.busy:
            self.step()
            steps += 1
            assert steps < limit, f"no end: {self.scheduler!r}"
        return steps

    def rows(self, schedule: Schedule) -> list[tuple[str, int, int]]:
        return [(span.sequence.id, span.start, span.stop) for span in schedule.spans]


def test_a_prompt_is_computed_in_chunks_and_then_decoded_row_by_row() -> None:
    bench = Bench(idle_tiles=1)
    prompt = list(range(1, 20))
    bench.add("a", prompt)
    assert bench.rows(bench.step()) == [("a", 0, 8)]
    assert bench.rows(bench.step()) == [("a", 8, 16)]
    assert bench.rows(bench.step()) == [("a", 16, 19)]
    assert bench.rows(bench.step()) == [("a", 19, 20)]
    assert bench.rows(bench.step()) == [("a", 20, 21)]
    assert bench.rows(bench.step()) == []
    assert bench.answers["a"] == solo(prompt, 3)
    assert bench.ends["a"].finish == "length"
    assert repr(bench.scheduler) == (
        "Scheduler(running=0 waiting=0 preemptions=0 BlockPool(total=32 free=27 held=0 idle=5))"
    )


def test_an_end_token_ends_and_is_not_shown() -> None:
    bench = Bench()
    bench.runner.token_for = lambda state, size: END
    bench.add("a", [1, 2])
    bench.drain()
    assert bench.answers["a"] == []
    assert bench.ends["a"].finish == "stop"


def test_a_prompt_alone_can_be_computed() -> None:
    bench = Bench()
    bench.add("warm", list(range(1, 14)), 0)
    bench.drain()
    assert bench.answers["warm"] == []
    assert bench.ends["warm"].finish == "length"
    bench.add("use", list(range(1, 14)))
    bench.drain()
    assert bench.ends["use"].hit_tokens == 12


def test_a_long_prompt_does_not_stop_a_running_answer() -> None:
    bench = Bench(blocks=64)
    bench.add("stream", [1, 2, 3], 40)
    bench.step()
    bench.add("long", list(range(1, 101)), 1)
    steps = 0
    while "long" not in bench.ends:
        before = len(bench.answers["stream"])
        bench.step()
        assert len(bench.answers["stream"]) == before + 1, "a step without a token"
        steps += 1
    assert steps == -(-100 // 7), "7 rows of a tile are left beside one decode"


@pytest.mark.parametrize(("streams", "rows"), [(1, 8), (4, 8), (5, 15), (8, 16)])
def test_prompts_fill_whole_tiles_beside_the_decodes(streams: int, rows: int) -> None:
    bench = Bench(blocks=64, sequences=16)
    for number in range(streams):
        bench.add(f"s{number}", [number + 1] * 3, 30)
    bench.step()
    bench.step()
    bench.add("long", list(range(1, 90)), 1)
    assert [span.rows for span in bench.step().spans] == [1] * streams + [rows - streams]


def test_lanes_go_in_order_and_first_come_first_served_inside_one() -> None:
    bench = Bench(sequences=1)
    bench.add("warm", [1], 1, lane="warm")
    bench.add("batch 1", [2], 1, lane="batch")
    bench.add("batch 2", [3], 1, lane="batch")
    bench.add("now", [4], 1)
    bench.drain()
    assert list(bench.ends) == ["now", "batch 1", "batch 2", "warm"]


def test_an_interactive_request_takes_the_place_of_a_batch_one() -> None:
    bench = Bench(blocks=6)
    bench.add("batch", list(range(1, 18)), 4, lane="batch")
    bench.step()
    bench.step()
    bench.add("now", [9] * 9, 2)
    bench.drain()
    assert list(bench.ends) == ["now", "batch"]
    assert bench.answers["batch"] == solo(list(range(1, 18)), 4)
    assert bench.scheduler.preemptions >= 1


def test_the_youngest_steps_back_when_blocks_run_out_and_both_answers_are_right() -> None:
    bench = Bench(blocks=6)
    bench.add("old", [1, 2, 3], 17)
    bench.add("young", [4, 5, 6], 17)
    bench.drain()
    assert bench.scheduler.preemptions >= 1
    assert list(bench.ends) == ["old", "young"]
    assert bench.answers == {"old": solo([1, 2, 3], 17), "young": solo([4, 5, 6], 17)}
    assert bench.ends["young"].hit_tokens == 0, "its own KV found again is no hit"


def test_a_second_equal_prompt_waits_and_is_not_computed_again() -> None:
    bench = Bench(blocks=64)
    prompt = list(range(1, 42))
    for name in ("a", "b", "c"):
        bench.add(name, prompt)
    bench.drain()
    assert [bench.ends[name].hit_tokens for name in ("a", "b", "c")] == [0, 40, 40]
    assert bench.runner.rows_computed == 41 + 1 + 1 + 3 * 2
    assert {tuple(answer) for answer in bench.answers.values()} == {tuple(solo(prompt, 3))}


def test_who_waits_for_a_prompt_goes_on_when_its_computer_leaves() -> None:
    bench = Bench(blocks=64, idle_tiles=1)
    prompt = list(range(1, 42))
    bench.add("a", prompt)
    bench.add("b", prompt)
    bench.step()
    bench.abort("a")
    bench.drain()
    assert bench.answers["b"] == solo(prompt, 3)
    assert bench.ends["b"].hit_tokens == 8


def test_an_interactive_request_does_not_wait_for_a_warm_one() -> None:
    bench = Bench(blocks=64, idle_tiles=1)
    prompt = list(range(1, 42))
    bench.add("warm", prompt, lane="warm")
    bench.step()
    bench.add("now", prompt)
    schedule = bench.step()
    assert schedule.spans[0].sequence.id == "now"
    bench.drain()
    assert bench.answers["now"] == solo(prompt, 3)


def test_a_different_prompt_overtakes_one_that_waits_for_a_claim() -> None:
    bench = Bench(blocks=64, idle_tiles=2)
    bench.add("a", list(range(1, 42)))
    bench.add("same", list(range(1, 42)))
    bench.add("other", [7, 7, 7])
    bench.step()
    assert [one.id for one in bench.scheduler._running] == ["a", "other"]
    bench.drain()


def test_reuse_off_neither_finds_nor_leaves_anything() -> None:
    bench = Bench()
    prompt = list(range(1, 14))
    bench.add("a", prompt, reuse=False)
    bench.drain()
    bench.add("b", prompt)
    bench.drain()
    bench.add("c", prompt, reuse=False)
    bench.drain()
    assert [bench.ends[name].hit_tokens for name in "abc"] == [0, 0, 0]
    bench.add("d", prompt)
    bench.drain()
    assert bench.ends["d"].hit_tokens == 12


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    bench = Bench()
    bench.add("a", [1, 2, 3], 10)
    bench.drain()
    bench.add("b", [1, 2, 3, *bench.answers["a"], 9], 1)
    bench.drain()
    assert bench.ends["b"].hit_tokens == 12


def test_blocks_written_by_decode_stay_private_when_they_are_not_exact() -> None:
    bench = Bench(exact_decode=False)
    bench.add("a", [1, 2, 3, 4, 5], 10)
    bench.drain()
    bench.add("b", [1, 2, 3, 4, 5, *bench.answers["a"], 9], 1)
    bench.drain()
    assert bench.ends["b"].hit_tokens == 4


def test_leaving_frees_the_blocks_at_once() -> None:
    bench = Bench()
    bench.add("a", list(range(1, 30)), 5, reuse=False)
    bench.step()
    assert bench.scheduler.index.pool.held_blocks == 8
    bench.abort("a")
    assert bench.scheduler.index.pool.free_blocks == 32
    assert bench.ends["a"].finish == "abort"
    assert bench.scheduler.abort("a", now=0.0) is None


def test_every_prompt_token_is_scored_when_asked() -> None:
    bench = Bench(idle_tiles=1)
    prompt = list(range(1, 14))
    bench.add("plain", prompt)
    bench.drain()
    bench.add("scored", prompt, 1, score_prompt=True)
    events: list[TokenEvent] = []
    while bench.scheduler.busy:
        events += bench.engine.step()
    scores = events[0].prompt_scores
    assert scores is not None
    assert scores[0] is None
    expected = [choose(_state(prompt[: n + 1]), 50) for n in range(12)]
    assert [pick.token for pick in scores[1:] if pick] == expected
    assert events[0].hit_tokens == 0


def _state(tokens: list[int]) -> int:
    from tests.kit.scripted_runner import digest

    state = 0
    for token in tokens:
        state = digest(state, token)
    return state


def test_a_failed_step_fails_its_sequences_and_nothing_it_wrote_is_found() -> None:
    bench = Bench()
    bench.add("a", list(range(1, 14)))

    def burst(schedule: Schedule) -> None:
        raise FloatingPointError

    bench.runner.before_step = burst
    bench.step()
    assert bench.ends["a"].finish == "error"
    assert "FloatingPointError" in str(bench.ends["a"].error)
    assert bench.scheduler.index.pool.free_blocks == 32
    bench.runner.before_step = lambda schedule: None
    bench.add("b", list(range(1, 14)))
    bench.drain()
    assert bench.ends["b"].hit_tokens == 0
    assert bench.answers["b"] == solo(list(range(1, 14)), 3)


def test_the_pool_bounds_what_one_request_may_ask() -> None:
    bench = Bench(blocks=4, max_model_len=100)
    assert bench.scheduler.capacity_tokens == 16
    assert Bench(blocks=40, max_model_len=100).scheduler.capacity_tokens == 100


def test_guesses_are_rows_behind_the_one_they_follow_and_come_true_or_not() -> None:
    bench = Bench(speculate_tokens=3)
    bench.runner.token_for = lambda state, size: next(said)
    said = iter([1, 2, 3, 1, 2, 3, 9, 9, 7, 7, 7, 7])
    bench.add("a", [1, 2, 3], 6)
    assert bench.rows(bench.step()) == [("a", 0, 3)]
    # 1 came; 2 3 1 was what followed 3 1 … no: nothing was there before, the pair (3, 1) is new
    assert bench.rows(bench.step()) == [("a", 3, 4)]
    schedule = bench.step()  # (1, 2) was there: 3 1 2 are guessed; 3, 1, 2 and then 3 come
    assert bench.rows(schedule) == [("a", 4, 5), ("a", 5, 6), ("a", 6, 7), ("a", 7, 8)]
    assert [span.guess for span in schedule.spans] == [None, 3, 1, 2]
    assert bench.answers["a"] == [1, 2, 3, 1, 2, 3]
    assert bench.ends["a"].finish == "length"
    assert bench.scheduler.speculation.as_json()["prompt"] == {"drafted": 3, "accepted": 3}


@pytest.mark.parametrize("blocks", [6, 20])
def test_guesses_take_nobodys_block_and_leave_none_behind(blocks: int) -> None:
    bench = Bench(blocks=blocks, speculate_tokens=8)
    for name, prompt in {"a": [1] * 10, "b": [3] * 4}.items():
        answer = solo(prompt, 9)
        halfway = [*prompt, *answer[:2], 7, *answer[3:6], 7, *answer[7:]]
        bench.scheduler.speculation.answers.note("", halfway, answer_start=len(prompt))
        bench.add(name, prompt, 10 if name == "a" else 4)
    most = 0
    while bench.scheduler.busy:
        most = max(most, bench.step().rows)
        for one in bench.scheduler._running:
            assert len(one.blocks) <= -(-len(one.tokens) // P), "room for guesses was kept"
    assert most > 3
    assert bench.scheduler.preemptions == 0
    assert bench.answers == {"a": solo([1] * 10, 10), "b": solo([3] * 4, 4)}
    counts = bench.scheduler.speculation.as_json()["answers"]
    assert 0 < counts["accepted"] < counts["drafted"]


def test_an_end_token_among_right_guesses_ends_the_answer_there() -> None:
    bench = Bench(speculate_tokens=4)
    said = iter([5, END])
    bench.runner.token_for = lambda state, size: next(said, 9)
    bench.scheduler.speculation.answers.note("", [1, 2, 5, END, 9, 9, 9], answer_start=2)
    bench.add("a", [1, 2], 20)
    bench.drain()
    assert bench.answers["a"] == [5]
    assert bench.ends["a"].finish == "stop"


@pytest.mark.parametrize("seed", range(12))
def test_any_traffic_on_a_tiny_pool_gets_the_answers_of_a_lonely_engine(seed: int) -> None:
    dice = random.Random(seed)
    blocks = 11  # one request of 40 tokens, and a tenth
    bench = Bench(
        blocks=blocks,
        sequences=dice.choice([2, 4, 8]),
        exact_decode=dice.random() < 0.5,
        speculate_tokens=dice.choice([0, 8]),
        idle_tiles=dice.choice([1, 3]),
    )
    trunk = [dice.randrange(1, 50) for _ in range(2 * P)]
    wanted: dict[str, tuple[list[int], int]] = {}
    for number in range(40):
        prompt = trunk[: dice.choice([0, P - 1, P, P + 1, 2 * P])]
        prompt += [dice.randrange(1, 3) for _ in range(dice.choice([1, P - 1, P, P + 1, 3 * P]))]
        count = dice.choice([0, 1, P - 1, P, P + 1, 5 * P])
        name = f"r{number}"
        wanted[name] = (prompt, count)
        bench.add(
            name,
            prompt,
            count,
            salt=dice.choice(["", "s"]),
            lane=dice.choice(["interactive", "batch", "warm"]),
            priority=dice.choice(["high", "medium", "low"]),
            ttl_s=dice.choice([1.0, 1000.0]),
            reuse=dice.random() < 0.9,
            score_prompt=dice.random() < 0.1,
        )
        for _ in range(dice.choice([0, 0, 1, 3])):
            bench.step()
        if dice.random() < 0.2:
            bench.abort(dice.choice(list(wanted)))
        if dice.random() < 0.05:
            bench.scheduler.index.invalidate(dice.choice(["", "s", None]))
    bench.drain()
    for name, (prompt, count) in wanted.items():
        expected = solo(prompt, count)
        if bench.ends[name].finish == "abort":
            assert bench.answers[name] == expected[: len(bench.answers[name])]
        else:
            assert bench.answers[name] == expected
    pool = bench.scheduler.index.pool
    assert pool.held_blocks == 0
    bench.scheduler.index.invalidate()
    assert pool.free_blocks == blocks
