"""Any stream in OpenAI's grammar, with the extensions that servers add, is one answer."""

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.chunks import Chunk, Json, fold, unfold
from gateway.folding import TEXTS, Folding, index_of
from tests.kit.scripted_backend import delta

WORDS = st.sampled_from(["", "a", "ab", "ä", "{", "}", '"x":1', "{}", "safe", "\U0001f600"])
INDEX = st.sampled_from([0, 0, 1, 2, "0", "1", None, -1, 1.5])
IDS = st.sampled_from(["", "a", "b", None])


def objects(
    required: dict[str, st.SearchStrategy[Any]] | None = None,
    /,
    **optional: st.SearchStrategy[Any],
) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(required or {}, optional=optional)


FUNCTION = objects(name=st.sampled_from(["f", "g", "", None]), arguments=WORDS)
CALL = objects(
    index=INDEX,
    id=IDS,
    type=st.sampled_from(["function", "custom", "", None]),
    function=FUNCTION,
    custom=objects(name=st.sampled_from(["f", "g", ""]), input=WORDS),
    extra_content=objects(google=objects(thought_signature=WORDS)),
)
BLOCK = objects(
    index=INDEX,
    id=IDS,
    type=st.sampled_from(["reasoning.text", "reasoning.encrypted", "text", "thinking"]),
    text=WORDS,
    thinking=WORDS | st.lists(objects(type=st.just("text"), text=WORDS), max_size=2),
    signature=WORDS | st.none(),
    data=WORDS,
    reference_ids=st.lists(st.integers(0, 2), max_size=2),
    image_url=objects(url=WORDS),
)
BLOCKS = st.lists(BLOCK, max_size=3)
UNKNOWN = st.none() | st.booleans() | st.integers() | WORDS | BLOCKS | objects(severity=WORDS)
DELTA = objects(
    role=st.sampled_from(["assistant", "", None]),
    content=st.none() | WORDS | BLOCKS | BLOCK,
    refusal=st.none() | WORDS,
    reasoning_content=st.none() | WORDS,
    reasoning=st.none() | WORDS | BLOCKS,
    channel=st.sampled_from(["analysis", "final", ""]),
    tool_calls=st.none() | st.lists(CALL, max_size=3),
    function_call=st.none() | FUNCTION,
    audio=st.none() | objects(id=IDS, data=WORDS, transcript=WORDS, expires_at=st.integers(0, 9)),
    annotations=BLOCKS,
    reasoning_details=BLOCKS,
    thinking_blocks=BLOCKS,
    images=BLOCKS,
    executed_tools=st.lists(CALL, max_size=2),
    x_other=UNKNOWN | BLOCK,
)
SCORES = st.none() | st.lists(objects({"token": WORDS, "logprob": st.floats(-9, 0)}), max_size=2)
PIECE = st.fixed_dictionaries(
    {"index": st.sampled_from([0, 0, 1, "1", None]), "delta": st.none() | DELTA},
    optional={
        "finish_reason": st.sampled_from([None, None, "", "stop", "tool_calls", "error"]),
        "logprobs": st.none() | objects(content=SCORES, refusal=SCORES),
        "token_ids": st.none() | st.lists(st.integers(0, 2), max_size=2),
        "stop_reason": st.none() | st.integers(0, 2) | WORDS,
        "native_finish_reason": st.none() | WORDS,
        "content_filter_results": objects(hate=objects(filtered=st.booleans(), severity=WORDS)),
        "message": st.none() | objects(role=st.just("assistant"), content=WORDS),
        "x_choice": UNKNOWN,
    },
)
HEAD: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["c1", "c1", "", None]),
    "object": st.sampled_from(["chat.completion.chunk", "chat.completion.chunk", "", None]),
    "created": st.sampled_from([1, 1, 0, None]),
    "model": st.sampled_from(["m", "m", "m-2", "", None]),
}
CHUNK = st.fixed_dictionaries(
    {"choices": st.none() | st.lists(PIECE, max_size=2), **HEAD},
    optional={
        "usage": st.none() | objects(prompt_tokens=st.integers(0, 3), x=UNKNOWN),
        "system_fingerprint": st.none() | WORDS,
        "service_tier": st.none() | WORDS,
        "x_groq": objects(id=WORDS, usage=objects(queue_time=st.integers(0, 2))),
        "prompt_filter_results": st.lists(objects(prompt_index=st.integers(0, 1)), max_size=2),
        "citations": st.lists(WORDS, max_size=3),
        "x_top": UNKNOWN,
    },
)
STREAM = st.lists(CHUNK, max_size=6)


