"""Odd shapes that upstreams really send: each asked plain, streamed, stored, replayed in both forms.

The tables are data, in ``wire_shapes/``. A shape is a list of steps; a step is a piece of choice 0, a
piece with an ``index`` of its own, or a whole event (``event``). What must hold is said beside it:
members that are named must be equal, others may be there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from gateway.chunks import Chunk, fold
from tests.kit.scripted_upstream import (
    DONE,
    Reply,
    ScriptedUpstream,
    event,
    json_reply,
    stream_reply,
)
from tests.kit.service import Answer, Service, serving

TABLES = Path(__file__).parent / "wire_shapes"
Json = dict[str, Any]
USAGE: Json = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One stream and what its answer must hold. ``end``: the last chunk's finish reason, if any."""

    name: str
    of: str
    steps: Sequence[Json]
    end: str | None = "stop"
    usage: bool = True
    stored: bool = True
    message: Json = field(default_factory=dict)
    choice: Json = field(default_factory=dict)
    choices: Sequence[Json] = ()
    top: Json = field(default_factory=dict)


def shapes(table: str) -> list[Any]:
    """The shapes of a table, each under its name."""
    rows = yaml.safe_load((TABLES / table).read_text("utf-8"))
    return [pytest.param(Shape(**row), id=row["name"]) for row in rows]


@dataclass(frozen=True)
class Asking:
    """How a kind of shape is asked for."""

    path: str
    object_name: str
    question: Json

    def events(self, shape: Shape) -> list[Json]:
        """What the upstream sends."""
        head = {"id": "c1", "object": self.object_name, "created": 1, "model": "m"}
        ended = [{"delta": {}, "finish_reason": shape.end}] if shape.end else []
        events: list[Json] = []
        for step in (*shape.steps, *ended):
            if "event" in step:
                events.append(step["event"])
                continue
            piece = {"index": 0, "finish_reason": None, **step}
            if self.path != "/v1/chat/completions":
                piece = {"text": "", **piece}
                piece.pop("delta", None)
            events.append({**head, **piece.pop("top", {}), "choices": [piece]})
        if shape.usage:
            events.append({**head, "choices": [], "usage": USAGE})
        return events

    async def ask(
        self, service: Service, *, stream: bool, about: str, kv_cache: Any = True
    ) -> Answer:
        """One request of a caller who wants usage in either form."""
        wish = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = {"model": "m", **self.question, "seed": len(about), "kv_cache": kv_cache, **wish}
        answer = await service.send("POST", self.path, body)
        assert answer.status == 200, answer.raw
        await service.settled()
        return answer


CHAT = Asking(
    "/v1/chat/completions",
    "chat.completion.chunk",
    {"messages": [{"role": "user", "content": "What is asked?"}]},
)
TEXT = Asking("/v1/completions", "text_completion", {"prompt": "What is asked?"})


def folded(answer: Answer) -> Json:
    """The answer that a stream's events make."""
    return fold(Chunk(chunk) for chunk in answer.chunks)


def content_of(body: Mapping[str, Any]) -> Json:
    """An answer without what is made anew each time."""
    made_anew = {"id", "created", "cache_hit", "usage"}
    return {name: value for name, value in body.items() if name not in made_anew}


def holds(expected: Any, found: Any, where: str) -> None:
    """Assert that each member of ``expected`` is in ``found``."""
    for name, value in expected.items():
        assert name in found, f"{where}.{name} is missing"
        if name == "usage":
            holds(value, found[name], f"{where}.{name}")
        else:
            assert found[name] == value, f"{where}.{name}"


def fits(shape: Shape, body: Json) -> None:
    """Assert that ``body`` is the answer that this shape stands for."""
    choices = body["choices"]
    holds(shape.top, body, "top")
    if shape.choices:
        assert len(choices) == len(shape.choices)
        for number, expected in enumerate(shape.choices):
            holds(expected, choices[number], f"choices[{number}]")
    else:
        assert len(choices) == 1
        holds(shape.choice, choices[0], "choice")
        holds(shape.message, choices[0].get("message"), "message")


