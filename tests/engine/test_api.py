"""Whatever a client sends is either understood or refused by name; nothing else happens."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api import Ask, ChatAsk, CompletionAsk, parse_chat, parse_completion
from engine.errors import RequestError
from tests.kit.scripted_service import CHAT, COMPLETIONS, chat, scripted

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats()
VALUES = st.recursive(
    NUMBERS | st.text(max_size=5) | st.sampled_from(["auto", "text", "high", 1, 0.5, 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "salt", "ttl_s", "12", "lane"]), inner
        )
    ),
    max_leaves=6,
)
NAMES = [
    "model",
    "messages",
    "prompt",
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "tools",
    "tool_choice",
    "echo",
    "suffix",
    "best_of",
    "kv",
    "ignore_eos",
    "other",
]
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}


def outcome(parse: Callable[..., Ask], body: object) -> Ask | RequestError:
    try:
        return parse(body, vocabulary=100)
    except RequestError as error:
        return error


@given(change=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_body_is_understood_or_refused(change: dict[str, Any]) -> None:
    for parse, kind in ((parse_chat, ChatAsk), (parse_completion, CompletionAsk)):
        ask = outcome(parse, GOOD | change)
        if isinstance(ask, RequestError):
            assert (ask.param or "?").partition(".")[0].partition("[")[0] in str(ask)
            continue
        assert isinstance(ask, kind)
        sampling = ask.sampling
        assert 0 <= sampling.temperature <= 2
        assert 0 < sampling.top_p <= 1
        assert 1 <= ask.choices <= 16
        assert all(0 <= token < 100 for token in sampling.logit_bias)
        assert all(type(value) is int for value in (sampling.top_k, sampling.max_tokens))


@given(body=VALUES)
def test_any_json_is_understood_or_refused(body: Any) -> None:
    for parse in (parse_chat, parse_completion):
        assert isinstance(outcome(parse, body), Ask | RequestError)


def test_minus_one_and_zero_both_switch_top_k_off() -> None:
    for value in (-1, 0, None):
        assert parse_chat(GOOD | {"top_k": value}, vocabulary=9).sampling.top_k == 0


def test_whole_floats_are_integers() -> None:
    assert parse_chat(GOOD | {"max_tokens": 5.0}, vocabulary=9).max_tokens == 5


def test_the_newer_name_of_the_limit_goes_first() -> None:
    body = GOOD | {"max_tokens": 5, "max_completion_tokens": 7}
    assert parse_chat(body, vocabulary=9).max_tokens == 7


def test_every_retention_member_is_read() -> None:
    kv = {"salt": "ab", "priority": "high", "ttl_s": 3, "lane": "batch", "reuse": False}
    wish = parse_chat(GOOD | {"kv": kv}, vocabulary=9).kv
    assert (wish.salt, wish.priority, wish.ttl_s, wish.lane, wish.reuse) == tuple(kv.values())


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_field"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": "alien"}]}, "messages", "invalid_value"),
        ({"model": 7}, "model", "invalid_type"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.01}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "unsupported_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"seed": 0.5}, "seed", "invalid_type"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "unsupported_value"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias.999", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": 1}, "stream_options", "invalid_type"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
        ({"response_format": "text"}, "response_format", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"kv": 1}, "kv", "invalid_type"),
        ({"kv": {"salt": 1}}, "kv.salt", "invalid_type"),
        ({"kv": {"salt": "x" * 513}}, "kv.salt", "invalid_value"),
        ({"kv": {"priority": "urgent"}}, "kv.priority", "invalid_value"),
        ({"kv": {"lane": "fast"}}, "kv.lane", "invalid_value"),
        ({"kv": {"ttl_s": -1}}, "kv.ttl_s", "invalid_value"),
        ({"kv": {"reuse": "no"}}, "kv.reuse", "invalid_type"),
    ],
)
async def test_a_bad_chat_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], param: str, code: str
) -> None:
    async with scripted() as one:
        error = await one.refused(CHAT, chat() | change)
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert one.runner.schedules == []


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_field"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [[]]}, "prompt", "invalid_type"),
        ({"prompt": [1, "x"]}, "prompt", "invalid_type"),
        ({"prompt": ["x", 1]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": [257]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": ["x"] * 65}, "prompt", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"echo": 1}, "echo", "invalid_type"),
        ({"suffix": "end"}, "suffix", "unsupported_value"),
        ({"best_of": 3}, "best_of", "unsupported_value"),
    ],
)
async def test_a_bad_completion_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], param: str, code: str
) -> None:
    async with scripted() as one:
        error = await one.refused(COMPLETIONS, {"prompt": "abc"} | change)
        assert (error["param"], error["code"]) == (param, code)