@given(STREAM)
def test_what_is_replayed_folds_to_what_the_live_stream_folds_to(stream: list[Json]) -> None:
    before = copy.deepcopy(stream)
    once = fold(map(Chunk, stream))
    assert stream == before
    replayed = list(unfold(once, "chat"))
    assert fold(replayed) == once
    assert list(unfold(fold(replayed), "chat")) == replayed


def said(stream: list[Json], member: str) -> dict[int, str]:
    """What a client that only joins text hears of each choice."""
    heard: dict[int, str] = {}
    for chunk in stream:
        for piece in chunk["choices"] or ():
            text = (piece["delta"] or {}).get(member)
            if text:
                index = index_of(piece) or 0
                heard[index] = heard.get(index, "") + text
    return heard


TEXT_DELTA = st.fixed_dictionaries({}, optional={name: st.none() | WORDS for name in sorted(TEXTS)})
TEXT_STREAM = st.lists(
    st.fixed_dictionaries(
        {
            "choices": st.lists(
                st.fixed_dictionaries({"index": st.integers(0, 1), "delta": TEXT_DELTA}), max_size=2
            )
        }
    ),
    max_size=6,
)


@given(TEXT_STREAM)
def test_a_client_that_joins_text_hears_the_same_of_both(stream: list[Json]) -> None:
    replayed = [chunk.data for chunk in unfold(fold(map(Chunk, stream)), "chat")]
    for member in TEXTS - {"arguments"}:
        assert said(replayed, member) == said(stream, member)


def test_halves_of_a_character_in_two_chunks_are_one() -> None:
    folded = fold([delta("a\ud83d"), delta("\ude00b"), delta(finish="stop")])
    assert folded["choices"][0]["message"]["content"] == "a\U0001f600b"


def test_an_answer_past_its_limit_is_let_go_of() -> None:
    folding = Folding(limit_bytes=140)
    for _ in range(25):
        folding.add(delta("abcd").data)
        assert not folding.too_large
    folding.add(delta("abcd" * 10, index=1).data)
    assert folding.too_large
    folding.add(delta("abcd").data)
    assert folding.answer()["choices"] == []


@pytest.mark.parametrize(
    "piece",
    [
        {"delta": {"content": "x"}, "logprobs": {"content": [{"token": "x" * 50}]}},
        {"delta": {"reasoning_details": [{"index": 0, "text": "x" * 50}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "x" * 50}}]}},
        {"delta": {"content": [{"type": "image", "data": "x" * 50}]}},
        {"delta": {"audio": {"data": "x" * 50}}},
    ],
)
def test_whatever_makes_an_answer_large_counts(piece: Json) -> None:
    folding = Folding(limit_bytes=1000)
    for _ in range(30):
        folding.add({"choices": [{"index": 0, **piece}]})
    assert folding.too_large


@given(STREAM)
def test_no_answer_that_would_fit_is_let_go_of(stream: list[Json]) -> None:
    sizes = [
        len(json.dumps(fold(map(Chunk, stream[:count])), separators=(",", ":")))
        for count in range(1, len(stream) + 1)
    ]
    folding = Folding(limit_bytes=max(sizes, default=0))
    for chunk in stream:
        folding.add(chunk)
    assert not folding.too_large


def test_twice_as_many_chunks_take_twice_as_long() -> None:
    def seconds(count: int) -> float:
        pieces = [{"index": 0, "function": {"arguments": "word "}}]
        chunks = [delta("word ").data for _ in range(count)]
        for chunk in chunks:
            chunk["choices"][0]["delta"]["tool_calls"] = pieces
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            fold(map(Chunk, chunks))
            best = min(best, time.process_time() - began)
        return best

    assert seconds(40_000) < 8 * seconds(10_000)  # 16 times where each chunk copies what was there
