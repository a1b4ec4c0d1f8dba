"""An OpenAI-compatible server on a real socket that answers by script.

It knows nothing of the gateway's code. ``replies`` are used up one per request; when none is
left, ``otherwise`` answers like a well-behaved server. Every request is kept as it came.
"""

import asyncio
import base64
import hashlib
import json
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web
from multidict import CIMultiDict

from tests.kit.scripted_backend import Gate

Cut = Literal["fin", "rst"]
Step = bytes | float | Gate | Cut
JSON = "application/json"
CHECK = "kvgate-check"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Reply:
    """Status and headers, then the steps.

    Bytes are written, a number of seconds is waited, a gate waited at, a cut made.
    """

    steps: Sequence[Step] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON


@dataclass(eq=False)
class Seen:
    """One request as it came, and what became of it."""

    method: str
    path: str
    headers: CIMultiDict[str]
    raw: bytes
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client went away before the script was through."""

    @property
    def body(self) -> dict[str, Any]:
        """The body as JSON."""
        found: dict[str, Any] = json.loads(self.raw)
        return found


class ScriptedUpstream:
    """Use it as an async context manager; ``url`` is what a config calls ``base_url``."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.otherwise: Callable[[Seen], Reply] = well_behaved
        self.checks: Callable[[Seen], Reply] = well_behaved
        """Answers what the gateway asks about this server's health; no part of the script."""
        self.seen: list[Seen] = []
        self.checked: list[Seen] = []
        self.url = ""
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def calls(self) -> int:
        """How many requests came."""
        return len(self.seen)

    async def called(self, count: int) -> None:
        """Wait until ``count`` requests have come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.calls >= count)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen: on a free port, after :meth:`stop` on the same one."""
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End all connections and take no more."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(
            request.method,
            request.path_qs,
            CIMultiDict(request.headers),
            await request.read(),
        )
        if seen.headers.get("User-Agent") == CHECK:
            self.checked.append(seen)
            reply = self.checks(seen)
        else:
            reply = self.replies.pop(0) if self.replies else self.otherwise(seen)
            self.seen.append(seen)
        async with self._changed:
            self._changed.notify_all()
        try:
            return await _play(reply, request)
        except (asyncio.CancelledError, ConnectionError):
            seen.gone.set()
            raise


async def _play(reply: Reply, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(
        status=reply.status, headers={"Content-Type": reply.content_type, **reply.headers}
    )
    prepared = False
    for step in reply.steps:
        if isinstance(step, Gate):
            await step.pass_through()
        elif isinstance(step, float):
            await asyncio.sleep(step)
        elif isinstance(step, bytes):
            if not prepared:
                prepared = True
                await response.prepare(request)
            await response.write(step)
        else:
            _cut(request, step)
            return response
    if not prepared:
        await response.prepare(request)
    await response.write_eof()
    return response


def _cut(request: web.Request, cut: Cut) -> None:
    """End the connection in the middle: in an orderly way, or by a reset."""
    transport = request.transport
    assert transport is not None
    if cut == "rst":
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def json_reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A plain JSON answer."""
    return Reply((json.dumps(body).encode(),), status, headers or {})


def stream_reply(*steps: Step, headers: Mapping[str, str] | None = None) -> Reply:
    """A stream."""
    return Reply(steps, headers=headers or {}, content_type=EVENTS)


def error_reply(
    status: int, message: str = "refused", *, headers: Mapping[str, str] | None = None, **more: Any
) -> Reply:
    """An error object in OpenAI's shape."""
    error = {"message": message, "type": "scripted_error", "param": None, "code": None, **more}
    return json_reply({"error": error}, status=status, headers=headers)


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 0},
}
WORDS = ("You ", "asked ", "well.")


