"""Answers of OpenAI's Responses API, as one object and as a stream of typed events; no IO.

A stream says everything twice: piece by piece, and whole in its last event. So folding is taking
that last event. Unfolding makes the events from the answer; where the live stream had others, an
:class:`EventLog` is kept beside the answer. A stored answer keeps its id: the provider knows it by
that, and the next call may name it as ``previous_response_id``.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Final, NamedTuple

Json = dict[str, Any]

OBJECT: Final = "response"
NOT_REPLAYED: Final = frozenset({"obfuscation"})
"""Padding against packet-size analysis: repeating an old value would undo its purpose."""
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


class EventLog:
    """The events of a live stream, for what no answer says: what came when, and in which pieces.

    Neighbours that differ in ``delta`` alone are one run, ``[event, deltas]``. The answer itself is
    in the last event, and not in the log.
    """

    __slots__ = ("_deltas", "_last", "runs")

    def __init__(self) -> None:
        self.runs: list[Json | list[Any]] = []
        self._deltas: list[str] = []  # of the last run
        self._last: Json = {}  # what its next event would be, but for the delta

    def add(self, event: Json) -> None:
        """Note the next event."""
        kept = {name: value for name, value in event.items() if name not in NOT_REPLAYED}
        if whole_in(event) is not None:
            kept["response"] = None
        if not isinstance(delta := event.get("delta"), str):
            self.runs.append(kept)
            self._last = {}
            return
        del kept["delta"]
        if kept == self._last:
            self._deltas.append(delta)
        else:
            self._deltas = [delta]
            self.runs.append([kept, self._deltas])
        self._last = _next(kept)

    def tells_more_than(self, body: Json) -> bool:
        """Whether the stream cannot be had from the answer alone."""
        told = EventLog()
        for event in unfold(body):
            told.add(event)
        return told.runs != self.runs


def events_of(runs: Iterable[Any], body: Json) -> Iterator[Json]:
    """The events that these runs of an :class:`EventLog` stand for; they end in ``body``."""
    for run in runs:
        if isinstance(run, list):
            event, deltas = run
            for delta in deltas:
                yield {**event, "delta": delta}
                event = _next(event)
        elif run.get("type") in ENDS and "response" in run:
            yield {**run, "response": body}
        else:
            yield run


def _next(event: Json) -> Json:
    """What the next event of a run is but for its delta."""
    number = event.get("sequence_number")
    return {**event, "sequence_number": number + 1} if isinstance(number, int) else event


def _told(body: Json) -> Iterator[Json]:
    begun = {name: value for name, value in body.items() if name != "cache_hit"}
    begun |= {"status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(body.get("output") or ()):
        if isinstance(item, dict):
            yield from _item(index, item)
    status = body.get("status")
    kind = status if status in {"completed", "failed"} else "incomplete"
    yield {"type": f"response.{kind}", "response": body}


class _Steps(NamedTuple):
    """What a stream tells of an item beside its begin and end.

    ``member`` is told in pieces as ``text``; ``before`` and ``after`` are what the item did.
    """

    member: str = ""
    text: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


_STEPS: Final[Mapping[str, _Steps]] = {
    "function_call": _Steps("arguments", "function_call_arguments"),
    "custom_tool_call": _Steps("input", "custom_tool_call_input"),
    "mcp_call": _Steps(
        "arguments", "mcp_call_arguments", ("mcp_call.in_progress",), ("mcp_call.completed",)
    ),
    "mcp_list_tools": _Steps(
        before=("mcp_list_tools.in_progress",), after=("mcp_list_tools.completed",)
    ),
    "code_interpreter_call": _Steps(
        "code",
        "code_interpreter_call_code",
        ("code_interpreter_call.in_progress",),
        ("code_interpreter_call.interpreting", "code_interpreter_call.completed"),
    ),
    "file_search_call": _Steps(
        before=("file_search_call.in_progress", "file_search_call.searching"),
        after=("file_search_call.completed",),
    ),
    "web_search_call": _Steps(
        before=("web_search_call.in_progress", "web_search_call.searching"),
        after=("web_search_call.completed",),
    ),
    "image_generation_call": _Steps(
        before=("image_generation_call.in_progress", "image_generation_call.generating"),
        after=("image_generation_call.completed",),
    ),
}


def _item(index: int, item: Json) -> Iterator[Json]:
    at = {"output_index": index, "item_id": item.get("id")}
    begun = {**item, "status": "in_progress"} if "status" in item else dict(item)
    match kind := item.get("type"):
        case "message":
            pieces = list(_parts(at, item))
            begun["content"] = []
        case "reasoning":
            pieces = [*_summaries(at, item), *_parts(at, item)]
            begun["summary"] = []
            if "content" in item:
                begun["content"] = []
        case _:
            steps = _STEPS.get(kind, _Steps()) if isinstance(kind, str) else _Steps()
            pieces = list(_done(at, item, steps))
            if steps.member in item:
                begun[steps.member] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": begun}
    yield from pieces
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _done(at: Json, item: Json, steps: _Steps) -> Iterator[Json]:
    """What an item did."""
    for step in steps.before:
        yield {**at, "type": f"response.{step}"}
    said = item.get(steps.member)
    if isinstance(said, str):
        text, whole = f"response.{steps.text}", {steps.member: item[steps.member]}
        if steps.member == "arguments" and item.get("type") == "function_call":
            whole["name"] = item.get("name")
        if said:
            yield {**at, "type": f"{text}.delta", "delta": said}
        yield {**at, "type": f"{text}.done", **whole}
    for step in steps.after:
        failed = step.endswith(".completed") and bool(item.get("error"))
        name = step.removesuffix("completed") + "failed" if failed else step
        yield {**at, "type": f"response.{name}"}


def _listed(item: Json, name: str) -> list[Json]:
    found = item.get(name)
    return found if isinstance(found, list) else []


_PARTS: Final = {"refusal": ("refusal", "refusal"), "reasoning_text": ("text", "reasoning_text")}
"""Of a part of each type: its member, and the name of its events."""


def _parts(at: Json, item: Json) -> Iterator[Json]:
    for number, part in enumerate(_listed(item, "content")):
        here = {**at, "content_index": number}
        name, kind = _PARTS.get(str(part.get("type")), ("text", "output_text"))
        said = part.get(name, "")
        extra = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        begun = {**part, name: ""} | {
            listed: [] for listed in ("annotations", "logprobs") if part.get(listed)
        }
        yield {**here, "type": "response.content_part.added", "part": begun}
        yield {**here, "type": f"response.{kind}.delta", "delta": said, **extra}
        for place, annotation in enumerate(_listed(part, "annotations")):
            noted = {"annotation_index": place, "annotation": annotation}
            yield {**here, "type": "response.output_text.annotation.added", **noted}
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
