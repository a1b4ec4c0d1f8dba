"""Whose rows a step has, counted in rows and tiles: no clock."""

import random
from typing import Any

import pytest

from engine.engine import Engine
from engine.kv.blocks import BlockPool
from engine.kv.prefix import PrefixIndex
from engine.lanes import choose, prompt_rows
from engine.request import GenerationRequest, Lane, SamplingParams, Sequence, TokenEvent
from engine.scheduler import Limits, Scheduler
from engine.spans import Schedule
from engine.speculation import RowCost
from tests.kit.hashing_model import HashingModel, solo

P = 8
TILE = 16


def nothing(sequences: list[Sequence]) -> None:
    """No guesses."""


@pytest.mark.parametrize(
    ("answers", "rows"),
    [(0, 512), (1, 127), (64, 64), (65, 130), (100, 156), (127, 129), (128, 128), (129, 127)],
)
def test_prompts_have_the_rest_of_the_answers_tile_or_one_more(answers: int, rows: int) -> None:
    assert prompt_rows(answers, tile=128, idle_tiles=4, interactive=True) == rows


@pytest.mark.parametrize(("answers", "rows"), [(0, 128), (1, 127), (100, 28), (120, 16), (128, 16)])
def test_prompts_of_a_lower_lane_stay_within_a_tile_if_they_can(answers: int, rows: int) -> None:
    assert prompt_rows(answers, tile=128, idle_tiles=4, interactive=False) == rows


def running(lane: Lane, number: int, *, prompt: int, computed: int) -> Sequence:
    request = GenerationRequest(
        id=f"{lane}{number}",
        prompt=tuple(range(1, prompt + 1)),
        sampling=SamplingParams(),
        lane=lane,
    )
    made = Sequence(request=request, serial=number, tokens=list(request.prompt))
    made.prefill_stop, made.computed = prompt, computed
    if computed == prompt:
        made.tokens.append(1)
    return made


def rows_of(schedule: Schedule) -> dict[str, int]:
    found: dict[str, int] = {}
    for span in schedule.spans:
        found[span.sequence.id] = found.get(span.sequence.id, 0) + span.rows
    return found


def chosen(*sequences: Sequence) -> dict[str, int]:
    return rows_of(choose(sequences, tile=TILE, idle_tiles=2, draft=nothing))


def test_lower_lanes_have_what_the_interactive_prompt_leaves_of_its_tiles() -> None:
    prompt = running("interactive", 1, prompt=21, computed=0)
    answer = running("batch", 2, prompt=4, computed=4)
    other = running("batch", 3, prompt=90, computed=8)
    assert chosen(prompt, answer, other) == {"interactive1": 21, "batch2": 1, "batch3": 10}
    full = running("interactive", 1, prompt=32, computed=0)
    assert chosen(full, answer, other) == {"interactive1": 32}


def test_answers_of_the_first_lane_go_before_its_prompts_and_lower_ones_behind() -> None:
    answer = running("interactive", 1, prompt=4, computed=4)
    prompt = running("interactive", 2, prompt=90, computed=0)
    behind = running("warm", 3, prompt=4, computed=4)
    assert chosen(answer, prompt, behind) == {"interactive1": 1, "interactive2": 15}
    assert chosen(answer, behind) == {"interactive1": 1, "warm3": 1}


def test_a_prompt_whose_blocks_are_landing_holds_back_lower_lanes_too() -> None:
    landing = running("interactive", 1, prompt=90, computed=0)
    landing.fetch = object()
    answer = running("batch", 2, prompt=4, computed=4)
    assert chosen(landing, answer) == {}
    beside = running("interactive", 3, prompt=4, computed=4)
    assert chosen(landing, beside, answer) == {"interactive3": 1, "batch2": 1}


def test_only_who_does_not_stand_behind_is_guessed_for() -> None:
    asked: list[list[Sequence]] = []
    prompt = running("interactive", 1, prompt=21, computed=0)
    answer, behind = (running(lane, 2, prompt=4, computed=4) for lane in ("interactive", "batch"))
    choose([answer, prompt, behind], tile=TILE, idle_tiles=2, draft=asked.append)
    assert asked == [[answer]]


