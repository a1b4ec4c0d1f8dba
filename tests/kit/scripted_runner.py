"""A model without tensors, for tests of the scheduler and the server.

Its KV of a token is a digest of everything before it, kept by slot as a real pool would keep it. A step
recomputes the digest out of the blocks it is given, so one wrong, stale or foreign block changes every
later token; and the next token is a function of the digest, so `solo` is an oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from engine.request import Pick
from engine.scheduler import Schedule

END = 0  # the end token; never chosen unless `end_after` says so


def digest(before: int, token: int) -> int:
    data = before.to_bytes(8, "big") + token.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def choose(state: int, vocabulary: int) -> int:
    return 1 + state % (vocabulary - 1)


def solo(prompt: Sequence[int], count: int, *, vocabulary: int = 50) -> list[int]:
    """What a request alone on a fresh engine generates."""
    state = 0
    for token in prompt:
        state = digest(state, token)
    answer = []
    for _ in range(count):
        answer.append(choose(state, vocabulary))
        state = digest(state, answer[-1])
    return answer


class ScriptedRunner:
    """Runner and sampler in one. `before_step` may raise, look or wait."""

    exact_decode = True

    def __init__(self, *, blocks: int, block_tokens: int, vocabulary: int = 50) -> None:
        self.block_tokens = block_tokens
        self.vocabulary = vocabulary
        self.slots: list[int | None] = [None] * (blocks * block_tokens)
        self.schedules: list[Schedule] = []
        self.before_step: Callable[[Schedule], None] = lambda schedule: None
        self.token_for: Callable[[int, int], int] = choose
        self.rows_computed = 0
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def forward(self, schedule: Schedule, /) -> list[int]:
        self.before_step(schedule)
        self.schedules.append(schedule)
        self.rows_computed += schedule.rows
        states = []
        for span in schedule.spans:
            state = self._history(span.sequence.blocks, span.start, span.sequence.tokens)
            for position in range(span.start, span.stop):
                state = digest(state, span.sequence.tokens[position])
                self.slots[self._slot(span.sequence.blocks, position)] = state
            if span.sample:
                states.append(state)
        return states

    def pick(self, logits: list[int], schedule: Schedule, /) -> list[Pick]:
        sampled = [span for span in schedule.spans if span.sample]
        assert len(sampled) == len(logits)
        return [Pick(self.token_for(state, self.vocabulary), logprob=-0.5) for state in logits]

    def _slot(self, blocks: Sequence[int], position: int) -> int:
        return blocks[position // self.block_tokens] * self.block_tokens + (
            position % self.block_tokens
        )

    def _history(self, blocks: Sequence[int], stop: int, tokens: Sequence[int]) -> int:
        """The state before position `stop`, read from the pool; every earlier slot must agree."""
        state = 0
        for position in range(stop):
            state = digest(state, tokens[position])
            found = self.slots[self._slot(blocks, position)]
            assert found == state, f"position {position} of {stop}: a block holds other tokens"
        return state