def choice_of(body: Mapping[str, Any], index: int, words: Sequence[str]) -> dict[str, Any]:
    """One choice of a chat answer, with the tool call or the logprobs that the request asked for."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(words), "refusal": None}
    finish = "stop"
    if body.get("tools"):
        name = body["tools"][0]["function"]["name"]
        call = {"name": name, "arguments": '{"q": "x"}'}
        message["content"] = None
        message["tool_calls"] = [{"id": f"call_{index}", "type": "function", "function": call}]
        finish = "tool_calls"
    logprobs = None
    if body.get("logprobs"):
        logprobs = {"content": [_token(word) for word in words], "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _token(word: str) -> dict[str, Any]:
    token = {"token": word, "logprob": -0.25, "bytes": list(word.encode())}
    return {**token, "top_logprobs": [token]}


def chat_body(body: Mapping[str, Any], words: Sequence[str] = WORDS) -> dict[str, Any]:
    """The plain answer to a chat request."""
    return {
        "id": "chatcmpl-upstream",
        "object": "chat.completion",
        "created": 1_600_000_000,
        "model": body["model"],
        "choices": [choice_of(body, index, words) for index in range(body.get("n") or 1)],
        "usage": USAGE,
        "system_fingerprint": "fp_scripted",
    }


def chat_events(body: Mapping[str, Any], words: Sequence[str] = WORDS) -> list[bytes]:
    """The same answer as a stream, its choices interleaved, without ``[DONE]``."""
    with_usage = (body.get("stream_options") or {}).get("include_usage", False)
    usage = {"usage": None} if with_usage else {}
    top = {**chat_body(body, words), "object": "chat.completion.chunk", **usage}
    if not with_usage:
        del top["usage"]
    choices = [choice_of(body, index, words) for index in range(body.get("n") or 1)]
    steps = [list(_deltas(choice, words)) for choice in choices]
    events = [
        event({**top, "choices": [piece]}) for row in zip(*steps, strict=True) for piece in row
    ]
    if with_usage:
        events.append(event({**top, "choices": [], "usage": USAGE}))
    return events


def _deltas(choice: Mapping[str, Any], words: Sequence[str]) -> list[dict[str, Any]]:
    message, scores = choice["message"], choice["logprobs"]
    head = {"role": "assistant", "content": None if message["content"] is None else ""}
    deltas: list[tuple[dict[str, Any], Any]] = [({**head, "refusal": None}, None)]
    if call := (message.get("tool_calls") or [None])[0]:
        text = call["function"]["arguments"]
        opened = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        rest = [{"index": 0, "function": {"arguments": part}} for part in (text[:4], text[4:])]
        deltas += [({"tool_calls": [part]}, None) for part in (opened, *rest)]
    else:
        for place, word in enumerate(words):
            score = scores and {"content": [scores["content"][place]], "refusal": None}
            deltas.append(({"content": word}, score))
    shown = [
        {"index": choice["index"], "delta": delta, "logprobs": score, "finish_reason": None}
        for delta, score in deltas
    ]
    end = {"delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}
    return [*shown, {"index": choice["index"], **end}]


def text_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The plain answer to a completion request."""
    return {
        "id": "cmpl-upstream",
        "object": "text_completion",
        "created": 1_600_000_000,
        "model": body["model"],
        "choices": [
            {"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": USAGE,
    }


def text_events(body: Mapping[str, Any]) -> list[bytes]:
    """The same as a stream."""
    top = {key: value for key, value in text_body(body).items() if key != "usage"}
    ends = [None] * len(WORDS) + ["stop"]
    return [
        event(
            {**top, "choices": [{"index": 0, "text": word, "logprobs": None, "finish_reason": end}]}
        )
        for word, end in zip((*WORDS, ""), ends, strict=True)
    ]


def vector_of(item: Any) -> list[float]:
    """The embedding of one input: its own, and the same each time."""
    digest = hashlib.sha256(json.dumps(item).encode()).digest()
    return [byte / 128 - 1 for byte in digest[:4]]


def embeddings_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an embeddings request: three tokens for each input."""
    given = body["input"]
    inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    vectors: list[Any] = [vector_of(item) for item in inputs]
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack("<4f", *vector)).decode() for vector in vectors]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "model": body["model"],
        "usage": {"prompt_tokens": 3 * len(inputs), "total_tokens": 3 * len(inputs)},
    }


def well_behaved(seen: Seen) -> Reply:
    """What a good server answers to ``seen``."""
    path = seen.path.removeprefix("/v1")
    if path == "/models":
        return json_reply({"object": "list", "data": [{"id": "up-1", "object": "model"}]})
    if seen.method != "POST" or path.startswith("/chat/completions/"):
        return json_reply({"id": path.rpartition("/")[2], "path": path})
    body = seen.body
    if path == "/embeddings":
        return json_reply(embeddings_body(body))
    if path == "/completions":
        if body.get("stream"):
            return stream_reply(*text_events(body), DONE)
        return json_reply(text_body(body))
    if body.get("stream"):
        return stream_reply(*chat_events(body), DONE)
    return json_reply(chat_body(body))
