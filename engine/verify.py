"""Is what reuse gave what computing gives? Asked for one call, or for a share of all.

    probe   the prompt with reuse, one token, and nothing else: KV and logits as reuse gives them
    proof   the same prompt without reuse: KV and logits as computing gives them

A `Witness` takes down both where they are made: a digest of each whole block of the prompt, and one of the
logits of its last row. Equal digests are equal bits: the checksum of `engine.kv.blob`, as everybody waits
while it is made (0.06 ms a block of 720 KiB on a busy machine, where blake2b took 1.4). On a mismatch the
log has an error, `mismatched` counts it, the blocks from the first that differs on are forgotten, so that
nobody else finds them, and whoever asked gets the proof's answer: a call that wants verification is always
answered by its proof.

Where the shapes of this machine are not exact (`engine.models.exact`) bits differ without a fault: then
nothing is compared.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from engine.engine import Engine
from engine.errors import EngineError
from engine.kv.blob import checksum
from engine.kv.salts import Salt
from engine.request import GenerationRequest, Lane, SamplingParams
from engine.spans import Schedule

LogitsT = TypeVar("LogitsT")
_ONE_TOKEN: Final = SamplingParams(temperature=0.0, max_tokens=1)
_log = logging.getLogger("engine")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Digests of what was computed of a prompt: one for each whole block, one for its last logits."""

    blocks: tuple[bytes, ...]
    logits: bytes

    def differs_at(self, other: Evidence) -> int | None:
        """The first block that differs; as many as there are when only the logits do; None."""
        pairs = enumerate(zip(self.blocks, other.blocks, strict=True))
        block = next((at for at, (one, two) in pairs if one != two), None)
        if block is None and self.logits != other.logits:
            return len(self.blocks)
        return block