async def check(asking: Asking, shape: Shape, first: Literal["plain", "streamed"]) -> None:
    """Ask in one form, then in both, and see that all answers are the same one."""
    reply = stream_reply(*map(event, asking.events(shape)), DONE)
    upstream = ScriptedUpstream()
    upstream.otherwise = lambda _: Reply(reply.steps, content_type=reply.content_type)
    async with serving(upstream=upstream) as service:
        computed = await asking.ask(service, stream=first == "streamed", about=shape.name)
        assert computed.headers["X-Cache-Level"] != "response"
        plain = await asking.ask(service, stream=False, about=shape.name)
        streamed = await asking.ask(service, stream=True, about=shape.name)
        for answer in (plain, streamed):
            assert (answer.headers["X-Cache-Level"] == "response") is shape.stored
        assert upstream.calls == (1 if shape.stored else 3)
        bodies = [plain.body, folded(streamed)]
        bodies.append(folded(computed) if first == "streamed" else computed.body)
        for body in bodies:
            fits(shape, body)
            assert content_of(body) == content_of(bodies[0])
        if first == "plain" and not shape.stored:
            assert "stored" not in computed.headers["Cache-Status"]


@pytest.mark.parametrize("first", ["plain", "streamed"])
@pytest.mark.parametrize("shape", shapes("chat_streams.yaml"))
async def test_a_chat_stream_is_the_same_answer_plain_streamed_stored_and_replayed(
    shape: Shape, first: Literal["plain", "streamed"]
) -> None:
    await check(CHAT, shape, first)


@pytest.mark.parametrize("first", ["plain", "streamed"])
@pytest.mark.parametrize("shape", shapes("text_streams.yaml"))
async def test_a_text_stream_is_the_same_answer_plain_streamed_stored_and_replayed(
    shape: Shape, first: Literal["plain", "streamed"]
) -> None:
    await check(TEXT, shape, first)


@pytest.mark.parametrize("shape", shapes("plain_answers.yaml"))
async def test_a_plain_answer_is_the_same_stored_and_replayed_in_both_forms(shape: Shape) -> None:
    choices = [{"index": 0, **choice} for choice in shape.steps]
    head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    body = {**head, "choices": choices, "usage": USAGE, "x_top": {"a": [1, None]}}
    upstream = ScriptedUpstream()
    upstream.otherwise = lambda _: json_reply(body)
    async with serving(upstream=upstream) as service:
        computed = await CHAT.ask(service, stream=False, about=shape.name)
        plain = await CHAT.ask(service, stream=False, about=shape.name)
        streamed = await CHAT.ask(service, stream=True, about=shape.name)
        assert (plain.headers["X-Cache-Level"] == "response") is shape.stored
        assert ("stored" in computed.headers["Cache-Status"]) is shape.stored
        for found in (computed.body, plain.body, folded(streamed)):
            fits(shape, found)
            assert content_of(found) == content_of(body)
        assert upstream.calls == (1 if shape.stored else 3)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_a_filter_held_back_is_kept_as_long_as_a_refusal_at_most(
    stream: bool,
) -> None:
    shape = Shape(
        name="filtered",
        of="Azure",
        steps=[{"delta": {"role": "assistant", "content": "half"}}],
        end="content_filter",
    )
    upstream = ScriptedUpstream()
    upstream.otherwise = lambda _: stream_reply(*map(event, CHAT.events(shape)), DONE)
    async with serving(upstream=upstream, freshness={"negative_ttl": 7, "jitter": 0}) as service:
        wish = {"enabled": True, "tier": "hot", "ttl": 300}  # which may be served stale
        first = await CHAT.ask(service, stream=stream, about="", kv_cache=wish)
        if not stream:
            assert first.headers["X-Cache-TTL"] == "7"
        service.clock.advance(6)
        kept = await CHAT.ask(service, stream=stream, about="", kv_cache=wish)
        assert kept.headers["X-Cache-Level"] == "response"
        service.clock.advance(2)
        again = await CHAT.ask(service, stream=stream, about="", kv_cache=wish)
        assert again.headers["X-Cache-Level"] == "none"
        assert upstream.calls == 2
