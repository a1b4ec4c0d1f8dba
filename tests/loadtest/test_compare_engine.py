"""How answers of any server are listened to."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from loadtest.compare_engine import Turns, listened


def event(text: str | None, **other: Any) -> bytes:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return b"data: " + json.dumps({"choices": choices, **other}).encode() + b"\n"


def test_words_have_moments_and_the_usage_the_tokens() -> None:
    moments = count(10.0)
    lines = [
        event(""),
        b"\n",
        event("Hel"),
        event("lo."),
        event(None, usage={"completion_tokens": 5}),
        b"data: [DONE]\n",
    ]
    spoken = listened(iter(lines), 9.5, lambda: next(moments))
    assert (spoken.text, spoken.tokens, spoken.word_s) == ("Hello.", 5, [12.0, 13.0])
    assert spoken.first_ms == 2500.0


@pytest.mark.parametrize(
    "lines", [[event("Hello.")], [event(None, usage={"completion_tokens": 5})], []]
)
def test_an_answer_without_words_or_usage_is_no_answer(lines: list[bytes]) -> None:
    with pytest.raises(RuntimeError, match="without words or without usage"):
        listened(iter(lines), 0.0, lambda: 1.0)


def test_servers_are_asked_in_turn_until_the_time_is_up() -> None:
    moments = count(0.0)
    asked: list[int] = []
    turns = Turns({"peer": 1, "kvgate": 2}, until_s=1.5, now=lambda: next(moments))

    def ask(port: int) -> int:
        asked.append(port)
        return port

    made = turns.ask("first", 5, ask)
    assert made == {"peer": [1, 1], "kvgate": [2, 2]}
    assert asked == [1, 2, 1, 2]
    assert turns.left_out == []
    assert turns.ask("second", 5, lambda port: port) == {"peer": [], "kvgate": []}
    assert turns.left_out == ["second"]
