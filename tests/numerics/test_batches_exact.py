"""Whole rows of logits, bit by bit: cold, found again, alone, among eight, in any chunks and any order.

Requests from a random tree of prompts run through engines that differ in everything but the model: who
arrives when and beside whom, how much of a prompt a step computes, how many blocks there are, who leaves,
whether tokens are guessed. A row of logits belongs to a request and a position, and may not differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.request import GenerationRequest, Pick, SamplingParams
from engine.spans import Schedule
from tests.kit.lab import Lab, P, Run, lab_of

SAMPLING = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
LENGTHS = (P - 1, P, P + 1, 2 * P)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "native"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab_of(request, tmp_path_factory.mktemp("tiny"))


@dataclass
class Recorder:
    """A sampler that keeps the logits of every row that counted."""

    pick_really: Any
    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def pick(self, logits: Tensor, schedule: Schedule, /) -> list[Pick]:
        picks: list[Pick] = self.pick_really(logits, schedule)
        sampled = [span for span in schedule.spans if span.sample]
        for span, row, pick in zip(sampled, logits, picks, strict=True):
            if pick.token >= 0:
                name = span.sequence.id.partition(" ")[0]
                self.rows[name, span.stop] = row.clone()
        return picks


def recorded(lab: Lab, *, blocks: int = 64, idle_tiles: int = 4, **options: Any) -> Run:
    engine = lab.engine(blocks, **{"max_sequences": 8, **options})
    engine.scheduler.limits = replace(engine.scheduler.limits, idle_tiles=idle_tiles)
    engine.sampler = Recorder(engine.sampler.pick)
    return Run(engine)


def rows(run: Run) -> dict[tuple[str, int], Tensor]:
    assert isinstance(run.engine.sampler, Recorder)
    return run.engine.sampler.rows


@st.composite
def trees(draw: st.DrawFn) -> list[GenerationRequest]:
    """Up to eight requests over a tree of common beginnings."""
    tokens = st.integers(3, 250)

    def some(length: int) -> list[int]:
        return draw(st.lists(tokens, min_size=length, max_size=length))

    trunk = some(draw(st.sampled_from(LENGTHS)))
    twigs = [trunk + some(draw(st.sampled_from(LENGTHS))) for _ in range(2)]
    return [
        GenerationRequest(
            id=f"r{number}",
            prompt=tuple(
                draw(st.sampled_from([[], trunk, *twigs])) + some(draw(st.integers(1, 4)))
            ),
            sampling=replace(
                SAMPLING,
                max_tokens=draw(st.integers(1, 10)),
                temperature=draw(st.sampled_from([0.0, 1.0])),
                seed=number,
            ),
            salt=draw(st.sampled_from(["", "s"])),
            lane=draw(st.sampled_from(["interactive", "batch"])),
        )
        for number in range(draw(st.integers(2, 8)))
    ]


def assert_same(found: Run, expected: Run, how: str) -> None:
    known = rows(expected)
    assert rows(found)
    for place, row in rows(found).items():
        assert torch.equal(row, known[place]), f"{how}: {place} has other logits"


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(requests=trees(), data=st.data())
def test_logits_are_exactly_those_of_each_request_alone(
    lab: Lab, requests: list[GenerationRequest], data: st.DataObject
) -> None:
    cold = recorded(lab, speculate_tokens=0)
    for request in requests:
        cold.add(replace(request, reuse=False))
        cold.drain()

    warm = recorded(lab)
    for turn in range(2):
        for request in requests:
            warm.add(replace(request, id=f"{request.id} {turn}"))
            warm.drain()
    assert_same(warm, cold, "found again")

    together = recorded(lab, idle_tiles=data.draw(st.sampled_from([1, 2])))
    together.add(*data.draw(st.permutations(requests)))
    together.drain()
    assert rows(together).keys() == rows(cold).keys()
    assert_same(together, cold, "among others")

    longest = max(len(one.prompt) + one.sampling.max_tokens for one in requests)
    crowded = recorded(lab, blocks=-(-longest * 11 // (10 * P)), idle_tiles=1)
    for request in data.draw(st.permutations(requests)):
        crowded.add(request)
        crowded.step(data.draw(st.integers(0, 3)))
        if data.draw(st.integers(0, 4)) == 0:
            crowded.abort(data.draw(st.sampled_from(requests)).id)
    crowded.drain()
    assert_same(crowded, cold, "in a small pool")


def test_a_request_that_steps_back_again_and_again_keeps_exactly_its_logits(lab: Lab) -> None:
    prompts = [tuple(range(9 + n, 9 + n + 3 * P - 2)) for n in range(4)]
    sampling = replace(SAMPLING, max_tokens=P + 4)
    requests = [
        GenerationRequest(id=f"r{n}", prompt=prompt, sampling=sampling)
        for n, prompt in enumerate(prompts)
    ]
    cold, crowded = recorded(lab), recorded(lab, blocks=7)
    for request in requests:
        cold.add(replace(request, reuse=False))
        cold.drain()
    crowded.add(*requests)
    crowded.drain()
    assert crowded.engine.scheduler.preemptions >= 2
    assert rows(crowded).keys() == rows(cold).keys()
    assert_same(crowded, cold, "after stepping back")
