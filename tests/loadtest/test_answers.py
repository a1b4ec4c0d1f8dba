"""What the load test takes for an answer, and how it counts."""

from __future__ import annotations

import json

import pytest

from loadtest.answers import BadAnswerError, Tally, heard, heard_stream

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


def test_a_tally_gives_shares_by_scenario_and_the_sum() -> None:
    tally = Tally()
    tally.add("faq", "response", 3)
    tally.add("faq", "none")
    tally.add("chat", "prefix", 4)
    assert tally.rows() == [
        ("chat", 4, {"response": 0.0, "prefix": 1.0, "none": 0.0}),
        ("faq", 4, {"response": 0.75, "prefix": 0.0, "none": 0.25}),
        ("all", 8, {"response": 0.375, "prefix": 0.5, "none": 0.125}),
    ]


def test_what_was_taken_from_a_tally_fills_another() -> None:
    one, other = Tally(), Tally()
    one.add("faq", "none")
    for scenario, level, count in one.take():
        other.add(scenario, level, count)
    assert one.rows() == []
    assert other.rows() == [("faq", 1, {"response": 0.0, "prefix": 0.0, "none": 1.0})]
