"""How an upstream's answer is read: as a stream or at once, by what it sends and not by its headers.

A stream ends as clients understand it: at ``[DONE]``, at the last event of the Responses API, or with
the connection in an orderly way once every choice has finished. An event that tells an error ends it
with that error.
"""

from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final

from gateway import exact_json
from gateway.backends import refusals
from gateway.backends.dialects import usage_of, with_reuse
from gateway.chunks import Chunk, Comment, Json, Whole, well_formed
from gateway.errors import BackendFault
from gateway.folding import numbered
from gateway.off_loop import off_loop
from gateway.responses import ENDS, whole_in
from gateway.sse import DONE_DATA, Event, Parser
from policies.call import Call
from policies.outcome import Usage

_FIELDS: Final = (b":", b"data:", b"event:", b"id:", b"retry:", b"error:")
"""How a stream of events begins."""
_DEEP: Final = 200
"""Levels that JSON of ours has room for, with some left for what we put around it."""


class Progress:
    """What has been seen of an answer, to know at its end whether it is all there."""

    __slots__ = ("_expected", "_open", "chunks", "ended", "usage")

    def __init__(self, call: Call) -> None:
        self._expected = _choices_of(call)
        self._open: set[int] = set()
        self.ended: set[int] = set()
        self.chunks = 0
        self.usage = Usage()

    def see(self, data: Json) -> None:
        """Take note of an event, or of the whole answer."""
        self.chunks += 1
        if (whole := whole_in(data)) is not None:
            self.ended.add(0)
            data = whole
        for index, choice in numbered(data.get("choices")):
            if choice.get("finish_reason") or choice.get("error"):
                self._open.discard(index)
                self.ended.add(index)
            elif index not in self.ended:
                self._open.add(index)
        if isinstance(usage := data.get("usage"), dict):
            self.usage = usage_of(usage)

    def is_whole(self, *, said_done: bool) -> bool:
        """Whether the stream may end here. Without ``[DONE]`` each choice that was asked for counts."""
        fewest = 1 if said_done else self._expected
        return not self._open and len(self.ended) >= fewest


async def read(
    name: str, content: AsyncIterator[bytes], progress: Progress, *, declared: bool
) -> AsyncIterator[Comment | Chunk | Whole]:
    """The answer in the body ``content``. ``declared``: its header calls it a stream of events.

    Raises: GatewayError: what came is an error, no answer, or not all of one.
    """
    stream, parts = _Stream(name, progress), [b""]
    streamed: bool | None = None
    async for received in content:
        if streamed:
            for chunk in stream.take(received):
                yield chunk
        elif streamed is None:
            parts[0] += received
            if streamed := _is_stream(parts[0], declared=declared):
                for chunk in stream.take(parts[0]):
                    yield chunk
        else:
            parts.append(received)
        if stream.over:
            return
    raw = b"".join(parts)
    if declared if streamed is None else streamed:
        for chunk in stream.close(raw if streamed is None else b""):
            yield chunk
    else:
        text = raw.removeprefix(BOM_UTF8)
        whole = await off_loop(len(text), partial(understood, begun=False), name, text)
        progress.see(whole)
        yield Whole(whole)


