"""One call being answered: requests to the engine, events to deltas. No HTTP, no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from engine.answers import Choice, Delta, Shape, Usage
from engine.api import Ask, ChatAsk, CompletionAsk
from engine.engine import Engine
from engine.errors import ContextLengthError
from engine.kv.salts import Salt
from engine.receipt import total
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.verify import Probe, Verifier
from engine.wishes import KvWish


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, who may share their KV, and the text an `echo` repeats."""

    tokens: tuple[int, ...]
    salt: Salt = ""
    text: str = ""


class Call:
    """One call being answered: all its choices of all its prompts."""

    def __init__(
        self,
        engine: Engine[Any],
        shape: Shape,
        prompts: Sequence[Prompt],
        ask: Ask,
        *,
        verifier: Verifier | None = None,
        probes: Sequence[Probe | None] = (),
    ) -> None:
        self.shape = shape
        self.prompts = prompts
        self._engine = engine
        self._verifier = verifier
        self._probes = probes or [None] * len(prompts)
        self._requests: list[GenerationRequest] = []
        self._choices: dict[str, Choice] = {}
        for number, prompt in enumerate(prompts):
            for copy in range(ask.choices):
                self._add(number * ask.choices + copy, prompt, ask, copy)
        firsts = [request.id for request in self._requests[:: ask.choices]]
        self._firsts = [self._choices[name] for name in firsts]

    def _add(self, index: int, prompt: Prompt, ask: Ask, copy: int) -> None:
        param = "messages" if isinstance(ask, ChatAsk) else "prompt"
        sampling = _copy_of(ask.sampling, copy)
        limit = max_tokens(self._engine, len(prompt.tokens), ask.max_tokens, param=param)
        echo = isinstance(ask, CompletionAsk) and ask.echo
        request = GenerationRequest(
            id=f"{self.shape.id}-{index}",
            prompt=prompt.tokens,
            sampling=replace(sampling, max_tokens=limit),
            **kept_as(ask.kv, prompt.salt),
            reuse=ask.kv.reuse and self._probes[index // ask.choices] is None,
            score_prompt=echo and self.shape.logprobs,
        )
        self._requests.append(request)
        self._choices[request.id] = Choice(
            index=index,
            stops=sampling.stop,
            token_bytes=self.shape.token_bytes,
            token_name=self.shape.token_name,
            prompt=prompt.tokens,
            echo=prompt.text if echo else None,
        )

    @property
    def indices(self) -> range:
        return range(len(self._requests))

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=sum(len(prompt.tokens) for prompt in self.prompts),
            completion_tokens=sum(choice.generated for choice in self._choices.values()),
            hit_tokens=sum(choice.hit_tokens or 0 for choice in self._firsts),
        )

    def receipt(self) -> dict[str, Any]:
        """What became of its prompts' tokens, each prompt once. Known with the first delta."""
        receipts = [first.receipt for first in self._firsts if first.receipt is not None]
        return total(receipts).as_json(self._engine.prefill_rate.tokens_per_s)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Pieces of all choices as they come; the first one not before the reuse is known.

        Raises `GenerationError`, and what `Engine.check` raises. Closing it ends the generation.
        """
        with self._watched():
            ready: list[Delta] = []
            async with aclosing(self._engine.generate(*self._requests)) as events:
                async for event in events:
                    ready += self._heard(event)
                    if all(first.hit_tokens is not None for first in self._firsts):
                        await self._judge()
                        for delta in ready:
                            yield delta
                        ready.clear()
                    if all(choice.ended for choice in self._choices.values()):
                        break
        self._served()

    def _heard(self, event: TokenEvent) -> list[Delta]:
        choice = self._choices[event.request_id]
        if choice.ended:
            return []  # the rest of what a stop string has cut off
        new = list(choice.push(event))
        if event.finish is None and any(delta.finish for delta in new):
            self._engine.abort(event.request_id)  # a stop string
        return new

    # -- verification ------------------------------------------------------------------------------

    def _proofs(self) -> Iterator[tuple[Probe, str, Choice]]:
        """Each probe, the request that is its proof, and the choice that this makes."""
        copies = len(self._requests) // len(self.prompts)
        firsts = zip(self._probes, self._requests[::copies], self._firsts, strict=True)
        for probe, request, choice in firsts:
            if probe is not None:
                yield probe, request.id, choice

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if self._verifier is None:
            yield
            return
        proofs = [request_id for _, request_id, _ in self._proofs()]
        for request_id in proofs:
            self._verifier.watch(request_id)
        try:
            yield
        finally:
            for request_id in proofs:
                self._verifier.unwatch(request_id)

    async def _judge(self) -> None:
        """Once, when all proofs have been computed."""
        if self._verifier is None:
            return
        for probe, request_id, choice in self._proofs():
            if choice.receipt is not None and choice.receipt.verified is None:
                verdict = await self._verifier.judge(probe, request_id)
                choice.receipt = replace(choice.receipt, verified=verdict)

    def _served(self) -> None:
        if self._verifier is not None:
            for prompt, choice in zip(self.prompts, self._firsts, strict=True):
                self._verifier.served(prompt.tokens, prompt.salt, hit_tokens=choice.hit_tokens or 0)


def kept_as(wish: KvWish, salt: Salt) -> dict[str, Any]:
    """What a request says of its KV, as arguments of `GenerationRequest`."""
    return {
        "salt": salt,
        "priority": wish.priority,
        "ttl_s": wish.ttl_s,
        "floor": wish.floor,
        "ceiling": wish.ceiling,
        "lane": wish.lane,
        "session": wish.session,
        "quota_bytes": wish.quota_bytes,
        "own_salts": wish.own_salts,
    }


def max_tokens(engine: Engine[Any], prompt: int, asked: int | None, *, param: str) -> int:
    """How many tokens may be generated: what was asked, or what is left.

    Raises `ContextLengthError` naming both numbers when the prompt and what was asked do not fit.
    """
    capacity = engine.scheduler.capacity_tokens
    answer = max(1, capacity - prompt) if asked is None else asked
    if prompt + answer > capacity:
        raise ContextLengthError.of(capacity=capacity, prompt=prompt, answer=answer, param=param)
    return answer


def _copy_of(sampling: SamplingParams, copy: int) -> SamplingParams:
    """Every choice of a seeded call has its own seed, the first the one that was given."""
    if sampling.seed is None or not copy:
        return sampling
    seed = (sampling.seed + copy + 2**63) % 2**64 - 2**63
    return replace(sampling, seed=seed)
