"""Rows of a step, as intervals of sequences."""

from engine.request import GenerationRequest, SamplingParams, Sequence
from engine.spans import Schedule, Span, came_true, decode_spans, prefill_spans


def sequence(prompt: list[int], *, max_tokens: int = 5, scored: bool = False) -> Sequence:
    request = GenerationRequest(
        id="a",
        prompt=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens),
        score_prompt=scored,
    )
    made = Sequence(request=request, serial=0, tokens=list(prompt), blocks=[0])
    made.prefill_stop = len(prompt)
    return made


def test_a_guess_is_a_row_of_its_own_behind_the_row_it_follows() -> None:
    one = sequence([1, 2, 3])
    one.computed = 2
    one.tokens += [8, 9]
    spans = list(decode_spans(one))
    assert [(span.start, span.stop, span.guess) for span in spans] == [
        (2, 3, None),
        (3, 4, 8),
        (4, 5, 9),
    ]
    assert all(span.sample for span in spans)
    assert Schedule(tuple(spans)).rows == 3


def test_a_guess_came_true_if_it_is_what_came_and_its_sequence_goes_on() -> None:
    one = sequence([1, 2, 3])
    span = Span(one, 3, 4, sample=True, guess=8)
    assert not came_true(span), "nothing came"
    one.tokens.append(8)
    assert came_true(span)
    one.tokens[3] = 7
    assert not came_true(span)
    one.tokens[3] = 8
    one.blocks = []
    assert not came_true(span), "it has ended"


def test_the_last_row_of_a_prompt_is_sampled_from_unless_nothing_is_to_be_said() -> None:
    one = sequence(list(range(10)))
    assert list(prefill_spans(one, 4)) == [Span(one, 0, 4, sample=False)]
    one.computed = 4
    assert list(prefill_spans(one, 6)) == [Span(one, 4, 10, sample=True)]
    silent = sequence(list(range(10)), max_tokens=0)
    assert list(prefill_spans(silent, 10)) == [Span(silent, 0, 10, sample=False)]


def test_every_row_is_wanted_of_a_prompt_that_is_scored() -> None:
    one = sequence([1, 2, 3], max_tokens=0, scored=True)
    spans = list(prefill_spans(one, 3))
    assert [(span.start, span.sample) for span in spans] == [(0, True), (1, True), (2, False)]
