"""The choice of the next token."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.request import Pick, SamplingParams, Sequence
from engine.sampler import Sampler
from engine.scheduler import Schedule, Span
from tests.kit.stage import sequence

VOCAB = 64
LOGITS = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 3


def asked(generated: list[int] | None = None, **sampling: Any) -> Sequence:
    tokens = [1, 2, 3, *(generated or [])]
    return sequence(tokens, [0], prompt_tokens=3, sampling=SamplingParams(**sampling))


def pick(logits: Tensor, *ones: Sequence) -> list[Pick]:
    spans = tuple(Span(one, len(one.tokens) - 1, len(one.tokens), sample=True) for one in ones)
    return Sampler().pick(logits.expand(len(ones), -1), Schedule(spans))


def draws(count: int, logits: Tensor = LOGITS, **sampling: Any) -> Counter[int]:
    one = asked(**{"seed": 5, **sampling})
    return Counter(pick(logits, one)[0].token for _ in range(count))


def probabilities(temperature: float = 1.0) -> Tensor:
    return (LOGITS.double() / temperature).softmax(0)


def test_temperature_zero_takes_the_largest_and_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(VOCAB)
    logits[[9, 4, 30]] = 2.5
    assert pick(logits, asked(temperature=0.0)) == [Pick(4)]
    assert pick(logits, asked(temperature=0.0, logit_bias={50: 0.1})) == [Pick(4)]


def test_frequencies_are_the_softmax_at_its_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        seen = draws(4000, temperature=temperature)
        expected = probabilities(temperature)
        apart = sum(abs(seen[i] / 4000 - float(expected[i])) for i in range(VOCAB)) / 2
        assert apart < 0.05, f"{temperature}: {apart}"


def test_a_very_small_temperature_is_greedy_and_finite() -> None:
    assert set(draws(20, temperature=1e-30)) == {int(LOGITS.argmax())}


def test_top_k_leaves_that_many() -> None:
    best = LOGITS.topk(3).indices.tolist()
    assert set(draws(500, top_k=3, temperature=3.0)) == set(best)
    assert len(draws(500, top_k=10**6, temperature=5.0)) > 30


def test_top_p_leaves_the_smallest_set_that_reaches_it() -> None:
    values, ids = probabilities().sort(descending=True)
    kept = 1
    while float(values[:kept].sum()) < 0.7:
        kept += 1
    assert set(draws(3000, top_p=0.7)) == set(ids[:kept].tolist())
    assert set(draws(50, top_p=1e-9)) == {int(LOGITS.argmax())}


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0])  # four equals; two of them are half of four
    assert set(draws(100, logits, top_k=2, top_p=0.5)) == {0}
    assert set(draws(100, logits, top_p=0.5)) == {0, 1}


def test_min_p_is_measured_against_the_most_likely() -> None:
    p = probabilities()
    allowed = {i for i in range(VOCAB) if p[i] >= 0.2 * p.max()}
    assert set(draws(3000, min_p=0.2)) == allowed
    assert set(draws(20, min_p=1.0)) == {int(LOGITS.argmax())}


def test_the_same_seed_draws_the_same_whatever_runs_beside_it() -> None:
    alone = asked(seed=11)
    expected = [pick(LOGITS, alone)[0].token for _ in range(30)]
    one, others = asked(seed=11), [asked(seed=i) for i in range(5)]
    beside = [pick(LOGITS, *others[:3], one, *others[3:])[3].token for _ in range(30)]
    assert beside == expected
    assert [pick(LOGITS, others[0])[0].token for _ in range(30)] != expected


def test_without_a_seed_two_requests_draw_differently() -> None:
    one, other = asked(temperature=3.0), asked(temperature=3.0)
    assert [pick(LOGITS, one) for _ in range(30)] != [pick(LOGITS, other) for _ in range(30)]


def test_bias_forces_forbids_and_ignores_what_is_no_token() -> None:
    best = int(LOGITS.argmax())
    assert pick(LOGITS, asked(temperature=0.0, logit_bias={7: 100.0}))[0].token == 7
    assert pick(LOGITS, asked(temperature=0.0, logit_bias={best: -100.0}))[0].token != best
    assert pick(LOGITS, asked(temperature=0.0, logit_bias={10**6: 100.0}))[0].token == best
    assert set(draws(50, logit_bias={7: 100.0})) == {7}


def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    logits = torch.zeros(VOCAB)
    logits[1], logits[8], logits[9] = 5.0, 4.0, 3.5

    def greedy(generated: list[int], **sampling: float) -> int:
        return pick(logits, asked(generated, temperature=0.0, **sampling))[0].token

    assert greedy([], presence_penalty=2.0) == 1, "token 1 is in the prompt"
    assert greedy([1], presence_penalty=1.5) == 8
    assert greedy([1, 1, 1], presence_penalty=0.5) == 1, "presence counts once"
    assert greedy([1, 1, 1], frequency_penalty=0.5) == 8, "frequency counts each"
    assert greedy([8, 9], presence_penalty=-2.0) == 8, "a negative penalty is a reward"


def test_penalties_follow_the_text_from_step_to_step() -> None:
    logits = torch.zeros(VOCAB)
    logits[10], logits[11] = 1.0, 0.5
    one = asked(temperature=0.0, frequency_penalty=0.3)
    for _ in range(6):
        one.tokens.append(pick(logits, one)[0].token)
    assert one.tokens[3:] == [10, 10, 11, 10, 11, 10]


def test_logprobs_are_the_models_own_before_temperature_and_bias() -> None:
    logprobs = LOGITS.log_softmax(0)
    one = asked(temperature=0.0, logit_bias={7: 100.0}, top_logprobs=3)
    (found,) = pick(LOGITS, one)
    assert found.token == 7
    assert found.logprob == pytest.approx(float(logprobs[7]))
    values, ids = logprobs.topk(3)
    assert [i for i, _ in found.top] == ids.tolist()
    assert [v for _, v in found.top] == pytest.approx(values.tolist())


def test_logprobs_cost_nothing_when_not_asked_and_may_be_the_chosen_ones_alone() -> None:
    assert pick(LOGITS, asked(temperature=0.0))[0].logprob is None
    (found,) = pick(LOGITS, asked(temperature=0.0, top_logprobs=0))
    assert found.logprob is not None
    assert math.exp(found.logprob) <= 1
    assert found.top == ()


def test_equal_logprobs_are_listed_by_id() -> None:
    (found,) = pick(torch.zeros(4), asked(temperature=0.0, top_logprobs=20))
    assert [i for i, _ in found.top] == [0, 1, 2, 3]


def test_a_span_inside_a_prompt_is_scored_by_the_prompts_next_token() -> None:
    one = sequence([5, 6, 7, 8], [0], sampling=SamplingParams(temperature=0.0, top_logprobs=0))
    spans = tuple(Span(one, at, at + 1, sample=True) for at in range(4))
    picks = Sampler().pick(LOGITS.expand(4, -1), Schedule(spans))
    assert [found.token for found in picks] == [6, 7, 8, int(LOGITS.argmax())]
    assert picks[0].logprob == pytest.approx(float(LOGITS.log_softmax(0)[6]))


def test_nothing_sampled_gives_no_picks() -> None:
    one = asked()
    schedule = Schedule((Span(one, 0, 2, sample=False),))
    assert Sampler().pick(torch.empty(0, VOCAB), schedule) == []


def test_the_logits_are_left_as_they_were() -> None:
    before = LOGITS.clone()
    pick(LOGITS, asked(seed=1, logit_bias={3: 5.0}, temperature=0.5, top_p=0.5, top_logprobs=2))
    assert torch.equal(LOGITS, before)
