"""What a client asks, judged and made into data. No HTTP, no torch.

OpenAI's request bodies for `/v1/chat/completions` and `/v1/completions`, plus the member `kv` of the
gateway. The engine checks type and range of what it understands and answers 400 naming the field. It
refuses what it does not do (`engine.members`) and ignores unknown names, so that newer clients work. An
absent member and `null` mean the same, `true` is no number, and neither is NaN.

`tools` go to the model's chat template; the service refuses them where the template takes none. The
model's answer is text either way, so a `tool_choice` that demands a call is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.fields import TEXT_CHARS, Fields
from engine.members import (
    REFUSED,
    REFUSED_IN_CHAT,
    REFUSED_IN_COMPLETIONS,
    REFUSED_IN_MESSAGES,
    REFUSED_IN_STREAM_OPTIONS,
    refuse_ignored,
)
from engine.request import SamplingParams
from engine.wishes import KvWish, parse_kv

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What both endpoints have in common. `max_tokens` None: as many as there is room for."""

    model: str | None
    choices: int
    max_tokens: int | None
    sampling: SamplingParams
    stream: bool
    include_usage: bool
    kv: KvWish


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk(Ask):
    """A conversation to answer."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionAsk(Ask):
    """Prompts to continue, as text or token ids. `echo` repeats the prompt before the answer."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool


def parse_chat(body: object, *, vocabulary: int) -> ChatAsk:
    """A body of `/v1/chat/completions`. Raises `RequestError` naming the member."""
    fields = Fields(body)
    refuse_ignored(fields, REFUSED, REFUSED_IN_CHAT)
    logprobs = fields.boolean("logprobs", default=False)
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS, beyond="unsupported_value")
    if top is not None and not logprobs:
        fields.fail("top_logprobs", "needs logprobs to be true")
    return ChatAsk(
        messages=parse_messages(fields),
        tools=_tools(fields),
        **_common(fields, vocabulary, (top or 0) if logprobs else None, smallest=1),
    )


def parse_completion(body: object, *, vocabulary: int) -> CompletionAsk:
    """A body of `/v1/completions`. Raises `RequestError` naming the member."""
    fields = Fields(body)
    refuse_ignored(fields, REFUSED, REFUSED_IN_COMPLETIONS)
    logprobs = fields.integer("logprobs", 0, MAX_TOP_LOGPROBS, beyond="unsupported_value")
    common = _common(fields, vocabulary, logprobs, smallest=0)
    best_of = fields.integer("best_of", 1, MAX_CHOICES, beyond="unsupported_value")
    if best_of is not None and best_of != common["choices"]:
        fields.fail("best_of", "must equal n", "unsupported_value")
    if common["max_tokens"] is None:
        common["max_tokens"] = 16  # OpenAI's default of this endpoint
    return CompletionAsk(
        prompts=parse_prompts(fields, vocabulary),
        echo=fields.boolean("echo", default=False),
        **common,
    )


def parse_messages(fields: Fields) -> list[Mapping[str, Any]]:
    """A non-empty list of messages, each an object with a role. Content is the template's to judge."""
    messages = fields.objects("messages")
    if messages is None:
        fields.fail("messages", "is missing", "missing_field")
    if not messages:
        fields.fail("messages", "must not be empty")
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            fields.fail(f"messages[{number}].role", "must be a string", "invalid_type")
        refuse_ignored(Fields(message, f"messages[{number}]."), REFUSED_IN_MESSAGES)
    return messages


