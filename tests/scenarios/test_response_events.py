"""A replayed ``/v1/responses`` stream has the events of the live one, whatever they are."""

import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from openai.types.responses import ResponseStreamEvent

from gateway.sse import Parser
from tests.kit.scripted_upstream import EVENTS, Reply, ScriptedUpstream
from tests.kit.service import Answer, Service, serving

Json = dict[str, Any]
ASK: Json = {"model": "m", "input": "Hi", "kv_cache": {"enabled": True}}
AT: Json = {"item_id": "i_1", "output_index": 0}
PART: Json = {**AT, "content_index": 0}
LINE: Json = {"command_index": 0, "output_index": 0}
OUTPUT: list[Json] = [
    {"id": "i_1", "type": "message", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]},
]  # fmt: skip
BODY: Json = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m",
    "error": None, "output": OUTPUT,
    "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11},
}  # fmt: skip
BEGUN: Json = {**BODY, "status": "in_progress", "output": [], "usage": None, "x": "only now"}
ANNOTATION: Json = {"type": "url_citation", "url": "https://a.example", "title": "A"}

# What each type of event brings beside its type and number; lists are told in several events.
TABLE: dict[str, Sequence[Json]] = {
    "response.queued": [{"response": {**BEGUN, "status": "queued"}}],
    "response.created": [{"response": BEGUN}],
    "response.in_progress": [{"response": BEGUN}],
    "response.audio.delta": [{"delta": "QUJD"}, {"delta": "QUJD"}],
    "response.audio.done": [{}],
    "response.audio.transcript.delta": [{"delta": "Hel"}, {"delta": "lo"}],
    "response.audio.transcript.done": [{}],
    "response.code_interpreter_call_code.delta": [{**AT, "delta": "a ="}, {**AT, "delta": " 1"}],
    "response.code_interpreter_call_code.done": [{**AT, "code": "a = 1"}],
    "response.code_interpreter_call.completed": [AT],
    "response.code_interpreter_call.in_progress": [AT],
    "response.code_interpreter_call.interpreting": [AT],
    "response.compaction.compacting": [AT],
    "response.content_part.added": [{**PART, "part": {"type": "output_text", "text": ""}}],
    "response.content_part.done": [{**PART, "part": {"type": "output_text", "text": "Hello"}}],
    "response.file_search_call.completed": [AT],
    "response.file_search_call.in_progress": [AT],
    "response.file_search_call.searching": [AT],
    "response.function_call_arguments.delta": [{**AT, "delta": "{"}, {**AT, "delta": "}"}],
    "response.function_call_arguments.done": [{**AT, "name": "f", "arguments": "{}"}],
    "response.shell_call_command.added": [{**LINE, "command": ""}],
    "response.shell_call_command.delta": [{**LINE, "delta": "l"}, {**LINE, "delta": "s"}],
    "response.shell_call_command.done": [{**LINE, "command": "ls"}],
    "response.shell_call_output_content.delta": [
        {**LINE, "item_id": "i_1", "delta": {"stdout": "a"}},
        {**LINE, "item_id": "i_1", "delta": {"stdout": "b", "stderr": "c"}},
    ],
    "response.shell_call_output_content.done": [
        {**LINE, "item_id": "i_1", "output": [{"stdout": "ab", "outcome": {"type": "exit"}}]}
    ],
    "response.output_item.added": [{"output_index": 0, "item": {**OUTPUT[0], "content": []}}],
    "response.output_item.done": [{"output_index": 0, "item": OUTPUT[0]}],
    "response.reasoning_summary_part.added": [
        {**AT, "summary_index": 0, "part": {"type": "summary_text", "text": ""}}
    ],
    "response.reasoning_summary_part.done": [
        {**AT, "summary_index": 0, "part": {"type": "summary_text", "text": "Hm"}}
    ],
    "response.reasoning_summary_text.delta": [
        {**AT, "summary_index": 0, "delta": "H"}, {**AT, "summary_index": 1, "delta": "m"},
    ],
    "response.reasoning_summary_text.done": [{**AT, "summary_index": 0, "text": "Hm"}],
    "response.reasoning_text.delta": [{**PART, "delta": "H"}, {**PART, "delta": "m"}],
    "response.reasoning_text.done": [{**PART, "text": "Hm"}],
    "response.refusal.delta": [{**PART, "delta": "N"}, {**PART, "delta": "o"}],
    "response.refusal.done": [{**PART, "refusal": "No"}],
    "response.output_text.delta": [
        {**PART, "delta": "Hel", "logprobs": [{"token": "Hel", "logprob": -0.5}]},
        {**PART, "delta": "lo", "logprobs": []},
        {**PART, "delta": "", "logprobs": []},
    ],
    "response.output_text.done": [{**PART, "text": "Hello", "logprobs": []}],
    "response.output_text.annotation.added": [
        {**PART, "annotation_index": 0, "annotation": ANNOTATION}
    ],
    "response.web_search_call.completed": [AT],
    "response.web_search_call.in_progress": [AT],
    "response.web_search_call.searching": [AT],
    "response.image_generation_call.completed": [AT],
    "response.image_generation_call.generating": [AT],
    "response.image_generation_call.in_progress": [AT],
    "response.image_generation_call.partial_image": [
        {**AT, "partial_image_index": 0, "partial_image_b64": "QUJD", "size": "1024x1024"}
    ],
    "response.mcp_call_arguments.delta": [{**AT, "delta": "{"}, {**AT, "delta": "}"}],
    "response.mcp_call_arguments.done": [{**AT, "arguments": "{}"}],
    "response.mcp_call.completed": [AT],
    "response.mcp_call.failed": [AT],
    "response.mcp_call.in_progress": [AT],
    "response.mcp_list_tools.completed": [AT],
    "response.mcp_list_tools.failed": [AT],
    "response.mcp_list_tools.in_progress": [AT],
    "response.custom_tool_call_input.delta": [{**AT, "delta": "a ="}, {**AT, "delta": " 1"}],
    "response.custom_tool_call_input.done": [{**AT, "input": "a = 1"}],
    "response.of_tomorrow": [{"x": [1, None]}, {"delta": None}],
    "keepalive": [{}],
}  # fmt: skip
ENDS = {"response.completed", "response.failed", "response.incomplete", "error"}


