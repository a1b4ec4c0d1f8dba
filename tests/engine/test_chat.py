"""Messages to a prompt."""

from datetime import UTC, datetime
from typing import Any

import pytest

from engine.errors import ModelLoadError, RequestError
from engine.text.chat import ChatTemplate
from tests.kit.tiny_model import CHAT_TEMPLATE

NOON = datetime(2026, 11, 5, 12, tzinfo=UTC)


def template(source: str = CHAT_TEMPLATE) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", now=lambda: NOON)


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_messages_are_rendered_with_and_without_the_beginning_of_an_answer() -> None:
    asked = "<|im_start|>user\nhi<|im_end|>\n"
    assert template().render(user("hi")) == asked + "<|im_start|>assistant\n"
    assert template().render(user("hi"), add_generation_prompt=False) == asked


def test_a_developer_is_a_system() -> None:
    texts = {
        role: template().render([{"role": role, "content": "be brief"}, *user("hi")])
        for role in ("system", "developer")
    }
    assert texts["developer"] == texts["system"]


def test_text_parts_are_joined_line_by_line() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert template().render(user(parts)) == template().render(user("one\ntwo"))


def test_no_content_is_empty_content() -> None:
    assert template().render(user(None)) == template().render(user(""))
    assert template().render([{"role": "user"}]) == template().render(user(""))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (user("a") + user([{"type": "image_url", "image_url": {"url": "x"}}]), "[1].content[0]"),
        (user([{"type": "text", "text": "a"}, {"type": "input_audio"}]), "[0].content[1]"),
        (user([{"type": "text"}]), "[0].content[0]"),
        (user([{"type": "text", "text": 3}]), "[0].content[0]"),
        (user(["plain"]), "[0].content[0]"),
        (user([{}]), "[0].content[0]"),
        (user(5), "[0].content"),
        (user({"type": "text"}), "[0].content"),
        ([{"content": "x"}], "[0].role"),
        ([{"role": 3, "content": "x"}], "[0].role"),
    ],
)
def test_what_cannot_be_rendered_is_named(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        template().render(messages)
    assert caught.value.param == f"messages{param}"
    assert caught.value.status == 400


def test_a_template_refuses_by_raising() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match="roles must alternate"):
        template(source).render(user("hi"))


def test_messages_a_template_trips_over_are_the_clients_fault() -> None:
    with pytest.raises(RequestError, match="cannot render"):
        template("{{ messages[0].tool_calls[0].name + 1 }}").render(
            [{"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]}]
        )
    with pytest.raises(RequestError, match="refuses"):
        template("{{ messages[9].content.x.y }}").render(user("hi"))


def test_a_template_is_given_what_hugging_face_gives() -> None:
    source = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ tools | tojson }}{{ eos_token }}"
    text = template(source).render(user("hi"), tools=[{"name": "ü<b>"}])
    assert text == '<s>05 Nov 2026[{"name": "ü<b>"}]</s>'
    assert template("{{ tools | tojson(indent=1) }}").render([], tools=[{}]) == "[\n {}\n]"
    assert template("{{ 'no' if tools is none }}").render([]) == "no"


def test_the_clock_is_asked_only_when_none_is_given() -> None:
    plain = ChatTemplate("{{ strftime_now('%Y') }}", bos_token="", eos_token="")
    assert int(plain.render([])) >= 2026


def test_blocks_leave_no_blank_lines_and_loops_can_be_left() -> None:
    source = "{% for m in messages %}\n  {% if loop.index == 2 %}\n{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}"
    assert template(source).render(user("a") + user("b") + user("c")) == "user\n"


def test_marks_for_training_are_passed_over() -> None:
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}."
    assert template(source).render(user("hi")) == "hi."


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_a_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(RequestError):
        template(source).render(user("hi"))


def test_a_template_that_writes_without_end_is_stopped() -> None:
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages }}{% endfor %}{% endfor %}"
    with pytest.raises(RequestError, match="without end"):
        template(source).render(user("x" * 1000))


def test_a_template_that_does_not_compile_is_the_operators_matter() -> None:
    with pytest.raises(ModelLoadError, match="does not compile"):
        template("{% if %}")
    with pytest.raises(ModelLoadError, match="2000000 characters"):
        template("x" * 2_000_000)


def test_the_clients_messages_are_left_as_they_were() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]}
    ]
    template().render(messages)
    assert messages == [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]


def test_a_template_says_whether_it_writes_tools() -> None:
    assert template("{% if tools %}{{ tools | tojson }}{% endif %}").takes_tools
    assert not template("{{ messages[0].content }}{% set tools = 1 %}").takes_tools
