"""What a reader of a stream is owed of an answer: its events, marked, and usage only on request."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from gateway import headers, responses, sse
from gateway.chunks import Chunk, Json, Whole, unfold
from gateway.flights import TURN
from policies.call import Call
from policies.outcome import Outcome


def events_owed(part: Chunk | Whole, outcome: Outcome, call: Call) -> Iterator[bytes]:
    """The events that this client is owed for a part of an answer."""
    chunks = (part,) if isinstance(part, Chunk) else unfold(part.body, call.endpoint, part.log)
    if call.endpoint == "responses":
        return (_typed(chunk.data, outcome) for chunk in chunks)
    return (
        sse.encode(data)
        for chunk in chunks
        if (data := _for_stream(chunk.data, outcome, call)) is not None
    )


def replay_owed(kept: Whole, outcome: Outcome, call: Call) -> bytes | AsyncIterator[bytes]:
    """The whole stream of a stored answer; a long one in portions, others get their turn between."""
    events = chain(events_owed(kept, outcome, call), (end_owed(call),))
    first = list(islice(events, TURN))
    return b"".join(first) if len(first) < TURN else _in_turns(first, events)


async def _in_turns(first: list[bytes], events: Iterator[bytes]) -> AsyncIterator[bytes]:
    portion = first
    while portion:
        yield b"".join(portion)
        await asyncio.sleep(0)
        portion = list(islice(events, TURN))


def end_owed(call: Call) -> bytes:
    """What ends a stream that ended well; a stream of typed events ends with the last of them."""
    return b"" if call.endpoint == "responses" else sse.DONE


def error_owed(body: Mapping[str, Any], endpoint: str) -> bytes:
    """The event of an error in mid-stream; a typed one where all events are."""
    if endpoint != "responses":
        return sse.encode(body)
    error = body["error"]
    members = {name: error.get(name) for name in ("code", "message", "param")}
    return sse.encode_named("error", {"type": "error", **members, **body})


def _typed(event: Json, outcome: Outcome) -> bytes:
    whole = responses.whole_in(event)
    marked = {**event, "response": {**whole, "cache_hit": outcome.hit}} if whole else event
    return sse.encode_named(str(event.get("type", "")), marked)


def _for_stream(data: Json, outcome: Outcome, call: Call) -> Json | None:
    """A chunk as this client is owed it; ``None`` when it is not: usage only on request."""
    usage = data.get("usage")
    marked = headers.with_receipt({**data, "cache_hit": outcome.hit}, outcome)
    if call.include_usage:
        marked["usage"] = None
        if isinstance(usage, dict):
            told = marked["usage"] = headers.annotated_usage(usage)
            # The head may have left before the backend said what it reused.
            marked["cache_hit"] = outcome.hit or bool(told.get("prompt_cache_hit_tokens"))
        return marked
    if "usage" in data:
        if usage is not None and not data.get("choices"):
            return None
        del marked["usage"]
    return marked
