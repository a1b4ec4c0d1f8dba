"""Chunks fold to the answer that unfolds to them, whatever a server puts into it."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chunks import Chunk, Json, Whole, finish_of, fold, unfold, well_formed
from policies.call import Endpoint
from tests.kit.scripted_backend import body_of, delta

TEXT = st.text(max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "tool_calls", "index", "id"]) | TEXT, inner, max_size=3
        )
    ),
    max_leaves=6,
)
UNKNOWN = st.dictionaries(
    st.text(min_size=1, max_size=8).map(lambda name: f"x_{name}"), ANY_JSON, max_size=2
)


def with_unknown(known: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """Objects with unknown members beside the known ones."""
    return st.builds(lambda known, unknown: {**unknown, **known}, known, UNKNOWN)


SCORE = with_unknown(
    st.fixed_dictionaries(
        {
            "token": TEXT,
            "logprob": st.floats(max_value=0, allow_nan=False, allow_infinity=False),
            "bytes": st.none() | st.lists(st.integers(0, 255), max_size=3),
            "top_logprobs": st.lists(st.fixed_dictionaries({"token": TEXT}), max_size=2),
        }
    )
)
LOGPROBS = st.none() | with_unknown(
    st.fixed_dictionaries(
        {
            "content": st.none() | st.lists(SCORE, max_size=3),
            "refusal": st.none() | st.lists(SCORE, max_size=1),
        }
    )
)
TOOL_CALL = with_unknown(
    st.fixed_dictionaries(
        {
            "id": TEXT,
            "type": st.just("function"),
            "function": with_unknown(st.fixed_dictionaries({"name": TEXT, "arguments": TEXT})),
        }
    )
)
MESSAGE = with_unknown(
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.none() | TEXT},
        optional={
            "refusal": st.none() | TEXT,
            "tool_calls": st.none() | st.lists(TOOL_CALL, max_size=3),
            "function_call": st.none() | st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}),
            "annotations": st.lists(ANY_JSON, max_size=2),
            "audio": st.none() | st.fixed_dictionaries({"id": TEXT, "data": TEXT}),
            "reasoning_content": st.none() | TEXT,
        },
    )
)
FINISH = st.sampled_from(["stop", "length", "tool_calls", "content_filter"])
USAGE = with_unknown(
    st.fixed_dictionaries(
        {
            "prompt_tokens": st.integers(0, 99),
            "completion_tokens": st.integers(0, 99),
            "prompt_tokens_details": st.none() | st.dictionaries(TEXT, st.integers(), max_size=2),
        }
    )
)


def numbered(choices: list[Json]) -> list[Json]:
    return [{**choice, "index": place} for place, choice in enumerate(choices)]


def bodies(object_name: str, choice: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return with_unknown(
        st.fixed_dictionaries(
            {
                "id": TEXT,
                "object": st.just(object_name),
                "created": st.integers(),
                "model": TEXT,
                "choices": st.lists(with_unknown(choice), max_size=3).map(numbered),
            },
            optional={"usage": USAGE, "system_fingerprint": st.none() | TEXT},
        )
    )


CHAT = bodies(
    "chat.completion",
    st.fixed_dictionaries(
        {"message": MESSAGE, "finish_reason": FINISH}, optional={"logprobs": LOGPROBS}
    ),
)
COMPLETION = bodies(
    "text_completion",
    st.fixed_dictionaries({"text": TEXT, "finish_reason": FINISH}, optional={"logprobs": LOGPROBS}),
)


@given(CHAT)
def test_a_chat_answer_unfolds_to_a_stream_that_folds_back_to_it(body: Json) -> None:
    before = copy.deepcopy(body)
    assert fold(unfold(body, "chat")) == body == before


@given(COMPLETION)
def test_a_completion_unfolds_to_a_stream_that_folds_back_to_it(body: Json) -> None:
    assert fold(unfold(body, "completions")) == body


@given(CHAT | COMPLETION, st.data())
def test_folding_changes_no_chunk(body: Json, data: st.DataObject) -> None:
    endpoint: Endpoint = "chat" if body["object"] == "chat.completion" else "completions"
    chunks = [*unfold(body, endpoint), *unfold(data.draw(CHAT), "chat")]
    before = copy.deepcopy(chunks)
    once = fold(chunks)
    assert chunks == before
    assert fold(chunks) == once


@given(CHAT)
def test_what_is_streamed_has_the_grammar_of_a_stream(body: Json) -> None:
    seen: dict[int, list[Any]] = {}
    chunks = list(unfold(body, "chat"))
    for chunk in chunks:
        assert chunk.data["object"] == "chat.completion.chunk"
        assert chunk.data["id"] == body["id"]
        for choice in chunk.data["choices"]:
            seen.setdefault(choice["index"], []).append(choice)
        if "usage" in chunk.data:
            assert chunk.data["choices"] == []
            assert chunk is chunks[-1]
    for pieces in seen.values():
        assert pieces[0]["delta"]["role"] == "assistant"
        assert [bool(piece["finish_reason"]) for piece in pieces] == [False] * (len(pieces) - 1) + [
            True
        ]
        assert pieces[-1]["delta"] == {}
        for piece in pieces:
            for place, call in enumerate(piece["delta"].get("tool_calls") or ()):
                assert call["index"] == place


def test_text_is_joined_and_the_last_word_on_everything_else_stands() -> None:
    chunks = [
        delta("Hel", system_fingerprint=None),
        delta("lo", system_fingerprint="fp"),
        delta(finish="stop", usage={"total_tokens": 7}),
    ]
    folded = fold(chunks)
    assert folded == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 7},
    }


def test_a_null_usage_does_not_hide_the_usage_that_came() -> None:
    usage = {"total_tokens": 7}
    assert fold([delta("a", usage=usage), delta(finish="stop", usage=None)])["usage"] == usage
    assert "usage" not in fold([delta("a", usage=None)])


def test_choices_that_interleave_are_told_apart() -> None:
    chunks = [delta(text, index=index) for text, index in [("b", 1), ("a", 0), ("d", 1), ("c", 0)]]
    contents = [choice["message"]["content"] for choice in fold(chunks)["choices"]]
    assert contents == ["ac", "bd"]


def tool_deltas(*deltas: Json) -> list[Chunk]:
    chunks = [delta() for _ in deltas]
    for chunk, piece in zip(chunks, deltas, strict=True):
        chunk.data["choices"][0]["delta"] = {"tool_calls": [piece]}
    return chunks


def test_the_arguments_of_a_tool_call_are_joined_and_its_name_is_kept() -> None:
    folded = fold(
        tool_deltas(
            {
                "index": 0,
                "id": "c0",
                "type": "function",
                "function": {"name": "f", "arguments": ""},
            },
            {"index": 0, "function": {"arguments": '{"a"'}},
            {
                "index": 1,
                "id": "c1",
                "type": "function",
                "function": {"name": "g", "arguments": "{}"},
            },
            {"index": 0, "function": {"arguments": ":1}"}},
        )
    )
    assert folded["choices"][0]["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_an_empty_id_in_a_later_delta_does_not_wipe_the_id_out() -> None:
    # some servers repeat every member, emptied
    folded = fold(
        tool_deltas(
            {
                "index": 0,
                "id": "c0",
                "type": "function",
                "function": {"name": "f", "arguments": "{"},
            },
            {"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": "}"}},
        )
    )
    assert folded["choices"][0]["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_a_tool_call_without_a_number_is_a_call_of_its_own() -> None:
    folded = fold(tool_deltas({"id": "c0"}, {"id": "c1"}))
    assert [call["id"] for call in folded["choices"][0]["message"]["tool_calls"]] == ["c0", "c1"]


@pytest.mark.parametrize("number", [10**9, -1, "0", None, 1.5])
def test_a_tool_call_with_an_odd_number_costs_no_memory_and_no_error(number: object) -> None:
    folded = fold(tool_deltas({"index": 0, "id": "c0"}, {"index": number, "id": "c1"}))
    assert [call["id"] for call in folded["choices"][0]["message"]["tool_calls"]] == ["c0", "c1"]


def test_a_call_that_numbers_itself_is_numbered_by_its_place_in_the_stream() -> None:
    body = body_of()
    body["choices"][0]["message"]["tool_calls"] = [{"index": 0, "id": "a"}, {"index": 0, "id": "b"}]
    numbers = [
        call["index"]
        for chunk in unfold(body, "chat")
        for choice in chunk.data["choices"]
        for call in choice["delta"].get("tool_calls") or ()
    ]
    assert numbers == [0, 1]


def test_the_lists_of_logprobs_are_put_together() -> None:
    first, second = delta("a"), delta("b")
    first.data["choices"][0]["logprobs"] = {"content": [{"token": "a"}], "refusal": None}
    second.data["choices"][0]["logprobs"] = {"content": [{"token": "b"}], "refusal": None}
    logprobs = fold([first, second])["choices"][0]["logprobs"]
    assert logprobs == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}
    assert first.data["choices"][0]["logprobs"]["content"] == [{"token": "a"}]


def test_a_whole_answer_is_the_answer() -> None:
    body = body_of("whole")
    assert fold([Whole(body)]) is body


def test_padding_against_packet_analysis_is_never_repeated() -> None:
    assert "obfuscation" not in fold([delta("a", obfuscation="xyz")])
    assert all("obfuscation" not in c.data for c in unfold(body_of(obfuscation="xyz"), "chat"))


@pytest.mark.parametrize(
    ("body", "is_finished"),
    [
        (body_of(), True),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": None}]}, False),
        ({"choices": [{"index": 0}]}, False),
        ({"choices": []}, False),
        ({"data": [{"embedding": [0.5]}]}, True),
        ({"data": [{"embedding": "AAAAPw=="}]}, True),
        ({"data": []}, False),
        ({"data": {"odd": 1}}, False),
        ({"data": "odd"}, False),
        ({"data": [{"embedding": [0.5]}, "odd"]}, False),
        ({"data": [{"odd": 1}]}, False),
        ({"data": [{"embedding": []}]}, False),
        ({}, False),
    ],
)
def test_an_answer_is_finished_when_every_choice_says_how_it_ended(
    body: Json, is_finished: bool
) -> None:
    assert (finish_of(body, "chat") == "whole") is is_finished


@given(CHAT | COMPLETION)
def test_answers_and_their_streams_are_well_formed(body: Json) -> None:
    assert well_formed(body)
    assert all(well_formed(chunk.data) for chunk in unfold(body, "chat"))


@pytest.mark.parametrize(
    "data",
    [
        {"choices": "x"},
        {"choices": {"index": 0}},
        {"choices": [None]},
        {"choices": [{"index": "one"}]},
        {"choices": [{"index": -1}]},
        {"choices": [{"index": [0]}]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"message": ["text"]}]},
        {"choices": [{"delta": {"tool_calls": {"index": 0}}}]},
        {"choices": [{"delta": {"tool_calls": ["f"]}}]},
    ],
)
def test_what_could_not_be_folded_is_not_well_formed(data: Json) -> None:
    assert not well_formed(data)


@given(st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "x"]), ANY_JSON), max_size=3))
def test_whatever_is_well_formed_can_be_folded_and_unfolded(events: list[Json]) -> None:
    good = [Chunk(data) for data in events if well_formed(data)]
    list(unfold(fold(good), "chat"))
    list(unfold(fold(good), "completions"))
