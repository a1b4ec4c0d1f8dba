"""A client that asks for what the engine does not do is told so; what asks for nothing passes."""

from typing import Any

import pytest

from engine.members import HINTS, REFUSED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from tests.kit.scripted_service import CHAT, COMPLETIONS, chat, scripted

FUNCTION = {"name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}

# (member, a value that asks for something, values that ask for nothing)
CONSTRAINTS: list[tuple[str, Any, list[Any]]] = [
    # OpenAI
    ("functions", [FUNCTION], [[]]),
    ("function_call", {"name": "f"}, ["none", "auto"]),
    ("modalities", ["text", "audio"], [["text"], []]),
    ("audio", {"voice": "alloy", "format": "wav"}, [{}]),
    ("web_search_options", {}, []),
    ("web_search_options", {"search_context_size": "low"}, []),
    ("response_format", {"type": "json_object"}, [{"type": "text"}, {}]),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, []),
    ("suffix", "the end", [""]),
    # vLLM
    ("guided_json", SCHEMA, []),
    ("guided_json", {}, []),
    ("guided_choice", ["yes", "no"], [[]]),
    ("guided_regex", "[0-9]+", [""]),
    ("guided_grammar", "root ::= x", [""]),
    ("structured_outputs", {"choice": ["yes"]}, [{}]),
    ("structural_tag", {"type": "structural_tag"}, [{}]),
    ("min_tokens", 5, [0]),
    ("stop_token_ids", [2], [[]]),
    ("allowed_token_ids", [2], [[]]),
    ("bad_words", ["no"], [[]]),
    ("repetition_penalty", 1.2, [1, 1.0]),
    ("use_beam_search", True, [False]),
    ("include_stop_str_in_output", True, [False]),
    ("skip_special_tokens", False, [True]),
    ("truncate_prompt_tokens", 5, []),
    ("prompt_logprobs", 0, [False]),
    ("chat_template", "{{ messages }}", [""]),
    ("chat_template_kwargs", {"enable_thinking": False}, [{}]),
    ("return_token_ids", True, [False]),
    # SGLang
    ("json_schema", SCHEMA, []),
    ("regex", "a+", [""]),
    ("ebnf", "root ::= x", [""]),
    ("stop_regex", "a+", [[]]),
    ("lora_path", "adapter", [""]),
    ("custom_logit_processor", "code", []),
    # llama.cpp
    ("grammar", "root ::= x", [""]),
    ("n_predict", 5, [-1]),
    ("repeat_penalty", 1.1, [1]),
    ("mirostat", 2, [0]),
    ("dry_multiplier", 0.8, [0]),
    ("xtc_probability", 0.5, [0.0]),
    ("typical_p", 0.9, [1.0]),
    ("top_n_sigma", 1, [-1]),
    ("samplers", ["top_k"], [[]]),
    ("n_probs", 5, [0]),
    # of both endpoints, but beyond what there is
    ("n", 17, [1]),
]
IN_CHAT = [
    ("echo", True, [False]),
    ("best_of", 2, [1]),
    ("top_logprobs", 21, []),
    ("tool_choice", "required", ["none", "auto"]),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, [{}]),
]
IN_COMPLETIONS = [
    ("tools", [{"type": "function", "function": FUNCTION}], [[]]),
    ("tool_choice", "required", ["none", "auto"]),
    ("add_special_tokens", False, [True]),
    ("logprobs", 21, []),
    ("logprobs", -1, []),
    ("best_of", 2, [1]),
]
CASES = [
    *[(CHAT, *case) for case in CONSTRAINTS + IN_CHAT],
    *[(COMPLETIONS, *case) for case in CONSTRAINTS + IN_COMPLETIONS],
]


def body(path: str, member: str, value: Any) -> dict[str, Any]:
    base = chat() if path == CHAT else {"prompt": "abc"}
    logprobs = {"logprobs": True} if member == "top_logprobs" else {}
    return {**base, **logprobs, member: value}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_constraint_that_the_engine_would_ignore_is_refused_by_its_name(
    stream: bool,
) -> None:
    async with scripted() as one:
        for path, member, value, _ in CASES:
            error = await one.refused(path, {**body(path, member, value), "stream": stream})
            told = (error["code"], error["param"])
            assert told == ("unsupported_value", member), (path, member, value)
        assert one.runner.schedules == []


async def test_values_that_ask_for_nothing_are_accepted() -> None:
    async with scripted() as one:
        for path, member, _, nothing in CASES:
            for value in (None, *nothing):
                response = await one.post(path, {**body(path, member, value), "max_tokens": 1})
                assert response.status == 200, (path, member, value, await response.text())


async def test_hints_are_accepted_whatever_they_say() -> None:
    async with scripted() as one:
        values: list[Any] = [7, "high", {"type": "x"}, True]
        for value in values:
            hints = dict.fromkeys(HINTS, value)
            assert (await one.post(CHAT, chat() | hints)).status == 200
            assert (await one.post(COMPLETIONS, {"prompt": "abc", **hints})).status == 200


async def test_true_is_not_the_number_one_that_switches_a_penalty_off() -> None:
    async with scripted() as one:
        error = await one.refused(CHAT, chat(repetition_penalty=True))
        assert error["param"] == "repetition_penalty"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prefix": True}, "messages[1].prefix"),
        ({"partial": True}, "messages[1].partial"),
        ({"audio": {"id": "audio_1"}}, "messages[1].audio"),
    ],
)
async def test_a_constraint_within_a_message_is_refused_by_its_place(
    change: dict[str, Any], param: str
) -> None:
    async with scripted() as one:
        messages = [*chat()["messages"], {"role": "assistant", "content": "Well", **change}]
        error = await one.refused(CHAT, {"messages": messages})
        assert (error["code"], error["param"]) == ("unsupported_value", param)


async def test_a_stream_option_that_would_be_ignored_is_refused() -> None:
    async with scripted() as one:
        options = {"include_usage": True, "continuous_usage_stats": True}
        error = await one.refused(CHAT, chat(stream=True, stream_options=options))
        assert error["param"] == "stream_options.continuous_usage_stats"


async def test_tools_are_refused_where_the_models_template_would_drop_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with scripted() as one:
        monkeypatch.setattr(one.text.chat, "takes_tools", False)
        tools = [{"type": "function", "function": FUNCTION}]
        error = await one.refused(CHAT, chat(tools=tools))
        assert (error["code"], error["param"]) == ("unsupported_value", "tools")
        assert (await one.post(CHAT, chat(tools=tools, tool_choice="none"))).status == 200


def test_no_member_is_both_refused_and_a_hint() -> None:
    assert not HINTS & (REFUSED.keys() | REFUSED_IN_CHAT.keys() | REFUSED_IN_COMPLETIONS.keys())
