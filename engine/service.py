"""A loaded model: a call from its judged body to its deltas, text to tokens and back.

    Ask ──prompts──► Prompt ──► GenerationRequest × choices ──Engine──► TokenEvent ──Choice──► Delta

No HTTP, no torch: what it needs of a tokenizer is the protocol `Text`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from engine.answers import Choice, Kind, Shape, Usage
from engine.api import Ask, ChatAsk, CompletionAsk
from engine.call import Call, Prompt, kept_as, max_tokens
from engine.engine import Engine
from engine.errors import ContextLengthError, RequestError, UnknownModelError
from engine.kv.salts import Layered, Salt
from engine.kv_control import KvControl
from engine.receipt import Receipt
from engine.request import GenerationRequest, SamplingParams
from engine.stats import stats_of
from engine.verify import Probe, Verifier
from engine.wishes import BaseWish, KvWish

_INLINE_CHARS = 4096  # longer texts are made into tokens in a thread: streams must not stall
_LONG_TOKEN_BYTES = 16
ResultT = TypeVar("ResultT")


class Template(Protocol):
    """A model's chat template. `takes_tools`: it writes the request's tools into the prompt."""

    @property
    def takes_tools(self) -> bool: ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt as text. Raises `RequestError`."""


class Text(Protocol):
    """A model's tokenizer, as far as it is needed here."""

    @property
    def vocab(self) -> int: ...
    @property
    def chat(self) -> Template | None: ...
    def encode(self, text: str, *, add_bos: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...
    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes: ...


class Service:
    """A loaded model, ready to answer."""

    def __init__(
        self,
        engine: Engine[Any],
        text: Text,
        *,
        model: str,
        fingerprint: str,
        wall_clock: Callable[[], float],
        vocabulary: int | None = None,
        also_named: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self.engine = engine
        self.verifier = verifier
        self.control = KvControl(engine)
        self.text = text
        self.model = model
        self.fingerprint = fingerprint
        self.facts = dict(facts or {})
        # a tokenizer may know more tokens than the model has rows for
        self.vocabulary = min(text.vocab, vocabulary or text.vocab)
        sizes = (len(text.token_bytes(i, skip_special=False)) for i in range(text.vocab))
        self._longest_token = max(_LONG_TOKEN_BYTES, *sizes)
        self._wall_clock = wall_clock
        self.created = int(wall_clock())
        self._names = {model, "default", *also_named}

    def check_model(self, name: str | None) -> None:
        """Raises `UnknownModelError` for a model that is not this one; naming none is fine."""
        if name is not None and name not in self._names:
            raise UnknownModelError(name)

    async def chat(self, ask: ChatAsk) -> Call:
        """Raises `RequestError` for messages the template refuses or that are too long."""
        self.check_model(ask.model)
        tokens = await self.chat_tokens(ask.messages, tools=ask.tools)
        salt = await self.chat_salt(tokens, ask.messages, ask.kv)
        return await self._call("chat", [Prompt(tokens, salt)], ask)

    async def completion(self, ask: CompletionAsk) -> Call:
        """Raises `RequestError` for an empty prompt or one that is too long."""
        self.check_model(ask.model)
        prompts = []
        for prompt in ask.prompts:
            tokens = await self.prompt_tokens(prompt)
            text = ""
            if ask.echo:
                text = prompt if isinstance(prompt, str) else self._text_of(tokens)
            salt = await self.prompt_salt(tokens, prompt, ask.kv)
            prompts.append(Prompt(tokens, salt, text))
        return await self._call("completion", prompts, ask)

    async def _call(self, kind: Kind, prompts: Sequence[Prompt], ask: Ask) -> Call:
        probes: list[Probe | None] = []
        if self.verifier is not None and ask.kv.verify and ask.kv.reuse:
            probes = [
                await self.verifier.probe(prompt.tokens, prompt.salt, ask.kv.lane)
                for prompt in prompts
            ]
        shape = self._shape(kind, ask)
        return Call(self.engine, shape, prompts, ask, verifier=self.verifier, probes=probes)

    async def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> tuple[int, ...]:
        """Messages through the model's template, as token ids. Raises `RequestError`."""
        template = self.text.chat
        if template is None:
            message = "This model has no chat template; use /v1/completions."
            raise RequestError(message, param="messages", code="unsupported_value")
        if tools and not template.takes_tools:
            message = "tools are not supported: this model's chat template takes none."
            raise RequestError(message, param="tools", code="unsupported_value")

        def encode() -> list[int]:
            text = template.render(
                messages, add_generation_prompt=add_generation_prompt, tools=tools
            )
            return self._encode(text, "messages", add_bos=False)

        # always in a thread: short messages may come with long tools, and a template may be slow
        return _some(await asyncio.to_thread(encode), "messages")

    async def prompt_tokens(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        """A plain prompt as token ids; ids stay as they are."""
        if not isinstance(prompt, str):
            return prompt
        tokens = await _off_loop(lambda: self._encode(prompt, "prompt", add_bos=True), len(prompt))
        return _some(tokens, "prompt")

    async def chat_salt(
        self, tokens: Sequence[int], messages: Sequence[Mapping[str, Any]], wish: KvWish
    ) -> Salt:
        """Who may share the KV of messages that are these tokens. Raises `RequestError`.

        The boundary is found by rendering the base alone, without tools: what both have in common, in
        whole blocks. So no token under the base's salt depends on anything but the base.
        """
        base = wish.base
        if base is None or base.messages is None:
            return self._salt(tokens, wish, ())
        if base.messages > len(messages):
            message = (
                f"kv.base.messages is {base.messages}, but there are {len(messages)} messages."
            )
            raise RequestError(message, param="kv.base.messages")
        beginning = _cut([*messages[: base.messages]], base)
        try:
            alone = await self.chat_tokens(beginning, add_generation_prompt=False)
        except RequestError:
            alone = ()  # a template that takes no such beginning: then nothing is shared
        return self._salt(tokens, wish, alone)

    async def prompt_salt(
        self, tokens: Sequence[int], prompt: str | tuple[int, ...], wish: KvWish
    ) -> Salt:
        """The same of a plain prompt: its base is so many characters of text, or tokens."""
        base = wish.base
        alone: Sequence[int] = ()
        if base is not None and isinstance(prompt, str) and base.characters is not None:
            alone = await self.prompt_tokens(prompt[: base.characters])
        elif base is not None:
            alone = tokens[: base.tokens or 0]
        return self._salt(tokens, wish, alone)

    def _salt(self, tokens: Sequence[int], wish: KvWish, alone: Sequence[int]) -> Salt:
        if wish.base is None:
            return wish.salt
        pairs = enumerate(zip(tokens, alone, strict=False))
        ends = min(len(tokens), len(alone))
        common = next((at for at, (one, two) in pairs if one != two), ends)
        return Layered(
            wish.base.salt, wish.salt, common // self.engine.scheduler.index.block_tokens
        )

    def _encode(self, text: str, param: str, *, add_bos: bool) -> list[int]:
        """Token ids, or `ContextLengthError` before making many more than the model takes."""
        capacity = self.engine.scheduler.capacity_tokens
        at_least = -(-len(text.encode()) // self._longest_token)
        if at_least > capacity:
            raise ContextLengthError.at_least(capacity=capacity, prompt=at_least, param=param)
        return self.text.encode(text, add_bos=add_bos)

    async def prefill(self, prompt: Prompt, wish: KvWish) -> tuple[Usage, Receipt]:
        """Compute a prompt and keep its KV. Raises what `Engine.check` raises, `GenerationError`."""
        limit = max_tokens(self.engine, len(prompt.tokens), 0, param="messages")
        request = GenerationRequest(
            id=f"prefill-{secrets.token_hex(12)}",
            prompt=prompt.tokens,
            sampling=SamplingParams(max_tokens=limit),
            **kept_as(wish, prompt.salt),
        )
        choice = Choice(0, (), self.token_bytes, self.token_name, prompt.tokens)
        async with aclosing(self.engine.generate(request)) as events:
            async for event in events:
                for _ in choice.push(event):
                    pass
        assert choice.receipt is not None
        return Usage(len(prompt.tokens), 0, choice.hit_tokens or 0), choice.receipt

    def stats(self) -> dict[str, Any]:
        """The state of engine, pool and index as plain JSON."""
        stats = stats_of(self.engine, {"model": self.model, **self.facts})
        return stats if self.verifier is None else {**stats, "verify": self.verifier.stats()}

    def token_bytes(self, token: int) -> bytes:
        return self.text.token_bytes(token)

    def token_name(self, token: int) -> bytes:
        return self.text.token_bytes(token, skip_special=False)

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self.text.decode(tokens, skip_special=True)

    def _shape(self, kind: Kind, ask: Ask) -> Shape:
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return Shape(
            kind=kind,
            id=prefix + secrets.token_hex(12),
            created=int(self._wall_clock()),
            model=self.model,
            system_fingerprint="fp_" + self.fingerprint[:10],
            logprobs=ask.sampling.top_logprobs is not None,
            token_bytes=self.token_bytes,
            token_name=self.token_name,
        )


def _cut(messages: list[Mapping[str, Any]], base: BaseWish) -> list[Mapping[str, Any]]:
    """The base's messages; the last may go on where the base has ended."""
    if base.characters is None:
        return messages
    content = messages[-1].get("content")
    if not isinstance(content, str):
        message = "kv.base.characters needs the last message of the base to have a text."
        raise RequestError(message, param="kv.base.characters")
    return [*messages[:-1], {**messages[-1], "content": content[: base.characters]}]


def _some(tokens: Sequence[int], param: str) -> tuple[int, ...]:
    if not tokens:
        message = "The prompt has no tokens."
        raise RequestError(message, param=param)
    return tuple(tokens)


async def _off_loop(work: Callable[[], ResultT], size: int) -> ResultT:
    return work() if size <= _INLINE_CHARS else await asyncio.to_thread(work)