def test_the_table_has_every_type_of_event_that_the_spec_names() -> None:
    kinds = get_args(get_args(ResponseStreamEvent)[0])
    known = {get_args(kind.model_fields["type"].annotation)[0] for kind in kinds}
    assert known - ENDS <= TABLE.keys()


def stream_of(*types: str, first: int = 0, step: int = 1) -> list[Json]:
    """A stream with the events of these types, numbered from ``first``."""
    events = [{"type": name, **told} for name in types for told in TABLE[name]]
    events.append({"type": "response.completed", "response": BODY, "x": "beside it"})
    return [{**event, "sequence_number": first + step * at} for at, event in enumerate(events)]


def upstream_of(events: Sequence[Json]) -> ScriptedUpstream:
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events]
    return ScriptedUpstream(Reply(lines, content_type=EVENTS))


async def asked(service: Service, *, stream: bool) -> Answer:
    answer = await service.send("POST", "/v1/responses", {**ASK, "stream": stream})
    await service.settled()
    return answer


def events_in(answer: Answer, *, hit: bool) -> list[Json]:
    """The events of a stream; the last one's answer must say whether it was stored."""
    events = []
    for event in Parser().feed(answer.raw):
        data = json.loads(event.data)
        assert event.name == data["type"]
        events.append(data)
    assert events[-1]["response"].pop("cache_hit") is hit
    return events


async def check(events: Sequence[Json]) -> None:
    """The live stream is the upstream's, the replayed one is the live one, twice."""
    async with serving(upstream=upstream_of(events)) as service:
        live = await asked(service, stream=True)
        assert events_in(live, hit=False) == events
        for _ in range(2):
            replayed = await asked(service, stream=True)
            assert replayed.headers["X-Cache-Level"] == "response"
            assert events_in(replayed, hit=True) == events
        plain = await asked(service, stream=False)
        assert plain.body == {**BODY, "cache_hit": True}
        listed = await service.send("GET", "/v1/cache/entries")
        (entry,) = listed.body["data"]
        shown = await service.send("GET", f"/v1/cache/entries/{entry['key']}")
        assert shown.body["response"] == {**BODY, "cache_hit": True}
        assert service.upstream.calls == 1


@pytest.mark.parametrize("name", TABLE)
async def test_each_type_of_event_is_replayed_as_it_came(name: str) -> None:
    await check(stream_of("response.created", name, first=0))


async def test_a_stream_of_all_types_is_replayed_as_it_came() -> None:
    await check(stream_of(*TABLE, *reversed(TABLE), first=1))


async def test_numbers_that_leave_some_out_are_replayed_as_they_came() -> None:
    await check(stream_of("response.created", "response.output_text.delta", first=3, step=2))


async def test_a_stream_without_numbers_is_replayed_as_it_came() -> None:
    events = stream_of("response.created", "response.refusal.delta", "response.refusal.done")
    for event in events:
        del event["sequence_number"]
    await check(events)


async def test_a_long_stream_is_replayed_as_it_came() -> None:
    deltas = ["response.refusal.delta"] * 400
    await check(stream_of("response.created", *deltas, "response.refusal.done"))


async def test_a_stream_of_short_pieces_takes_little_more_room_than_its_answer() -> None:
    text = [{"type": "response.refusal.delta", **PART, "delta": "word "} for _ in range(500)]
    last = {"type": "response.completed", "response": BODY}
    events = [{**event, "sequence_number": at} for at, event in enumerate([*text, last])]
    async with serving(upstream=upstream_of(events)) as service:
        await asked(service, stream=True)
        listed = await service.send("GET", "/v1/cache/entries")
        (entry,) = listed.body["data"]
        assert entry["size_bytes"] < len(json.dumps(BODY)) + 500 * len('"word ",') + 500


async def test_padding_is_not_repeated() -> None:
    events = stream_of("response.created", "response.refusal.delta")
    padded = [{**event, "obfuscation": "xyz"} for event in events]
    async with serving(upstream=upstream_of(padded)) as service:
        live = await asked(service, stream=True)
        assert events_in(live, hit=False) == padded
        assert events_in(await asked(service, stream=True), hit=True) == events
