"""What the load test takes for an answer, and what it reads from one."""

from __future__ import annotations

import json

import pytest

from loadtest.answers import BadAnswerError, heard, heard_stream

HEADERS = {
    "X-Cache-Hit": "true",
    "X-Cache-Level": "prefix",
    "X-Request-ID": "r",
    "X-Response-Time": "1.0ms",
}
BODY = json.dumps({"choices": [{"message": {"content": "Hello."}}]}).encode()


def chunk(text: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


def test_a_plain_answer_is_heard() -> None:
    assert heard(200, HEADERS, BODY).text == "Hello."
    assert heard(200, HEADERS, BODY).level == "prefix"


def test_a_stream_is_heard_to_its_end() -> None:
    lines = [chunk(None), "", chunk("Hel"), ": alive", chunk("lo."), 'data: {"choices": []}']
    assert heard_stream(200, HEADERS, [*lines, "data: [DONE]"]).text == "Hello."
    with pytest.raises(BadAnswerError, match=r"without \[DONE\]"):
        heard_stream(200, HEADERS, lines)


@pytest.mark.parametrize(
    ("status", "headers", "body", "why"),
    [
        (503, HEADERS, BODY, "status 503"),
        (200, {**HEADERS, "X-Cache-Level": "dust"}, BODY, "dust"),
        (200, {**HEADERS, "X-Cache-Hit": "false"}, BODY, "X-Cache-Hit 'false'"),
        (200, {"X-Cache-Hit": "true"}, BODY, "without X-Cache-Level"),
        (200, HEADERS, b"{", "no chat completion"),
        (200, HEADERS, b"[]", "no chat completion"),
        (200, HEADERS, BODY.replace(b"Hello.", b" "), "no content"),
        (200, HEADERS, BODY.replace(b'"Hello."', b"null"), "no content"),
    ],
)
def test_what_is_no_answer_is_refused(
    status: int, headers: dict[str, str], body: bytes, why: str
) -> None:
    with pytest.raises(BadAnswerError, match=why):
        heard(status, headers, body)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('data: {"error": {"message": "gone"}}', "an error in the stream"),
        ("data: {", "no chat completion chunk"),
        ("data: [DONE]", "no content"),
    ],
)
def test_a_stream_that_says_nothing_or_an_error_is_refused(line: str, why: str) -> None:
    with pytest.raises(BadAnswerError, match=why):
        heard_stream(200, HEADERS, [line])


def test_an_answer_says_how_it_ended_and_what_it_saved() -> None:
    body = json.dumps(
        {"choices": [{"message": {"content": "Hello."}, "finish_reason": "length"}]}
    ).encode()
    said = {**HEADERS, "X-Cache-Tokens-Saved": "64", "X-Cache-Key": "k"}
    answer = heard(200, said, body)
    assert (answer.ending, answer.tokens_saved, answer.key) == ("length", 64, "k")
    assert (answer.collapsed, answer.place) == (False, "prefix")


def test_an_answer_read_along_with_anothers_is_counted_as_such() -> None:
    said = {**HEADERS, "Cache-Status": "kvgate; fwd=uri-miss; collapsed; detail=prefix"}
    assert heard(200, said, BODY).place == "collapsed"


def test_a_streams_reuse_stands_in_its_last_chunk() -> None:
    none = {**HEADERS, "X-Cache-Hit": "false", "X-Cache-Level": "none"}
    end = 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    usage = 'data: {"choices": [], "usage": {"prompt_cache_hit_tokens": 32}}'
    answer = heard_stream(200, none, [chunk("Hello."), end, usage, "data: [DONE]"])
    assert (answer.level, answer.ending, answer.tokens_saved) == ("prefix", "stop", 32)
    answer = heard_stream(200, none, [chunk("Hello."), end, "data: [DONE]"])
    assert (answer.level, answer.ending, answer.tokens_saved) == ("none", "stop", 0)


def test_a_stored_streams_usage_is_not_taken_for_reuse() -> None:
    stored = {**HEADERS, "X-Cache-Level": "response", "X-Cache-Tokens-Saved": "70"}
    usage = 'data: {"choices": [], "usage": {"prompt_cache_hit_tokens": 32}}'
    answer = heard_stream(200, stored, [chunk("Hello."), usage, "data: [DONE]"])
    assert (answer.level, answer.tokens_saved) == ("response", 70)
