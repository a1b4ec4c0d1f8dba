"""The rows of a step: which token intervals of which sequences it computes. Plain data, torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.request import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """tokens[start:stop) of one sequence are computed in this step, in one row each.

    Their KV is written at positions [start, stop) and they attend to [0, own position].
    `sample` asks for the logits of the last row (position stop-1). `guess` says that the token is one:
    the row counts only if just that token is sampled from the row before it.
    One step may hold several spans of one sequence: adjoining, in order.
    """

    sequence: Sequence
    start: int
    stop: int
    sample: bool
    guess: int | None = None

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rows of one step: decode spans (one row each, guesses after it) first, then prefill spans."""

    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)

    @property
    def prefill_rows(self) -> int:
        """The same of a step that computes prompts and nothing else; 0 of another."""
        prompts = all(span.start < span.sequence.prefill_stop for span in self.spans)
        return self.rows if prompts else 0

    @property
    def prefills(self) -> list[tuple[int, int]]:
        """(first position, rows) of the prompts, if they are most of the step: for measuring."""
        prompts = [one for one in self.spans if one.start < one.sequence.prefill_stop]
        parts = [(span.start, span.rows) for span in prompts]
        return parts if 2 * sum(rows for _, rows in parts) >= self.rows else []


def decode_spans(sequence: Sequence) -> Iterator[Span]:
    """The row of the last token, and one for each guess behind it."""
    known = sequence.computed + 1
    yield Span(sequence, sequence.computed, known, sample=True)
    for position in range(known, len(sequence.tokens)):
        guess = sequence.tokens[position]
        yield Span(sequence, position, position + 1, sample=True, guess=guess)


def prefill_spans(sequence: Sequence, rows: int) -> Iterator[Span]:
    """The next rows of a prompt; the last one is sampled from if anything is to be said."""
    start, stop = sequence.computed, sequence.computed + rows
    last = stop == sequence.prefill_stop and sequence.sampling.max_tokens > 0
    if sequence.request.score_prompt and not sequence.generated:
        # every row's logits are wanted, and a span gives those of its last row
        for position in range(start, stop):
            scored = position + 1 < sequence.prompt_tokens
            yield Span(sequence, position, position + 1, sample=scored or last)
    else:
        yield Span(sequence, start, stop, sample=last)


def came_true(span: Span) -> bool:
    """Is the guess what came, and does its sequence go on?"""
    sequence = span.sequence
    known = sequence.blocks and span.start < len(sequence.tokens)
    return bool(known) and sequence.tokens[span.start] == span.guess