def parse_prompts(fields: Fields, vocabulary: int) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or a list of either; each is one prompt."""
    value = fields.raw("prompt")
    if value is None:
        fields.fail("prompt", "is missing", "missing_field")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        fields.fail("prompt", "must be a string, a list of strings or token ids", "invalid_type")
    if not isinstance(value[0], str | list):
        return (_token_ids(fields, "prompt", value, vocabulary),)
    if len(value) > MAX_PROMPTS:
        fields.fail("prompt", f"must hold at most {MAX_PROMPTS} prompts")
    return tuple(
        one if isinstance(one, str) else _token_ids(fields, "prompt", one, vocabulary)
        for one in value
    )


def parse_token_ids(fields: Fields, vocabulary: int) -> tuple[int, ...]:
    """The member `token_ids`, which is one prompt and no text. Raises `RequestError`."""
    value = fields.raw("token_ids")
    if not isinstance(value, list) or not value:
        fields.fail("token_ids", "must be a list of token ids", "invalid_type")
    return _token_ids(fields, "token_ids", value, vocabulary)


def _common(
    fields: Fields, vocabulary: int, top_logprobs: int | None, *, smallest: int
) -> dict[str, Any]:
    """Members of both endpoints, as arguments of `Ask`."""
    stream = fields.boolean("stream", default=False)
    if "stream_options" in fields and not stream:
        fields.fail("stream_options", "is only allowed when stream is true")
    options = Fields(fields.raw("stream_options") or {}, "stream_options.")
    refuse_ignored(options, REFUSED_IN_STREAM_OPTIONS)
    _refuse_formats(fields)
    longest = 2**31
    choices = fields.integer("n", 1, longest) or 1
    if choices > MAX_CHOICES:
        fields.fail("n", f"must be at most {MAX_CHOICES}", "unsupported_value")
    newer = fields.integer("max_completion_tokens", smallest, longest)
    older = fields.integer("max_tokens", smallest, longest)
    return {
        "model": fields.text("model", None),
        "choices": choices,
        "max_tokens": older if newer is None else newer,
        "sampling": SamplingParams(
            temperature=fields.number("temperature", 1, 0, 2),
            top_p=_share(fields, "top_p"),
            top_k=max(0, fields.integer("top_k", -1, 2**31) or 0),
            min_p=fields.number("min_p", 0, 0, 1),
            seed=fields.integer("seed", -(2**63), 2**63 - 1),
            stop=_stops(fields),
            presence_penalty=fields.number("presence_penalty", 0, -2, 2),
            frequency_penalty=fields.number("frequency_penalty", 0, -2, 2),
            logit_bias=_logit_bias(fields, vocabulary),
            top_logprobs=top_logprobs,
            ignore_eos=fields.boolean("ignore_eos", default=False),
        ),
        "stream": stream,
        "include_usage": options.boolean("include_usage", default=False),
        "kv": parse_kv(fields.raw("kv")),
    }


def _share(fields: Fields, name: str) -> float:
    value = fields.number(name, 1, 0, 1)
    if value == 0:
        fields.fail(name, "must be more than 0")
    return value


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        fields.fail("stop", "must be a string or a list of strings", "invalid_type")
    if len(stops) > MAX_STOPS:
        fields.fail("stop", f"must hold at most {MAX_STOPS} strings")
    if not all(0 < len(stop) <= TEXT_CHARS for stop in stops):
        fields.fail("stop", f"must hold strings of 1 to {TEXT_CHARS} characters")
    return tuple(stops)


def _logit_bias(fields: Fields, vocabulary: int) -> dict[int, float]:
    value = fields.raw("logit_bias")
    if value is None:
        return {}
    entries = Fields(value, "logit_bias.")
    bias = {}
    for key in value:
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < vocabulary:
            entries.fail(key, f"is no token id (0 to {vocabulary - 1})")
        bias[token] = entries.number(key, 0, -100, 100)
    return bias


def _refuse_formats(fields: Fields) -> None:
    if fields.raw("response_format"):
        kind = Fields(fields.raw("response_format"), "response_format.").text("type", None)
        if kind != "text":
            fields.fail(
                "response_format", f"of type {kind!r} is not supported", "unsupported_value"
            )


def _tools(fields: Fields) -> list[Mapping[str, Any]] | None:
    choice = fields.raw("tool_choice")
    if choice and choice not in ("none", "auto"):
        fields.fail(
            "tool_choice",
            "can be none or auto: this model cannot be made to call a tool",
            "unsupported_value",
        )
    tools = fields.objects("tools")
    return None if choice == "none" else tools or None


def _token_ids(fields: Fields, name: str, value: object, vocabulary: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        fields.fail(name, "must be a string, a list of strings or token ids", "invalid_type")
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int):
            fields.fail(name, "must not mix token ids with anything else", "invalid_type")
        if not 0 <= token < vocabulary:
            fields.fail(name, f"holds {token}, which is no token id (0 to {vocabulary - 1})")
    return tuple(value)
