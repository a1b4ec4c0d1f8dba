"""What an answer is made of, on its way from a backend to any number of readers.

A backend yields :class:`Opening`, then :class:`Chunk` or one :class:`Whole`, then exactly
one :data:`~policies.outcome.Ending`. The plain answer is ``fold(chunks)``; the store holds
the folded answer and ``unfold`` replays it. So there is one path, and streaming is not a
second implementation. ``fold(unfold(body)) == body`` for every answer in OpenAI's shape,
unknown fields included.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway import responses
from policies.call import Endpoint
from policies.outcome import Ending

Json = dict[str, Any]

_SET_ONCE: Final = frozenset({"role", "id", "type", "name", "object"})
_NOT_REPLAYED: Final = frozenset({"obfuscation"})
"""Padding against packet-size analysis: repeating an old value would undo its purpose."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known when the backend's answer begins.

    ``hit_tokens`` and ``miss_tokens`` count prompt tokens whose KV was reused or computed;
    ``None`` when the backend says so only at the end, or never. ``backend`` is the one of several
    that was chosen,
    ``fallback`` the model that answers in place of the one that was asked for.
    """

    headers: Mapping[str, str]
    hit_tokens: int | None = None
    miss_tokens: int | None = None
    backend: str | None = None
    fallback: str | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream: the JSON object of a ``*.chunk`` (or of a text completion)."""

    data: Json


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that a backend gave at once."""

    body: Json


Piece = Opening | Chunk | Whole | Ending


def well_formed(data: Json) -> bool:
    """Whether ``data`` has the shape that ``fold`` and ``unfold`` rely on: a server may send any."""
    choices = data.get("choices")
    return responses.is_well_formed(data) and (
        choices is None
        or (isinstance(choices, list) and all(_is_choice(choice) for choice in choices))
    )


def fold(parts: Iterable[Chunk | Whole]) -> Json:
    """The plain answer that these well-formed parts make; the parts are not touched.

    A ``Whole`` is the answer. Of chunks, text is joined, lists are extended, objects are
    merged and of other values the last one that is not ``None`` stands.
    """
    body: Json = {}
    choices: dict[int, _Choice] = {}
    for part in parts:
        match part:
            case Whole(whole):
                return whole
            case Chunk(data):
                if (told := responses.whole_in(data)) is not None:
                    return told
                _fold_top(body, data)
                for piece in data.get("choices") or ():
                    index = piece.get("index", 0)
                    choice = choices.get(index)
                    if choice is None:
                        choice = choices[index] = _Choice(index)
                    choice.add(piece)
    body["choices"] = [choices[index].folded() for index in sorted(choices)]
    if body.get("object") == "chat.completion.chunk":
        body["object"] = "chat.completion"
    return body


def finished(body: Json) -> bool:
    """Whether every choice says how it ended: ``[DONE]`` alone is no proof of that.

    Embeddings have no choices; there the vectors must be there.
    """
    if responses.is_response(body):
        return responses.is_finished(body)
    choices = body.get("choices")
    if choices is None:
        return _has_vectors(body.get("data"))
    return bool(choices) and all(choice.get("finish_reason") for choice in choices)


def _has_vectors(data: Any) -> bool:
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(one, dict) and bool(one.get("embedding")) for one in data)
    )


def unfold(body: Json, endpoint: Endpoint) -> Iterator[Chunk]:
    """The stream that folds back to ``body``; the usage, if any, is the last chunk."""
    if endpoint == "responses":
        yield from map(Chunk, responses.unfold(body))
        return
    base = {
        key: value
        for key, value in body.items()
        if key not in {"choices", "usage"} and key not in _NOT_REPLAYED
    }
    if base.get("object") == "chat.completion":
        base["object"] = "chat.completion.chunk"
    split = _unfold_chat_choice if endpoint == "chat" else _unfold_text_choice
    choices, usage = body.get("choices") or (), body.get("usage")
    for choice in choices:
        for piece in split(choice):
            yield Chunk({**base, "choices": [piece]})
    if usage is not None:
        yield Chunk({**base, "choices": [], "usage": usage})
    elif not choices:
        yield Chunk({**base, "choices": []})


def _fold_top(body: Json, data: Json) -> None:
    for key, value in data.items():
        if key == "choices" or key in _NOT_REPLAYED:
            continue
        if value is not None or (key not in body and key != "usage"):
            body[key] = value


class _Choice:
    """One choice being folded. Its tool calls are kept by the number that the stream gives them."""

    __slots__ = ("_body", "_calls")

    def __init__(self, index: int) -> None:
        self._body: Json = {"index": index}
        self._calls: dict[int, Json] = {}

    def add(self, piece: Json) -> None:
        for key, value in piece.items():
            if key == "delta":
                self._add_delta(value or {})
            elif key == "finish_reason":
                self._body[key] = value if value is not None else self._body.get(key)
            elif key != "index":
                _merge_value(self._body, key, value)

    def folded(self) -> Json:
        if self._calls:
            self._body["message"]["tool_calls"] = [
                self._calls[number] for number in sorted(self._calls)
            ]
        return self._body

    def _add_delta(self, delta: Json) -> None:
        message = self._body.setdefault("message", {})
        for key, value in delta.items():
            if key == "tool_calls" and value:
                message.setdefault(key, None)
                for call in value:
                    self._add_call(call)
            else:
                _merge_value(message, key, value)

    def _add_call(self, delta: Json) -> None:
        number = delta.get("index")
        if not isinstance(number, int) or number < 0:
            number = max(self._calls, default=-1) + 1
        call = self._calls.setdefault(number, {})
        for key, value in delta.items():
            if key != "index":
                _merge_value(call, key, value)


def _merge_value(into: Json, key: str, value: Any) -> None:
    have = into.get(key)
    if have is None or (key in _SET_ONCE and not have):
        if value is not None or key not in into:
            into[key] = _copied(value)
    elif key in _SET_ONCE:
        return  # some servers repeat it, or send it again emptied
    elif isinstance(have, str) and isinstance(value, str):
        into[key] = have + value
    elif isinstance(have, list) and isinstance(value, list):
        have.extend(value)
    elif isinstance(have, dict) and isinstance(value, dict):
        for inner_key, inner in value.items():
            _merge_value(have, inner_key, inner)
    elif value is not None:
        into[key] = value


def _copied(value: Any) -> Any:
    """A container of our own: chunks are shared by all readers and must stay as they are."""
    if isinstance(value, list):
        return list(value)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return value


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    index = choice.get("index", 0)
    return (
        isinstance(index, int)
        and index >= 0
        and _is_message(choice.get("delta"))
        and _is_message(choice.get("message"))
    )


def _is_message(message: Any) -> bool:
    if message is None:
        return True
    if not isinstance(message, dict):
        return False
    calls = message.get("tool_calls")
    return calls is None or (
        isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    )


def _unfold_chat_choice(choice: Json) -> Iterator[Json]:
    index = choice.get("index", 0)
    message = choice.get("message")
    extras = {
        key: value
        for key, value in choice.items()
        if key not in {"index", "message", "finish_reason"}
    }
    if message is not None:
        opening = {key: value for key, value in message.items() if key == "role" or value is None}
        if isinstance(message.get("content"), str):
            opening["content"] = ""
        yield {"index": index, "delta": opening, "finish_reason": None}
        delta = {
            key: value
            for key, value in message.items()
            if key not in opening or (key == "content" and value)
        }
        if delta.get("tool_calls"):
            delta["tool_calls"] = [
                {**call, "index": number} for number, call in enumerate(delta["tool_calls"])
            ]
        if delta:
            yield {"index": index, "delta": delta, "finish_reason": None, **extras}
            extras = {}
    finish: Json = {"index": index, **extras}
    if message is not None:
        finish["delta"] = {}
    if "finish_reason" in choice or message is not None:
        finish["finish_reason"] = choice.get("finish_reason")
    yield finish


def _unfold_text_choice(choice: Json) -> Iterator[Json]:
    text = {**choice, "finish_reason": None}
    if choice.get("text"):
        yield text
        choice = {"index": choice.get("index", 0), "finish_reason": choice.get("finish_reason")}
        choice["text"] = ""
    yield choice
