"""What an answer is made of, on its way from a backend to any number of readers.

A backend yields :class:`Opening`, then :class:`Chunk` or one :class:`Whole`, then exactly
one :data:`~policies.outcome.Ending`; a :class:`Comment` may stand anywhere before that. The plain answer is ``fold(chunks)``; the store holds
the folded answer and ``unfold`` replays it. So there is one path, and streaming is not a
second implementation. ``fold(unfold(body)) == body`` for every answer in OpenAI's shape,
unknown fields included.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import responses
from gateway.folding import BESIDE_TEXT, HEAD, Folding, index_of
from gateway.responses import NOT_REPLAYED
from policies.admission import Finish, finish
from policies.call import Endpoint
from policies.outcome import Ending

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known when the backend's answer begins.

    ``hit_tokens`` and ``miss_tokens`` count prompt tokens whose KV was reused or computed;
    ``None`` when the backend says so only at the end, or never. ``backend`` is the one of several
    that was chosen,
    ``fallback`` the model that answers in place of the one that was asked for. ``queued_s`` is how long
    the call waited in the gateway's own queue before the backend was asked.
    """

    headers: Mapping[str, str]
    hit_tokens: int | None = None
    miss_tokens: int | None = None
    backend: str | None = None
    fallback: str | None = None
    queued_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream: the JSON object of a ``*.chunk`` (or of a text completion).

    ``size_bytes`` is what it took on the wire, where there was one.
    """

    data: Json
    size_bytes: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that a backend gave at once, or that was stored.

    ``log``: runs of the :class:`~gateway.responses.EventLog` of the stream in which it once came.
    """

    body: Json
    log: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment of the backend's stream, ready to be sent: the backend lives. No part of the answer.

    It may come at any place before the ending, before the opening too.
    """

    text: bytes


Piece = Opening | Comment | Chunk | Whole | Ending


def well_formed(data: Json) -> bool:
    """Whether ``data`` has the shape that ``fold`` and ``unfold`` rely on: a server may send any."""
    choices = data.get("choices")
    return responses.is_well_formed(data) and (
        choices is None
        or (isinstance(choices, list) and all(_is_choice(choice) for choice in choices))
    )


def fold(parts: Iterable[Chunk | Whole]) -> Json:
    """The plain answer that these well-formed parts make; the parts are not touched."""
    folding = Folding()
    for part in parts:
        add_to(folding, part)
    return folding.answer()


def add_to(folding: Folding, part: Chunk | Whole) -> None:
    """Let ``folding`` take the next part of an answer."""
    match part:
        case Whole(body=whole):
            folding.take(whole)
        case Chunk(data):
            folding.add(data)


def finish_of(body: Json, endpoint: Endpoint) -> Finish:
    """How the answer ended; ``[DONE]`` alone is no proof that it is whole.

    Embeddings have no choices; there the vectors must be there.
    """
    if responses.is_response(body):
        return "whole" if responses.is_finished(body) else "unfinished"
    choices = body.get("choices")
    if choices is None:
        return "whole" if _has_vectors(body.get("data")) else "unfinished"
    if any(_has_failed(choice) for choice in choices):
        return "unfinished"
    return finish(endpoint, [choice.get("finish_reason") for choice in choices])


def _has_failed(choice: Json) -> bool:
    message = choice.get("message")
    return bool(choice.get("error") or (isinstance(message, dict) and message.get("error")))


def _has_vectors(data: Any) -> bool:
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(one, dict) and bool(one.get("embedding")) for one in data)
    )


def unfold(body: Json, endpoint: Endpoint, log: Sequence[Any] | None = None) -> Iterator[Chunk]:
    """The stream that folds back to ``body``; the usage, if any, is the last chunk.

    ``log``: runs of the stream in which an answer of typed events came, if they are known.
    """
    if endpoint == "responses":
        events = responses.unfold(body) if log is None else responses.events_of(log, body)
        yield from map(Chunk, events)
        return
    base = {name: value for name, value in body.items() if name in HEAD}
    beside = {
        name: value
        for name, value in body.items()
        if name not in HEAD and name not in {"choices", "usage"} and name not in NOT_REPLAYED
    }
    if base.get("object") == "chat.completion":
        base["object"] = "chat.completion.chunk"
    split = _unfold_chat_choice if endpoint == "chat" else _unfold_text_choice
    choices, usage = body.get("choices") or (), body.get("usage")
    for choice in choices:
        for piece in split(choice):
            yield Chunk({**base, **beside, "choices": [piece]})
            beside = {}
    if usage is not None:
        yield Chunk({**base, **beside, "choices": [], "usage": usage})
    elif not choices:
        yield Chunk({**base, **beside, "choices": []})


def _is_choice(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    return (
        (choice.get("index") is None or index_of(choice) is not None)
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
    own = {"index", "message", "finish_reason"} | BESIDE_TEXT
    beside = {name: choice[name] for name in BESIDE_TEXT & choice.keys()}
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
            yield {"index": index, "delta": delta, "finish_reason": None, **beside}
            beside = {}
    last = {name: value for name, value in choice.items() if name not in own}
    last |= {"index": index, **beside}
    if message is not None:
        last["delta"] = {}
    if "finish_reason" in choice or message is not None:
        last["finish_reason"] = choice.get("finish_reason")
    yield last


def _unfold_text_choice(choice: Json) -> Iterator[Json]:
    own = {"index", "text"} | BESIDE_TEXT
    if choice.get("text"):
        yield {name: value for name, value in choice.items() if name in own} | {
            "finish_reason": None
        }
        own -= {"index"}
        choice = {name: value for name, value in choice.items() if name not in own} | {"text": ""}
    yield choice
