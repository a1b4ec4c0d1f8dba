"""policies.call: what a request must be, and when two are the same."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.call import (
    DEFAULT_MODEL,
    MAX_DEPTH,
    MAX_INPUTS,
    NOT_IN_THE_ANSWER,
    ONE_CALL_BYTES,
    Endpoint,
    RequestError,
    canonical,
    endpoint_of,
    json_type,
    parse_call,
    verbatim,
)
from policies.keys import fingerprint
from policies.numbers import ExactNumber
from tests.policies.making import call_of, few, json_values

QUESTION = [{"role": "user", "content": "hello"}]


def test_a_call_keeps_unknown_fields_in_their_order_and_drops_only_kv_cache() -> None:
    body = {"zeta": 1, "model": "m", "kv_cache": {}, "messages": QUESTION, "alpha": {"x": None}}
    call = parse_call("chat", body)
    assert list(call.body) == ["zeta", "model", "messages", "alpha"]
    assert "kv_cache" in body, "the client's body is not ours to change"
    assert call.model == "m"
    assert call.messages == QUESTION


def test_only_a_chat_has_messages() -> None:
    assert call_of(endpoint="completions", prompt="once").messages == []


@pytest.mark.parametrize(
    ("stream", "options", "expected"),
    [
        (True, {"include_usage": True}, (True, True)),
        (True, {"include_usage": False}, (True, False)),
        (True, {}, (True, False)),
        (True, None, (True, False)),
        (None, {"include_usage": True}, (False, False)),
        (False, {"include_usage": True, "include_obfuscation": True}, (False, False)),
    ],
)
def test_usage_is_included_only_in_a_stream_that_asks(
    stream: bool | None, options: object, expected: tuple[bool, bool]
) -> None:
    call = call_of(stream=stream, stream_options=options)
    assert (call.stream, call.include_usage) == expected


@pytest.mark.parametrize(
    "content", ["text", "", None, [], [{"type": "text", "text": "hi"}, {"type": "image_url"}]]
)
def test_content_may_be_text_parts_or_nothing(content: object) -> None:
    parse_call("chat", {"model": "m", "messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize("absent", [{}, {"model": None}])
def test_a_response_may_leave_the_model_to_what_the_backend_keeps(absent: dict[str, Any]) -> None:
    call = parse_call("responses", {"prompt": {"id": "pmpt_1"}, **absent})
    assert (call.model, call.names_model, call.stateful) == (DEFAULT_MODEL, False, True)
    named = parse_call("responses", {"model": "m", "input": [{"role": "user", "content": "Hi"}]})
    assert (named.names_model, named.stateful) == (True, False)


def test_content_may_be_absent() -> None:
    parse_call("chat", {"model": "m", "messages": [{"role": "assistant", "tool_calls": []}]})


@pytest.mark.parametrize("value", ["text", "", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_prompt_and_input_may_be_text_texts_tokens_or_lists_of_tokens(value: object) -> None:
    assert parse_call("completions", {"model": "m", "prompt": value}).body["prompt"] == value
    assert parse_call("embeddings", {"model": "m", "input": value}).body["input"] == value


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": QUESTION, **fields}


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        ("chat", [], "invalid_type", None),
        ("chat", None, "invalid_type", None),
        ("chat", {"messages": QUESTION}, "missing_field", "model"),
        ("chat", chat(model=None), "missing_field", "model"),
        ("chat", chat(model=3), "invalid_type", "model"),
        ("chat", chat(model=""), "invalid_value", "model"),
        ("chat", chat(stream="yes"), "invalid_type", "stream"),
        ("chat", chat(stream_options=[]), "invalid_type", "stream_options"),
        (
            "chat",
            chat(stream_options={"include_usage": 1}),
            "invalid_type",
            "stream_options.include_usage",
        ),
        ("chat", {"model": "m"}, "missing_field", "messages"),
        ("chat", chat(messages="hi"), "invalid_type", "messages"),
        ("chat", chat(messages=[]), "invalid_value", "messages"),
        ("chat", chat(messages=["hi"]), "invalid_type", "messages[0]"),
        ("chat", chat(messages=[*QUESTION, {}]), "missing_field", "messages[1].role"),
        ("chat", chat(messages=[{"role": 1}]), "invalid_type", "messages[0].role"),
        (
            "chat",
            chat(messages=[{"role": "user", "content": 1.5}]),
            "invalid_type",
            "messages[0].content",
        ),
        (
            "chat",
            chat(messages=[{"role": "user", "content": ["a"]}]),
            "invalid_type",
            "messages[0].content[0]",
        ),
        ("completions", {"model": "m"}, "missing_field", "prompt"),
        ("completions", {"model": "m", "prompt": 7}, "invalid_type", "prompt"),
        ("completions", {"model": "m", "prompt": []}, "invalid_value", "prompt"),
        ("completions", {"model": "m", "prompt": [True]}, "invalid_type", "prompt[0]"),
        ("completions", {"model": "m", "prompt": ["a", 1]}, "invalid_type", "prompt[1]"),
        ("embeddings", {"model": "m", "prompt": "x"}, "missing_field", "input"),
        ("responses", {"model": "m", "input": 5}, "invalid_type", "input"),
        ("responses", {"model": "m", "input": [{}, "text"]}, "invalid_type", "input[1]"),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_field(
    endpoint: Endpoint, body: object, code: str, param: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        parse_call(endpoint, body)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, code, param)
    assert (param or "body") in error.message


@given(endpoint=st.sampled_from(["chat", "completions", "embeddings"]), body=json_values)
@few
def test_any_json_is_a_call_or_a_request_error(endpoint: Endpoint, body: object) -> None:
    bodies = [body, {"model": "m", "messages": body, "prompt": body, "input": body}]
    for candidate in bodies:
        with suppress(RequestError):
            canonical(parse_call(endpoint, candidate))


@given(fields=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
@few
def test_key_order_and_white_space_do_not_change_the_canonical_form(fields: dict[str, Any]) -> None:
    body = {**fields, "model": "m", "messages": QUESTION, "stream": True, "stream_options": None}
    shuffled = json.loads(json.dumps(dict(reversed(body.items())), indent=3))
    assert canonical(parse_call("chat", body)) == canonical(parse_call("chat", shuffled))


@given(number=st.integers(-(2**53), 2**53))
@few
def test_a_number_is_the_same_however_it_is_spelt(number: int) -> None:
    whole = call_of(temperature=number, nested={"deep": [number]})
    point = call_of(temperature=float(number), nested={"deep": [float(number)]})
    assert canonical(whole) == canonical(point)


def test_numbers_that_are_not_equal_stay_apart() -> None:
    spelt = [0.5, 1, True, "1", 1e300, 1.5e300, float("inf"), float("nan")]
    forms = {canonical(call_of(temperature=value)) for value in spelt}
    assert len(forms) == len(spelt)


def test_null_is_absent_at_the_top_and_a_value_below() -> None:
    assert canonical(call_of(stop=None)) == canonical(call_of())
    assert canonical(call_of(x={"stop": None})) != canonical(call_of(x={}))


def meaning(value: Any) -> Any:
    """What a JSON value says, told apart without any serialiser: the twin of the canonical form."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, dict):
        return {name: meaning(item) for name, item in value.items()}
    if isinstance(value, list):
        return [meaning(item) for item in value]
    return ("text", value)