class Witness(Generic[LogitsT]):
    """Takes down what watched requests compute. `saw` runs in the engine's thread, after each step.

    `block` copies a block out of the pool, `logits` a row out of a step's.
    """

    def __init__(
        self,
        block: Callable[[int], bytes | memoryview],
        logits: Callable[[LogitsT, int], bytes],
        *,
        block_tokens: int,
    ) -> None:
        self._block = block
        self._logits = logits
        self._block_tokens = block_tokens
        self._watched: dict[str, Evidence | None] = {}

    def watch(self, request_id: str) -> None:
        """From its next step on."""
        self._watched[request_id] = None

    def take(self, request_id: str) -> Evidence | None:
        """What was seen of it, if it came to the end of its prompt; it is watched no more."""
        return self._watched.pop(request_id, None)

    def saw(self, schedule: Schedule, logits: LogitsT) -> None:
        """A step was computed, and nothing of it is released yet."""
        if not self._watched:
            return
        row = -1
        for span in schedule.spans:
            row += span.sample
            sequence = span.sequence
            if span.sample and span.stop == sequence.prompt_tokens and sequence.id in self._watched:
                whole = sequence.blocks[: sequence.prompt_tokens // self._block_tokens]
                digests = tuple(checksum(self._block(block)) for block in whole)
                evidence = Evidence(digests, checksum(self._logits(logits, row)))
                self._watched[sequence.id] = evidence

    def __repr__(self) -> str:
        return f"Witness({len(self._watched)} watched)"


@dataclass(frozen=True, slots=True)
class Probe:
    """What reuse gave for a prompt: of so many reused tokens."""

    tokens: tuple[int, ...]
    salt: Salt
    hit_tokens: int
    evidence: Evidence


class Verifier:
    """Compares, counts, forgets. `draw` is chance in [0, 1): a call is checked when it is below `share`."""

    def __init__(
        self,
        engine: Engine[Any],
        witness: Witness[Any],
        *,
        exact: bool,
        share: float = 0.0,
        draw: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._engine = engine
        self._witness = witness
        self._exact = exact
        self._share = share
        self._draw = draw
        self._behind: asyncio.Task[None] | None = None
        self.verified = self.mismatched = self.skipped = 0
        engine.witness = witness.saw

    async def probe(self, tokens: Sequence[int], salt: Salt, lane: Lane) -> Probe | None:
        """What reuse gives now; None where nothing can be compared. Raises what `generate` raises."""
        if not self._exact:
            return None
        request = GenerationRequest(
            id=f"probe-{secrets.token_hex(12)}",
            prompt=tuple(tokens),
            sampling=_ONE_TOKEN,
            salt=salt,
            priority="low",
            ttl_s=0.0,  # it is no reason to keep anything
            lane=lane,
        )
        self.watch(request.id)
        try:
            hit_tokens = await self._run(request)
        finally:
            evidence = self._witness.take(request.id)
        return None if evidence is None else Probe(request.prompt, salt, hit_tokens, evidence)

    def watch(self, request_id: str) -> None:
        """The proof of a probe is about to be computed. `judge` it, or `unwatch`."""
        self._witness.watch(request_id)

    def unwatch(self, request_id: str) -> None:
        """Nobody asks any more; may be said after `judge` too."""
        self._witness.take(request_id)

    async def judge(self, probe: Probe, request_id: str) -> bool | None:
        """Whether the proof that was watched agrees; None when it did not come to its prompt's end."""
        proof = self._witness.take(request_id)
        if proof is None:
            return None
        self.verified += 1
        block = probe.evidence.differs_at(proof)
        if block is None:
            return True
        self.mismatched += 1
        per_block = self._engine.scheduler.index.block_tokens
        whole = len(probe.evidence.blocks)
        first = 0 if block == whole else block * per_block
        forgotten = await self._forget(probe, first)
        what = "the logits alone differ" if block == whole else f"KV differs from token {first} on"
        _log.error(
            "verification failed: %s, of a prompt of %d tokens of which %d were reused; %s",
            what,
            len(probe.tokens),
            probe.hit_tokens,
            forgotten,
        )
        return False

    async def _forget(self, probe: Probe, first: int) -> str:
        """Nobody else is to find what is wrong; says what became of it."""
        try:
            gone = await self._engine.ask(
                lambda scheduler: scheduler.index.invalidate_from(
                    probe.tokens, probe.salt, from_token=first
                )
            )
        except OSError as error:  # the pool has forgotten it; whoever asked is right all the same
            return f"the disk may have kept what the pool forgot ({error})"
        return f"{gone} tokens of KV were forgotten"

    def served(self, tokens: Sequence[int], salt: Salt, *, hit_tokens: int) -> None:
        """A call with these reused tokens was answered: check it behind everybody's back, by chance."""
        if not (hit_tokens and self._share and self._exact) or self._draw() >= self._share:
            return
        if self._behind is not None:
            self.skipped += 1  # one at a time: it is no use to be behind with it
            return
        self._behind = asyncio.create_task(self._check(tuple(tokens), salt))  # noqa: TID251 - held in _behind, and it raises nothing
        self._behind.add_done_callback(self._done)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._behind = None

    async def _check(self, tokens: tuple[int, ...], salt: Salt) -> None:
        with suppress(EngineError):  # overloaded, or ending: then not
            probe = await self.probe(tokens, salt, "warm")
            if probe is None:
                return
            proof = GenerationRequest(
                id=f"proof-{secrets.token_hex(12)}",
                prompt=tokens,
                sampling=_ONE_TOKEN,
                lane="warm",
                reuse=False,
            )
            self.watch(proof.id)
            try:
                await self._run(proof)
                await self.judge(probe, proof.id)
            finally:
                self.unwatch(proof.id)

    async def _run(self, request: GenerationRequest) -> int:
        """Have it computed; how much of it was reused."""
        hit_tokens = 0
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                hit_tokens = event.hit_tokens
        return hit_tokens

    def stats(self) -> dict[str, int]:
        """Prompts compared, those that differed, and those passed over because one was being checked."""
        return {
            "verified": self.verified,
            "mismatched": self.mismatched,
            "skipped": self.skipped,
        }
