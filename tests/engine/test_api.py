"""Whatever a client sends is either understood or refused by name; nothing else happens."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api import Ask, ChatAsk, CompletionAsk, parse_chat, parse_completion
from engine.errors import RequestError

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