class _Stream:
    """The events of one answer. ``over``: the end was told, and nothing that follows counts."""

    __slots__ = ("_name", "_parser", "_progress", "over")

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress
        self._parser = Parser()
        self.over = False

    def take(self, received: bytes) -> Iterator[Comment | Chunk]:
        """The chunks that ``received`` completes. Raises: GatewayError."""
        events = self._parser.events(received)
        if comments := self._parser.comments:
            yield Comment(b"\n".join([*comments, b"", b""]))
            comments.clear()
        for event in events:
            if event.data == DONE_DATA:
                self._end(said_done=True)
            elif event.name == "error" or b"\n" in event.data:
                yield from self._chunks(event)
            elif event.data and not event.data.isspace():
                yield self._chunk(event.data)
            if self.over:
                return

    def close(self, received: bytes) -> Iterator[Comment | Chunk]:
        """The connection has ended in an orderly way. Raises: GatewayError, if that is too early."""
        yield from self.take(received)
        try:
            yield from self._rest()
        except BackendFault as half:
            if half.code != "backend_bad_answer":
                raise
        if not self.over:
            self._end(said_done=False)

    def _rest(self) -> Iterator[Chunk]:
        for event in self._parser.close():
            if not self.over and event.data == DONE_DATA:
                self._end(said_done=True)
            elif not self.over:
                yield from self._chunks(event)

    def _chunks(self, event: Event) -> Iterator[Chunk]:
        for raw in _values(event.data):
            if not self.over:
                yield self._chunk(raw, failed=event.name == "error")

    def _chunk(self, raw: bytes, *, failed: bool = False) -> Chunk:
        progress = self._progress
        data = understood(self._name, raw, begun=progress.chunks > 0, failed=failed)
        progress.see(data)
        self.over = data.get("type") in ENDS
        return Chunk(data, len(raw))

    def _end(self, *, said_done: bool) -> None:
        self.over = True
        if not self._progress.is_whole(said_done=said_done):
            raise refusals.cut(self._name, b"\n".join(self._parser.stray))


def understood(name: str, raw: bytes, *, begun: bool, failed: bool = False) -> Json:
    """A whole answer, or an event of a stream. ``failed``: it came under the name of an error.

    Raises: GatewayError: it tells an error, or it is none of OpenAI's shapes.
    """
    try:
        value = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError as error:
        if failed:
            raise refusals.told(name, raw, begun=begun) from error
        raise refusals.bad_answer(name, "sent no valid JSON", raw) from error
    if failed or refusals.is_error(value):
        raise refusals.told(name, value, begun=begun)
    if not isinstance(value, dict):
        raise refusals.bad_answer(name, "sent no JSON object")
    if not well_formed(value):
        raise refusals.bad_answer(name, "sent no OpenAI answer")
    if _is_deep(raw, value):
        raise refusals.bad_answer(name, "sent an answer that is nested too deep")
    return with_reuse(value)


def json_object(name: str, raw: bytes) -> Json:
    """A JSON object. Raises: BackendFault ``backend_bad_answer``."""
    try:
        value = exact_json.loads_answer(raw)
    except exact_json.JSONDecodeError as error:
        raise refusals.bad_answer(name, "sent no valid JSON") from error
    if not isinstance(value, dict):
        raise refusals.bad_answer(name, "sent no JSON object")
    return value


def _is_stream(head: bytes, *, declared: bool) -> bool | None:
    """Whether a body that begins so is a stream of events; ``None`` while that cannot be told."""
    text = head.removeprefix(BOM_UTF8).lstrip()
    if not text or BOM_UTF8.startswith(text):
        return None
    if text[:1] in (b"{", b"[", b"<"):
        return False
    if declared or text.startswith(_FIELDS):
        return True
    return None if any(one.startswith(text) for one in _FIELDS) else False


def _values(data: bytes) -> list[bytes]:
    """The JSON values of an event: some servers leave out the empty line between two."""
    lines = [line for line in data.split(b"\n") if not line.isspace() and line]
    whole = all(line[:1] == b"{" and line.rstrip()[-1:] == b"}" for line in lines)
    return lines if whole else [data]


def _is_deep(raw: bytes, value: Json) -> bool:
    """Whether it can be read, but not be written again. Nearly every answer has fewer brackets."""
    if len(raw) <= 2 * _DEEP or raw.count(b"{") + raw.count(b"[") <= _DEEP:
        return False
    depth = 0
    level: list[Any] = [value]
    while level and depth <= _DEEP:
        depth += 1
        inner = chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level)
        level = [one for one in inner if isinstance(one, dict | list)]
    return depth > _DEEP


def _choices_of(call: Call) -> int:
    """How many choices the call asks for, as far as that can be told."""
    asked, prompt = call.body.get("n"), call.body.get("prompt")
    count = asked if isinstance(asked, int) and asked > 0 else 1
    prompts = len(prompt) if isinstance(prompt, list) and prompt else 1
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        prompts = 1
    return count * prompts if call.endpoint == "completions" else count
