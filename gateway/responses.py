"""Answers of OpenAI's Responses API, as one object and as a stream of typed events; no IO.

A stream says everything twice: piece by piece, and whole in its last event. So folding is taking
that last event, and unfolding is telling the pieces again. A stored answer keeps its id: the
provider knows it by that, and the next call may name it as ``previous_response_id``.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, Final

Json = dict[str, Any]

OBJECT: Final = "response"
ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Types of the event that ends a stream and holds the whole answer."""


def is_response(body: Json) -> bool:
    """Whether this is an answer of this API."""
    return body.get("object") == OBJECT


def is_event(data: Json) -> bool:
    """Whether this is a typed event, and no chunk of another API."""
    return "choices" not in data and isinstance(data.get("type"), str)


def whole_in(event: Json) -> Json | None:
    """The whole answer, if this event brings it."""
    found = event.get("response") if event.get("type") in ENDS else None
    return found if isinstance(found, dict) else None


def is_finished(body: Json) -> bool:
    """Whether the answer is complete: not queued, cut short or failed."""
    failed = body.get("error") is not None
    return body.get("status") == "completed" and bool(body.get("output")) and not failed


def is_well_formed(data: Json) -> bool:
    """Whether an answer, or an event with one, has the shape that is relied on here."""
    if not isinstance(data.get("type", ""), str):
        return False
    body = whole_in(data) or data
    if not is_response(body):
        return True
    output = body.get("output") or []
    return isinstance(output, list) and all(map(_is_item, output))


def _is_item(item: object) -> bool:
    """An item whose parts, where it has any, are objects."""
    if not isinstance(item, dict):
        return False
    for name in ("content", "summary"):
        parts = item.get(name)
        if isinstance(parts, list) and not all(isinstance(part, dict) for part in parts):
            return False
    return True


def unfold(body: Json) -> Iterator[Json]:
    """The events of a stream that ends in ``body``, numbered."""
    number = count()
    for event in _told(body):
        yield {**event, "sequence_number": next(number)}


def _told(body: Json) -> Iterator[Json]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(body.get("output") or ()):
        if isinstance(item, dict):
            yield from _item(index, item)
    status = body.get("status")
    kind = status if status in {"completed", "failed"} else "incomplete"
    yield {"type": f"response.{kind}", "response": body}


def _item(index: int, item: Json) -> Iterator[Json]:
    at = {"output_index": index, "item_id": item.get("id")}
    begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
    match item.get("type"):
        case "message":
            pieces = list(_parts(at, item))
            begun["content"] = []
        case "function_call":
            said = item.get("arguments")
            pieces = [
                {**at, "type": "response.function_call_arguments.delta", "delta": said},
                {**at, "type": "response.function_call_arguments.done", "arguments": said},
            ]
            begun["arguments"] = ""
        case "reasoning":
            pieces = list(_summaries(at, item))
            begun["summary"] = []
        case _:
            pieces = []
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield from pieces
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _listed(item: Json, name: str) -> list[Json]:
    found = item.get(name)
    return found if isinstance(found, list) else []


def _parts(at: Json, item: Json) -> Iterator[Json]:
    for number, part in enumerate(_listed(item, "content")):
        here = {**at, "content_index": number}
        name = "refusal" if part.get("type") == "refusal" else "text"
        kind = "refusal" if name == "refusal" else "output_text"
        said = part.get(name, "")
        extra = {"logprobs": part.get("logprobs") or []} if name == "text" else {}
        yield {**here, "type": "response.content_part.added", "part": {**part, name: ""}}
        yield {**here, "type": f"response.{kind}.delta", "delta": said, **extra}
        yield {**here, "type": f"response.{kind}.done", name: said, **extra}
        yield {**here, "type": "response.content_part.done", "part": part}


def _summaries(at: Json, item: Json) -> Iterator[Json]:
    for number, part in enumerate(_listed(item, "summary")):
        here = {**at, "summary_index": number}
        said = part.get("text", "")
        text = "response.reasoning_summary_text"
        empty = {**part, "text": ""}
        yield {**here, "type": "response.reasoning_summary_part.added", "part": empty}
        yield {**here, "type": f"{text}.delta", "delta": said}
        yield {**here, "type": f"{text}.done", "text": said}
        yield {**here, "type": "response.reasoning_summary_part.done", "part": part}