@given(
    name=st.text(min_size=1, max_size=12).filter(
        lambda name: name not in NOT_IN_THE_ANSWER | {"messages"}
    ),
    one=json_values,
    other=json_values,
)
@few
def test_calls_that_differ_in_one_field_have_different_fingerprints(
    name: str, one: Any, other: Any
) -> None:
    first, second = (
        fingerprint(canonical(parse_call("chat", {**chat(), name: value})))
        for value in (one, other)
    )
    assert (first == second) == (meaning(one) == meaning(other))


@pytest.mark.parametrize("name", sorted(NOT_IN_THE_ANSWER - {"stream", "stream_options", "model"}))
def test_what_cannot_change_the_answer_is_not_in_the_canonical_form(name: str) -> None:
    assert canonical(parse_call("chat", {**chat(), name: "anything"})) == canonical(call_of())


def test_streamed_and_plain_calls_are_the_same_question() -> None:
    streamed = call_of(stream=True, stream_options={"include_usage": True})
    assert canonical(streamed) == canonical(call_of())


def test_the_endpoint_is_part_of_the_question() -> None:
    assert canonical(call_of(endpoint="completions", input="a", prompt="a")) != canonical(
        call_of(endpoint="embeddings", input="a", prompt="a")
    )


SYSTEM = {"role": "system", "content": "be brief"}
DEVELOPER = {"role": "developer", "content": "be kind"}
ANSWER = {"role": "assistant", "content": "yes"}
TOOL = {"role": "tool", "content": "42", "tool_call_id": "1"}


def last_question(*messages: Any) -> list[Any]:
    form = json.loads(canonical(call_of(*messages), context_aware=False))
    found: list[Any] = form[1]["messages"]
    return found


def test_without_context_only_prompts_and_the_last_question_count() -> None:
    last = {"role": "user", "content": "now?"}
    assert last_question(SYSTEM, "before", ANSWER, DEVELOPER, "now?") == [SYSTEM, DEVELOPER, last]
    assert last_question(SYSTEM, "now?") == [SYSTEM, last]


