"""Chooses the next token from logits.

For each row in this order: `logit_bias`, presence and frequency penalty, then the largest (temperature
0) or: temperature, `top_k`, `top_p` of what is left, `min_p` against the most likely, a draw.

A row is chosen by itself from its own generator: with a seed the text does not depend on what else runs
in the step. Log-probabilities are of the model's own distribution, before all of the above.

A guess whose token did not come is not sampled after: the dice are thrown once for each token that is
really generated, so they fall as if nothing had been guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.request import Pick, SamplingParams, Sequence
from engine.spans import Schedule, Span

_REFUTED = Pick(
    -1
)  # after a guess that did not come true; no token, so what follows is refuted as well


@dataclass(slots=True)
class SamplerState:
    """What a sequence's sampling remembers: its dice, and how often it generated which token."""

    generator: torch.Generator
    counts: dict[int, int] = field(default_factory=dict)
    counted: int = 0  # tokens [prompt, prompt + counted) are in `counts`


class Sampler:
    """Holds nothing itself: the state of a sequence lives in its `sampler_state`."""

    @torch.inference_mode()
    def pick(self, logits: Tensor, schedule: Schedule) -> list[Pick]:
        """One pick for each span with `sample`, in order; logits are (such spans, V).

        A span that ends inside a prompt is scored: its pick is the prompt's next token.
        """
        spans = [span for span in schedule.spans if span.sample]
        picks: list[Pick] = []
        assert len(spans) == logits.shape[0], f"{len(spans)} spans, {logits.shape[0]} rows"
        if not spans:
            return picks
        rows = logits.cpu()
        largest: list[int] = rows.argmax(dim=-1).tolist()  # the first of equal ones
        for span, row, first in zip(spans, rows.unbind(0), largest, strict=True):
            if span.guess is not None and span.guess != picks[-1].token:
                picks.append(_REFUTED)
            else:
                picks.append(self._pick(span, row, first))
        return picks

    def _pick(self, span: Span, row: Tensor, largest: int) -> Pick:
        sequence = span.sequence
        sampling = sequence.sampling
        if span.stop < sequence.prompt_tokens:
            token = sequence.tokens[span.stop]
        elif _is_plain_greedy(sampling):
            token = largest
        else:
            token = _choose(row, span)
        if sampling.top_logprobs is None:
            return Pick(token)
        return _with_logprobs(token, row, sampling.top_logprobs)


def _is_plain_greedy(sampling: SamplingParams) -> bool:
    return (
        sampling.temperature == 0
        and not sampling.logit_bias
        and not sampling.presence_penalty
        and not sampling.frequency_penalty
    )


def _choose(row: Tensor, span: Span) -> int:
    """The token that follows a span, from its last row (V,) of logits."""
    sampling = span.sequence.sampling
    state = _state(span.sequence, span.stop)
    row = _adjusted(row, sampling, state)
    if sampling.temperature == 0:
        return int(row.argmax())
    scaled = (row.double() - row.max()) / sampling.temperature  # the most likely stays 0
    ids: Tensor | None = None
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
        scaled, ids = _narrowed(scaled, sampling)
    cumulative = scaled.exp().cumsum(0)
    draw = torch.rand((), dtype=torch.float64, generator=state.generator)
    found = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    place = min(found, len(cumulative) - 1)
    return place if ids is None else int(ids[place])


def _narrowed(scaled: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """The candidates that `top_k`, `top_p` and `min_p` leave, most likely first, and their ids."""
    scaled, ids = scaled.sort(descending=True, stable=True)
    keep = len(scaled)
    if sampling.top_k:
        keep = min(keep, sampling.top_k)
    weights = scaled[:keep].exp()
    if sampling.top_p < 1:
        # the smallest set that reaches top_p: one is kept while those before it have not
        before = weights.cumsum(0) - weights
        keep = max(1, int((before < sampling.top_p * weights.sum()).sum()))
    if sampling.min_p > 0:
        keep = max(1, min(keep, int((weights >= sampling.min_p * weights[0]).sum())))
    return scaled[:keep], ids[:keep]


def _adjusted(row: Tensor, sampling: SamplingParams, state: SamplerState) -> Tensor:
    """Logits with bias and penalties; `row` itself is left alone."""
    changes = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in state.counts.items():
            penalty = sampling.presence_penalty + sampling.frequency_penalty * count
            changes[token] = changes.get(token, 0.0) - penalty
    changes = {token: by for token, by in changes.items() if 0 <= token < len(row)}
    if not changes:
        return row
    tokens = torch.tensor(list(changes))
    return row.index_add(0, tokens, torch.tensor(list(changes.values()), dtype=row.dtype))


def _with_logprobs(token: int, row: Tensor, top: int) -> Pick:
    logprobs = row.log_softmax(0)
    values, ids = logprobs.topk(min(top, len(row)))
    pairs = sorted(zip(ids.tolist(), values.tolist(), strict=True), key=lambda p: (-p[1], p[0]))
    return Pick(token, float(logprobs[token]), tuple(pairs))


def _state(sequence: Sequence, stop: int) -> SamplerState:
    """Brought up to tokens[:stop); further ones are guesses of which nothing is known yet."""
    state = sequence.sampler_state
    if not isinstance(state, SamplerState):
        generator = torch.Generator()
        seed = sequence.sampling.seed
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        state = sequence.sampler_state = SamplerState(generator)
    for token in sequence.tokens[sequence.prompt_tokens + state.counted : stop]:
        state.counts[token] = state.counts.get(token, 0) + 1
    state.counted = stop - sequence.prompt_tokens
    return state
