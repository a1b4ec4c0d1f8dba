"""What the engine is asked, and what becomes of it: plain data, no tensor.

A `GenerationRequest` is frozen and comes from the server; a `Sequence` is its life in the engine and
is changed by the scheduler alone; a `Pick` is what the sampler chose for one row; a `TokenEvent` is
what the client's side hears: one token, or the end, and every request hears exactly one end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.kv.missed import Missed
from engine.kv.salts import Salt
from engine.receipt import Receipt

Lane = Literal["interactive", "batch", "warm"]
Priority = Literal["high", "medium", "low"]
Tier = Literal["hot", "warm", "cold"]
FinishReason = Literal["stop", "length", "abort", "error"]

LANES: tuple[Lane, ...] = ("interactive", "batch", "warm")  # first goes first
TIERS: tuple[Tier, ...] = ("hot", "warm", "cold")  # the pool, host memory, disk
_LANE_RANK: dict[Lane, int] = {lane: rank for rank, lane in enumerate(LANES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Temperature 0 is greedy: the first of the largest logits.

    `top_k` 0 and `min_p` 0 are off. `stop` holds strings and is judged where text is made (the
    server); the engine itself ends at the model's end tokens and at `max_tokens`. `max_tokens` 0
    computes the prompt and generates nothing. `top_logprobs` None wants no log-probabilities, 0 wants
    the chosen token's alone.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int = 16
    top_logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt to continue.

    `salt` parts the prefix cache: KV of one salt is never seen under another. `priority`, `ttl_s`,
    `floor` and `ceiling` say how long its blocks are worth keeping once nobody uses them, and where
    (`engine.kv.retention`). `reuse` False neither reads nor feeds the prefix cache. `score_prompt` wants
    the log-probability of every prompt token. `session` names the conversation that it is a turn of.
    `quota_bytes` is how much its salt may keep from now on. `own_salts` are others under which the asker
    could have asked as well: what is there but not here may be told.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    salt: Salt = ""
    priority: Priority = "medium"
    ttl_s: float = math.inf
    floor: Tier | None = None
    ceiling: Tier = "cold"
    lane: Lane = "interactive"
    reuse: bool = True
    score_prompt: bool = False
    session: str | None = None
    quota_bytes: int | None = None
    own_salts: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class Sequence:
    """The life of a request in the engine. Only the scheduler writes; sampler and speculation have a field each.

    tokens   prompt, then what was generated; while a step runs, guesses of what comes next behind it
    drafted  how many of `tokens` are such guesses
    blocks   ids of the KV blocks: blocks[i] holds positions [i*P, (i+1)*P). Read it anew in every step:
             a block may be exchanged for an equal one between steps, and preemption empties the list
    computed KV is there for tokens[0:computed)
    prefill_stop  positions [0, prefill_stop) are written by prefill rows, the others by decode rows
    chain    keys of the full blocks of `tokens` in the prefix index, as far as computed
    published  how many leading blocks are in the prefix index
    turn     which turn of a conversation its prompt seems to be
    awaits   key of a block that a running sequence is about to publish; not admitted before
    fetch    blocks on their way up from a lower tier (`engine.kv.tiers`, which alone looks inside)
    sought   the lower tiers were asked since it began to wait
    missed   why not all of the prompt was found, None when it was
    tier_tokens  how many of the prompt's tokens came out of which tier; the others were computed
    moved_bytes  how many bytes of KV were brought up for that
    scores   of the prompt's tokens from the second on, for a request with `score_prompt`
    """

    request: GenerationRequest
    serial: int
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    hit_tokens: int = 0
    prefill_stop: int = 0
    chain: list[bytes] = field(default_factory=list)
    published: int = 0
    turn: int = 1
    preemptions: int = 0
    awaits: bytes | None = None
    fetch: Any = None
    sought: bool = False
    missed: Missed | None = None
    tier_tokens: dict[Tier, int] = field(default_factory=dict)
    moved_bytes: int = 0
    scores: list[Pick] = field(default_factory=list)
    sampler_state: Any = None
    drafted: int = 0
    drafter: Any = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        """First to run, last to step back: lane, then arrival."""
        return _LANE_RANK[self.request.lane], self.serial

    @property
    def generated(self) -> int:
        """How many tokens were generated so far."""
        return len(self.tokens) - self.drafted - len(self.request.prompt)

    def receipt(self) -> Receipt:
        """What became of its prompt. What no tier claims came out of the pool."""
        warm, cold = self.tier_tokens.get("warm", 0), self.tier_tokens.get("cold", 0)
        return Receipt(
            prompt_tokens=self.prompt_tokens,
            hot=self.hit_tokens - warm - cold,
            warm=warm,
            cold=cold,
            moved_bytes=self.moved_bytes,
            missed=self.missed,
        )

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id} {self.request.lane} tokens={self.prompt_tokens}+{self.generated}"
            f" computed={self.computed} hit={self.hit_tokens} blocks={len(self.blocks)})"
        )


class NonFiniteError(ArithmeticError):
    """The model computed no numbers (NaN, infinity) for these sequences; the others are unharmed."""

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = tuple(dict.fromkeys(sequences))
        super().__init__(f"not finite: {', '.join(one.id for one in self.sequences)}")


@dataclass(frozen=True, slots=True)
class Pick:
    """What the sampler chose for one row. Log-probabilities are natural, of the unmodified distribution.

    `top` holds (token, log-probability) of the most likely tokens, best first, as many as asked.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token, or the end (`finish` set), or both in one for the last token.

    `token` is None in an end without a token: an end token of the model (never shown), an abort, an
    error, or a prompt that was only to be computed. `hit_tokens` is how much of the prompt came out of
    the prefix cache. `prompt_scores` is set on the first event of a request that asked `score_prompt`:
    one entry for each prompt token, None for the first, which nothing predicts. `receipt` is set on the
    first event of a request that was computed.
    """

    request_id: str
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    error: str | None = None
    hit_tokens: int = 0
    prompt_scores: tuple[Pick | None, ...] | None = None
    receipt: Receipt | None = None