def test_without_context_what_follows_the_last_question_still_counts() -> None:
    assert last_question("a", ANSWER, "b", ANSWER, TOOL)[1:] == [ANSWER, TOOL]


def test_without_context_and_without_a_user_the_last_message_counts() -> None:
    assert last_question(ANSWER, SYSTEM, TOOL) == [SYSTEM, TOOL]


def test_an_answer_found_without_context_is_none_for_a_call_with_context() -> None:
    assert canonical(call_of("a"), context_aware=False) != canonical(call_of("a"))
    prompt = call_of(endpoint="completions", prompt="a")
    assert canonical(prompt, context_aware=False) != canonical(prompt)


def test_a_body_nested_too_deep_is_a_400() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(RequestError, match="nested deeper than 128"):
        canonical(call_of(x=deep))


def test_lone_surrogates_have_a_canonical_form_too() -> None:
    assert canonical(call_of("\ud800")) != canonical(call_of("\ud801"))


def test_messages_name_json_types() -> None:
    values: list[object] = [None, True, 1, 1.5, "s", [], {}]
    assert [json_type(value) for value in values] == [
        "null",
        "a boolean",
        "a number",
        "a number",
        "a string",
        "a list",
        "an object",
    ]


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        ({"messages": []}, "chat"),
        ([], "chat"),
        ({}, "chat"),
        ({"prompt": "x"}, "completions"),
        ({"prompt": [1, 2]}, "completions"),
        ({"prompt": {"id": "pmpt_1"}, "input": "x"}, "responses"),
        ({"input": ["a", "b"]}, "embeddings"),
        ({"input": [1, 2]}, "embeddings"),
        ({"input": [{"role": "user"}]}, "responses"),
        ({"input": []}, "responses"),
        ({"input": "x", "model": "text-Embedding-3"}, "embeddings"),
        ({"input": "x", "model": "gpt-4o"}, "responses"),
    ],
)
def test_a_body_tells_which_endpoint_it_is_for(body: object, endpoint: str) -> None:
    assert endpoint_of(body) == endpoint


def test_numbers_beyond_a_double_are_told_apart_and_equal_ones_are_not() -> None:
    def form(**fields: Any) -> bytes:
        return canonical(call_of("?", **fields))

    assert form(seed=ExactNumber(str(2**64))) != form(seed=ExactNumber(str(2**64 + 1)))
    assert form(seed=ExactNumber(str(2**64))) == form(seed=ExactNumber(f"{2**64}.0"))
    assert form(x=1e300) == form(x=ExactNumber("1" + "0" * 300)) != form(x=ExactNumber("1e301"))
    assert form(x=1e22) == form(x=ExactNumber("1" + "0" * 22))
    assert form(x=[ExactNumber("0.10000000000000001")]) != form(x=[0.1])
    assert form(x=ExactNumber("1e400")) != form(x="1" + "0" * 400), "a number is no text"
    assert json.loads(form(x=ExactNumber("0.10000000000000001")))


def test_a_number_beyond_64_bits_is_a_number_to_a_message() -> None:
    assert json_type(ExactNumber("1e400")) == "a number"


@pytest.mark.parametrize("one", ["text", [1, 2]])
def test_an_embeddings_request_has_at_most_2048_inputs(one: Any) -> None:
    parse_call("embeddings", {"model": "m", "input": [one] * MAX_INPUTS})
    with pytest.raises(RequestError) as caught:
        parse_call("embeddings", {"model": "m", "input": [one] * (MAX_INPUTS + 1)})
    assert (caught.value.status, caught.value.param) == (400, "input")
    assert "2048" in caught.value.message


def test_token_ids_of_one_input_and_prompts_are_not_counted_as_inputs() -> None:
    parse_call("embeddings", {"model": "m", "input": [7] * (MAX_INPUTS + 1)})
    parse_call("completions", {"model": "m", "prompt": ["a"] * (MAX_INPUTS + 1)})


def test_a_large_body_has_the_canonical_form_of_a_small_one() -> None:
    call = call_of("?", x=[1.0, {"b": 2, "a": ExactNumber("1e400")}, "😀"])
    assert canonical(replace(call, size_bytes=ONE_CALL_BYTES + 1)) == canonical(call)


def test_a_body_is_verbatim_canonical_when_the_key_says_all_of_it() -> None:
    call = call_of("?", temperature=0.5, seed=ExactNumber(str(2**64)))
    assert verbatim(call, {**call.body, "model": "another"}) == canonical(call)
    for beside in ({"user": "u"}, {"x": None}, {"stream": False}, {"n": 1.0}):
        told = call_of("?", **beside)
        assert verbatim(told, told.body) != canonical(told)
