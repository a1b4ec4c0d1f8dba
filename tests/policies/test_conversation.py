"""What a conversation is about, and how much of it may come again."""

from typing import Any

import pytest

from policies.conversation import READ_CHARACTERS, classify, shape_of


def said(*texts: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for text in texts]


TUTORIAL = [
    {"role": "user", "content": "What is Python?"},
    {"role": "assistant", "content": "Python is a programming language..."},
    {"role": "user", "content": "How do I write a function in Python?"},
    {"role": "assistant", "content": "To write a function in Python..."},
]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Please review this Python function...", "programming"),
        ("Explain what a class is", "programming"),  # the first class with a sign
        ("```\nx = 1\n```", "programming"),
        ("写一个排序函数", "programming"),
        ("What is Python?", "educational"),
        ("WHAT'S a monad", "educational"),
        ("what\u2019s a monad", "educational"),
        ("解释一下量子计算", "educational"),
        ("How does the moon shine, and what is the problem with it?", "educational"),
        ("My printer has a problem.", "support"),
        ("It doesn't work", "support"),
        ("登录报错", "support"),
        ("Good morning!", "general"),
        ("The classification of functionality is important", "general"),  # whole words only
        ("unhelpful terrors", "general"),
        ("", "general"),
    ],
)
def test_the_first_class_with_a_sign_is_it(text: str, kind: str) -> None:
    assert classify(said(text)) == kind


def test_what_the_user_says_counts_and_not_what_assistants_say_of_themselves() -> None:
    messages = [
        {"role": "system", "content": "You are a code reviewer."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello! How can I help you with your code?"},
    ]
    assert classify(messages) == "general"
    assert classify(messages[:1]) == "programming"  # nothing else to go by
    assert classify([]) == "general"


def test_text_parts_are_read_and_nothing_else_is() -> None:
    parts = [{"type": "text", "text": "debug"}, {"type": "image_url"}, {"text": 5}, "function"]
    assert classify(said(parts)) == "programming"
    assert classify(said(parts[1:])) == "general"
    assert classify(said(None)) == "general"


def test_only_the_latest_text_is_read() -> None:
    old = "fix this function"
    assert classify(said(old, "a " * (READ_CHARACTERS // 2))) == "general"
    assert classify(said(old, "a " * 100)) == "programming"
    assert classify(said("a " * READ_CHARACTERS + "an error")) == "support"


def test_the_shape_of_the_guides_example() -> None:
    shape = shape_of(TUTORIAL)
    assert (shape.messages, shape.kind) == (4, "programming")
    assert shape.mean_characters == (15 + 35 + 36 + 32) / 4
    # of its 15 words is, python?, a, write, function and in come twice
    assert shape.repetition == 6 / 15
    assert shape.reuse_potential == 0.6 * 0.4 + 0.4 * shape.repetition


@pytest.mark.parametrize(
    ("texts", "potential"),
    [
        ((), 0.0),
        (("",), 0.06),
        (("one two",), 0.06),
        (("one one",), 0.06 + 0.4),
        (("one two", "One three"), 0.12 + 0.4 / 3),
        (("same",) * 10, 1.0),
        (("same",) * 50, 1.0),
    ],
)
def test_reuse_potential_grows_with_length_and_repetition(
    texts: tuple[str, ...], potential: float
) -> None:
    assert shape_of(said(*texts)).reuse_potential == pytest.approx(potential)
