"""The words of the engine."""

import dataclasses

import pytest

from engine.request import GenerationRequest, SamplingParams, Sequence


def test_a_request_and_its_sampling_cannot_be_changed() -> None:
    request = GenerationRequest(id="a", prompt=(1,), sampling=SamplingParams())
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.salt = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.sampling.temperature = 0  # type: ignore[misc]


def test_a_sequence_counts_prompt_and_answer_and_prints_in_one_line() -> None:
    request = GenerationRequest(id="a", prompt=(1, 2, 3), sampling=SamplingParams(), lane="batch")
    sequence = Sequence(request=request, serial=0, tokens=[1, 2, 3, 9])
    assert (sequence.prompt_tokens, sequence.generated) == (3, 1)
    assert repr(sequence) == "Sequence(a batch tokens=3+1 computed=0 hit=0 blocks=0)"