class Load:
    """An engine under traffic; every answer is checked against its solo oracle."""

    def __init__(self, *, sequences: int, blocks: int = 4000, **limits: Any) -> None:
        self.model = HashingModel(blocks=blocks, block_tokens=P)
        asked = {"chunk_tokens": TILE, "max_model_len": 10_000, **limits}
        self.scheduler = Scheduler(
            PrefixIndex(BlockPool(blocks), block_tokens=P),
            Limits(max_sequences=sequences, **asked),
            end_tokens=frozenset(),
        )
        self.engine = Engine(self.scheduler, self, self.model, clock=lambda: 0.0)
        self.step_rows: list[int] = []
        self.first_after: dict[str, int] = {}  # request -> tiles computed since it was asked
        self.tiles_at: dict[str, int] = {}
        self.tiles = 0
        self.count = 0
        self.requests: dict[str, GenerationRequest] = {}
        self.said: dict[str, list[int]] = {}

    def close(self) -> None:
        """It has no threads."""

    def forward(self, schedule: Schedule, /) -> list[bytes]:
        self.step_rows.append(schedule.rows)
        self.tiles += -(-schedule.rows // TILE)
        return self.model.forward(schedule)

    def ask(self, dice: random.Random, *, prompt: int, tokens: int, lane: Lane) -> str:
        self.count += 1
        request = GenerationRequest(
            id=f"{lane}{self.count}",
            prompt=tuple(dice.randrange(1, 5) for _ in range(prompt)),
            sampling=SamplingParams(max_tokens=tokens, seed=self.count),
            lane=lane,
        )
        self.requests[request.id], self.said[request.id] = request, []
        self.tiles_at[request.id] = self.tiles
        self.scheduler.add(request)
        return request.id

    def step(self) -> list[TokenEvent]:
        events = self.engine.step()
        for event in events:
            name = event.request_id
            assert event.token is not None
            if not self.said[name]:
                self.first_after[name] = self.tiles - self.tiles_at[name]
            self.said[name].append(event.token)
            if event.finish is not None:
                assert self.said.pop(name) == _says(self.requests.pop(name))
        return events


def _says(request: GenerationRequest) -> list[int]:
    return solo(request, ends=False)


@pytest.mark.parametrize("cost", [RowCost((2, 4, 8, TILE), fixed=4.0), RowCost(fixed=2.0)])
@pytest.mark.parametrize("streams", [8, 9, 12, 16, 17, 24, 64])
def test_streams_go_on_in_every_step_and_none_costs_three_quiet_ones(
    streams: int, cost: RowCost
) -> None:
    dice = random.Random(streams)
    load = Load(sequences=streams + 4)
    names = {load.ask(dice, prompt=3, tokens=60, lane="interactive") for _ in range(streams)}
    while len(load.first_after) < streams:
        load.step()
    quiet = cost.of(streams)
    beside = 0
    for _ in range(40):
        if load.scheduler.running < streams + 2:
            load.ask(dice, prompt=100, tokens=1, lane="interactive")
        heard = {event.request_id for event in load.step()}
        assert names <= heard, "a step without a token"
        beside += load.step_rows[-1] - streams
        assert cost.of(load.step_rows[-1]) <= 3 * quiet
    assert beside > 200, "no prompts were computed beside the streams"


@pytest.mark.parametrize("seed", range(4))
def test_lower_lanes_never_cost_an_interactive_first_token_more_than_one_tile(seed: int) -> None:
    dice = random.Random(seed)
    load = Load(sequences=12, blocks=90, speculate_tokens=4)
    lower: tuple[Lane, ...] = ("batch", "warm")
    asked = 0
    while asked < 60:
        while load.scheduler.waiting + load.scheduler.running < 14:
            prompt, tokens = dice.choice([(5, 40), (100, 4), (30, 12)])
            load.ask(dice, prompt=prompt, tokens=tokens, lane=dice.choice(lower))
        for _ in range(dice.randrange(5)):
            load.step()
        before = load.tiles
        load.step()
        prompt = dice.randrange(1, 120)
        name = load.ask(dice, prompt=prompt, tokens=1, lane="interactive")
        load.tiles_at[name] = before  # it came while that step ran, and waits for all of it
        while name not in load.first_after:
            load.step()
        asked += 1
        alone = -(-prompt // TILE)
        assert load.first_after[name] <= alone + 1, f"{prompt} tokens"
    assert load.scheduler.preemptions > 0
    while load.scheduler.busy:  # and the lower lanes get all they asked for
        load.step()
    assert not load.requests
