"""Messages to the prompt the model was trained on: its own jinja2 template, in a sandbox. Torch-free.

The template comes with the model's files, the messages from a client. The environment is the one that
Hugging Face's `apply_chat_template` gives to templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ModelLoadError, RequestError

_MAX_TEMPLATE_CHARS = 1 << 20
_SPARE_CHARS = 1 << 20  # what a template may add to the messages it was given, beyond doubling them
# what a template's own operations raise when a message is not as it expects
_TEMPLATE_TRIPS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
_ROLES = {"developer": "system"}  # OpenAI's newer word; no template knows it


def _local_now() -> datetime:
    return datetime.now().astimezone()


class _Generation(Extension):
    """`{% generation %}` marks an answer for training; what it encloses is written as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's name and type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template. `takes_tools`: it writes the request's tools into the prompt.

    `now` is asked by templates that write today's date. Raises `ModelLoadError` for a template that
    does not compile.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        now: Callable[[], datetime] = _local_now,
    ) -> None:
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise ModelLoadError(f"the chat template has {len(source)} characters")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
            names = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"the chat template does not compile ({error})") from error
        self.takes_tools = "tools" in names
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt as text. Raises `RequestError` naming the message that cannot be rendered."""
        parts: list[str] = []
        length = 0
        try:
            plain = [_plain(message, number) for number, message in enumerate(messages)]
            given = sum(len(str(message)) for message in plain) + len(str(tools or ""))
            limit = 2 * given + _SPARE_CHARS
            for part in self._template.generate(
                messages=plain,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            ):
                parts.append(part)
                length += len(part)
                if length > limit:
                    raise RequestError("the chat template writes without end", param="messages")
        except jinja2.TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except _TEMPLATE_TRIPS as error:
            raise RequestError(
                f"the model's chat template cannot render these messages: {error}",
                param="messages",
            ) from error
        return "".join(parts)


def _plain(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The message with its role as templates know it and its content as one string."""
    role = message.get("role")
    if not isinstance(role, str):
        raise RequestError("role must be a string", param=f"messages[{number}].role")
    content = _text(message.get("content"), f"messages[{number}].content")
    return {**message, "role": _ROLES.get(role, role), "content": content}


def _text(content: Any, where: str) -> str:
    """Content is a string, absent, or a list of text parts, which are joined line by line."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError("content must be a string or a list of parts", param=where)
    texts = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        if not isinstance(part, Mapping):
            raise RequestError("a content part must be an object", param=here)
        kind = part.get("type")
        if kind not in {"text", "input_text", "output_text", "refusal"}:
            raise RequestError(
                f"content parts of type {kind!r} are not supported by this model",
                param=here,
                code="unsupported_value",
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise RequestError("the text of a content part must be a string", param=here)
        texts.append(text)
    return "\n".join(texts)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Templates want JSON as it is, not escaped for HTML as jinja2's own filter makes it."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
