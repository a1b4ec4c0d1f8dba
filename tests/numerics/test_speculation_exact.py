"""With guesses or without: the same tokens, log-probabilities and keys and values, to the last bit.

Two engines with the same tiny model answer the same requests, one of them guessing; guesses come from
prompts that repeat themselves, from what was answered before, and from answers that were tampered with.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.request import GenerationRequest, NonFiniteError, SamplingParams
from engine.scheduler import Schedule
from tests.kit.lab import Lab, P, Run, lab_of

GREEDY = SamplingParams(temperature=0.0, max_tokens=40, top_logprobs=2)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "native"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = lab_of(request, tmp_path_factory.mktemp("tiny"))
    assert made.engine(4).scheduler.limits.exact_decode, "nothing to speculate on"
    return made


def drafted(run: Run) -> tuple[int, int]:
    counts = run.engine.scheduler.speculation.counts.values()
    return sum(count.drafted for count in counts), sum(count.accepted for count in counts)


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
    top_k=st.sampled_from([0, 2, 20]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 9),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5]),
    logit_bias=st.sampled_from([{}, {}, {7: 5.0}, {2: 4.0, 9: 3.0}]),
    max_tokens=st.sampled_from([1, 2, P - 1, P + 1, 60]),
    top_logprobs=st.sampled_from([None, 0, 3]),
    ignore_eos=st.booleans(),
)
PROMPTS = st.builds(
    lambda motif, times, tail: tuple((motif * times + tail)[: 3 * P]),
    st.lists(st.integers(3, 12), min_size=1, max_size=7),
    st.integers(1, 12),
    st.lists(st.integers(3, 250), max_size=3),
)
REQUESTS = st.lists(
    st.tuples(
        PROMPTS,
        SAMPLING,
        st.sampled_from(["", "s"]),
        st.sampled_from(["interactive", "batch"]),
        st.integers(0, 3),  # steps before the next one arrives
        st.sampled_from([None, None, None, 5, 20]),  # tokens after which it is aborted
    ),
    min_size=1,
    max_size=6,
)


def play(lab: Lab, requests: list[Any], *, speculate: int, blocks: int) -> Run:
    """Everything twice: the second time there are earlier answers."""
    run = Run(lab.engine(blocks, speculate_tokens=speculate))
    leaving: dict[str, int] = {}

    def step() -> None:
        run.step()
        for name, after in leaving.items():
            if name not in run.ends and len(run.said[name]) >= after:
                run.abort(name)

    for turn in range(2):
        for number, (prompt, sampling, salt, lane, wait, after) in enumerate(requests):
            name = f"{turn}.{number}"
            run.add(
                GenerationRequest(id=name, prompt=prompt, sampling=sampling, salt=salt, lane=lane)
            )
            if after is not None:
                leaving[name] = after
            for _ in range(wait):
                step()
        while run.engine.scheduler.busy:
            step()
    return run


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(requests=REQUESTS)
def test_any_traffic_says_exactly_the_same_with_guesses(lab: Lab, requests: list[Any]) -> None:
    plain = play(lab, requests, speculate=0, blocks=96)
    guessing = play(lab, requests, speculate=8, blocks=96)
    assert drafted(plain) == (0, 0)
    for name, said in plain.said.items():
        ends = {plain.ends[name], guessing.ends[name]}
        shorter = None if "abort" not in ends else min(len(said), len(guessing.said[name]))
        assert guessing.said[name][:shorter] == said[:shorter], name
        assert "abort" in ends or len(ends) == 1
    kept, other_kept = plain.kept(), guessing.kept()
    for key in kept.keys() & other_kept.keys():
        assert torch.equal(kept[key], other_kept[key]), "other keys and values were published"
    if "abort" not in {*plain.ends.values(), *guessing.ends.values()}:
        assert kept.keys() == other_kept.keys()


@settings(max_examples=8, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(requests=REQUESTS)
def test_a_pool_that_is_always_short_says_exactly_the_same(lab: Lab, requests: list[Any]) -> None:
    longest = max(len(prompt) + sampling.max_tokens for prompt, sampling, *_ in requests)
    blocks = -(-longest * 11 // (10 * P))
    plain = play(lab, requests, speculate=0, blocks=96)
    guessing = play(lab, requests, speculate=8, blocks=blocks)
    for name, said in plain.said.items():
        shorter = len(said)
        if "abort" in (plain.ends[name], guessing.ends[name]):
            shorter = min(shorter, len(guessing.said[name]))
        assert guessing.said[name][:shorter] == said[:shorter], name
    kept = plain.kept()
    for key, block in guessing.kept().items():
        if key in kept:
            assert torch.equal(block, kept[key])
    assert guessing.engine.scheduler.index.pool.held_blocks == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [0.0, 0.2, 1.0])
def test_answers_that_were_tampered_with_change_exactly_nothing(
    lab: Lab, temperature: float, wrong: float
) -> None:
    sampling = replace(GREEDY, temperature=temperature, seed=3, ignore_eos=True, max_tokens=70)
    prompt = tuple(range(20, 20 + P - 2))
    request = GenerationRequest(id="a", prompt=prompt, sampling=sampling)
    plain = Run(lab.engine(8, speculate_tokens=0))
    plain.add(request)
    plain.drain()
    answer = [token for token, _, _ in plain.said["a"]]
    dice = random.Random(1)
    poison = answer[:1] + [
        dice.randrange(3, 250) if dice.random() < wrong else token for token in answer[1:]
    ]
    guessing = Run(lab.engine(8, speculate_tokens=8))
    answers = guessing.engine.scheduler.speculation.answers
    answers.note("", [*prompt, *poison], answer_start=len(prompt))
    guessing.add(request)
    guessing.drain()
    assert guessing.said == plain.said
    tried, right = drafted(guessing)
    assert tried > 0
    steps = guessing.engine.stats().steps
    if wrong == 0.0:
        assert right > 55
        assert steps < 15, "a step a token"
    assert right + steps == len(answer), "each step gives its own token and the right guesses"


def test_the_dice_fall_exactly_once_for_each_token(lab: Lab) -> None:
    """The second of two answers continues the first's random numbers only if none was wasted."""
    sampling = replace(GREEDY, temperature=1.0, seed=11, max_tokens=50, ignore_eos=True)
    states = []
    for speculate in (0, 8):
        run = Run(lab.engine(8, speculate_tokens=speculate))
        run.add(GenerationRequest(id="a", prompt=(5, 6) * 12, sampling=sampling))
        sequence = run.engine.scheduler._by_id["a"]
        run.drain()
        states.append(sequence.sampler_state.generator.get_state())
    assert torch.equal(states[0], states[1])


def test_numbers_that_only_a_guess_breaks_are_not_held_against_its_sequence(lab: Lab) -> None:
    plain, guessing = Run(lab.engine(8, speculate_tokens=0)), Run(lab.engine(8, speculate_tokens=8))
    request = GenerationRequest(id="a", prompt=(5, 6, 7) * 8, sampling=GREEDY)
    other = GenerationRequest(id="b", prompt=(9, 8) * 9, sampling=GREEDY)
    forward = guessing.engine.runner.forward

    def breaks(schedule: Schedule, /) -> torch.Tensor:
        if any(span.sequence.id == "a" and span.guess is not None for span in schedule.spans):
            raise NonFiniteError([span.sequence for span in schedule.spans if span.guess])
        return forward(schedule)

    guessing.engine.runner.forward = breaks  # type: ignore[method-assign]  # to see it fail
    for run in (plain, guessing):
        run.add(request, other)
        run.drain()
    assert guessing.said == plain.said
    assert guessing.ends == plain.ends
    assert guessing.engine.stats().failed_steps == 1
