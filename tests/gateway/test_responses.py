"""Answers of the Responses API, as one object and as typed events."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.chunks import Chunk, finish_of, fold, unfold
from gateway.responses import is_finished
from gateway.responses import unfold as told
from gateway.sse import Parser
from tests.kit.scripted_upstream import EVENTS, Reply, ScriptedUpstream, json_reply
from tests.kit.service import serving

ITEMS: list[dict[str, Any]] = [
    {
        "id": "rs_1", "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Thinking."}],
    },
    {
        "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
        "content": [
            {"type": "output_text", "text": "Hello ä", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "Not that."},
        ],
    },
    {
        "id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1",
        "name": "f", "arguments": '{"a":1}',
    },
    {"id": "ws_1", "type": "web_search_call", "status": "completed",
     "action": {"type": "search", "query": "q"}},
    {"id": "rs_2", "type": "reasoning", "summary": [],
     "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {
        "id": "msg_2", "type": "message", "role": "assistant", "status": "completed",
        "content": [{
            "type": "output_text", "text": "See it.", "logprobs": [],
            "annotations": [{"type": "url_citation", "url": "https://a.example", "title": "A",
                             "start_index": 0, "end_index": 3}],
        }],
    },
    {"id": "ct_1", "type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "a = 1"},
    {"id": "mcp_1", "type": "mcp_call", "server_label": "s", "name": "h", "arguments": "{}",
     "output": "ok", "error": None},
    {"id": "mcp_2", "type": "mcp_call", "server_label": "s", "name": "h", "arguments": "",
     "output": None, "error": {"type": "http_error", "message": "lost", "code": 500}},
    {"id": "mcpl_1", "type": "mcp_list_tools", "server_label": "s", "tools": []},
    {"id": "ci_1", "type": "code_interpreter_call", "status": "completed", "code": "1 + 1",
     "container_id": "c", "outputs": []},
    {"id": "fs_1", "type": "file_search_call", "status": "completed", "queries": ["q"]},
    {"id": "ig_1", "type": "image_generation_call", "status": "completed", "result": "QUJD"},
    {"id": "cp_1", "type": "compaction", "encrypted_content": "QUJD"},
]  # fmt: skip


def response_of(**change: Any) -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed",
        "model": "m", "error": None, "incomplete_details": None, "output": ITEMS,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {
            "input_tokens": 9, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 11,
        },
        **change,
    }  # fmt: skip


def stream_of(body: dict[str, Any]) -> Reply:
    """A server's own stream: the same pieces, but its text in two deltas."""
    events = list(told(body))
    lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply(tuple(lines), content_type=EVENTS)


def events_in(raw: bytes) -> Iterator[dict[str, Any]]:
    for event in Parser().feed(raw):
        data = json.loads(event.data)
        assert data["type"] == event.name
        yield data


def test_a_stream_folds_back_to_the_answer_it_tells() -> None:
    body = response_of()
    chunks = list(unfold(body, "responses"))
    assert fold(chunks) == body
    assert [chunk.data["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    types = [chunk.data["type"] for chunk in chunks]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    assert types.count("response.output_item.added") == len(ITEMS)


def test_every_event_is_one_that_the_sdk_knows() -> None:
    known: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in told(response_of()):
        parsed = known.validate_python(event, strict=False)
        assert parsed.type == event["type"]


def test_what_an_item_did_is_told_between_its_begin_and_its_end() -> None:
    does: dict[str, list[str]] = {}
    for event in told(response_of()):
        if "item_id" in event:
            does.setdefault(event["item_id"], []).append(event["type"].removeprefix("response."))
    assert does["fc_1"] == ["function_call_arguments.delta", "function_call_arguments.done"]
    assert does["ct_1"] == ["custom_tool_call_input.delta", "custom_tool_call_input.done"]
    assert "output_text.annotation.added" in does["msg_2"]
    assert does["rs_2"][1:3] == ["reasoning_text.delta", "reasoning_text.done"]
    call = ["mcp_call_arguments.delta", "mcp_call_arguments.done"]
    assert does["mcp_1"] == ["mcp_call.in_progress", *call, "mcp_call.completed"]
    assert does["mcp_2"] == ["mcp_call.in_progress", call[1], "mcp_call.failed"]
    assert does["mcpl_1"] == ["mcp_list_tools.in_progress", "mcp_list_tools.completed"]
    assert does["ci_1"] == [
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
    ]
    assert does["fs_1"][-1] == "file_search_call.completed"
    assert does["ig_1"][1] == "image_generation_call.generating"
    assert does["ws_1"][1] == "web_search_call.searching"
    (named,) = (one for one in told(response_of()) if one["type"].endswith("arguments.done")
                and one["item_id"] == "fc_1")  # fmt: skip
    assert named["name"] == "f"


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (response_of(), True),
        (response_of(status="incomplete"), False),
        (response_of(status="queued", output=[]), False),
        (response_of(output=[]), False),
        (response_of(error={"code": "server_error", "message": "lost"}), False),
    ],
)
def test_only_a_complete_answer_is_finished(body: dict[str, Any], whole: bool) -> None:  # a table
    assert (finish_of(body, "responses") == "whole") == is_finished(body) == whole
    assert fold([Chunk(event) for event in told(body)]) == body


@pytest.mark.parametrize(
    "odd",
    [
        {"type": []},
        response_of(output=5),
        response_of(output=["text"]),
        response_of(output=[{"type": "message", "content": ["text"]}]),
        {"type": "response.completed", "response": response_of(output=[None])},
    ],
)
async def test_an_answer_of_another_shape_is_the_backends_fault_and_not_stored(odd: Any) -> None:
    upstream = ScriptedUpstream(json_reply(odd), json_reply(response_of()))
    async with serving(upstream=upstream) as service:
        answer = await service.send("POST", "/v1/responses", ASK)
        assert (answer.status, answer.error["code"]) == (502, "backend_bad_answer")
        assert (await service.send("POST", "/v1/responses", ASK)).status == 200


def test_a_failed_answer_ends_as_one() -> None:
    *_, last = told(response_of(status="failed"))
    assert last["type"] == "response.failed"


ASK = {"model": "m", "input": "Hi", "kv_cache": {"enabled": True}}


async def test_an_answer_is_stored_and_keeps_the_id_that_the_provider_knows() -> None:
    upstream = ScriptedUpstream(json_reply(response_of()))
    async with serving(upstream=upstream) as service:
        first = await service.send("POST", "/v1/responses", ASK)
        again = await service.send("POST", "/v1/responses", ASK)
        assert (first.headers["X-Cache-Hit"], again.headers["X-Cache-Hit"]) == ("true", "true")
        assert first.headers["X-Cache-Level"] == "prefix"  # the provider reused four tokens
        assert again.headers["X-Cache-Level"] == "response"
        assert again.body == {**response_of(), "cache_hit": True}
        assert upstream.calls == 1
        assert upstream.seen[0].path == "/v1/responses"
        assert "kv_cache" not in upstream.seen[0].body
        service.gateway.journal.settle()
        (counted,) = service.gateway.journal.statistics.by("endpoint")
        assert counted == "responses"


async def test_plain_and_streamed_answers_serve_each_other() -> None:
    upstream = ScriptedUpstream(stream_of(response_of()))
    async with serving(upstream=upstream) as service:
        streamed = await service.send("POST", "/v1/responses", {**ASK, "stream": True})
        plain = await service.send("POST", "/v1/responses", ASK)
        replayed = await service.send("POST", "/v1/responses", {**ASK, "stream": True})
        assert upstream.calls == 1
        assert plain.body == {**response_of(), "cache_hit": True}
        for answer, hit in ((streamed, False), (replayed, True)):
            events = list(events_in(answer.raw))
            assert events[-1]["response"] == {**response_of(), "cache_hit": hit}
            assert b"[DONE]" not in answer.raw


async def test_a_stream_that_breaks_off_ends_in_an_error_event_and_is_not_stored() -> None:
    whole = stream_of(response_of())
    for cut in ("fin", "rst"):
        steps = (*whole.steps[:5], cut)
        upstream = ScriptedUpstream(Reply(steps, content_type=EVENTS), json_reply(response_of()))
        async with serving(upstream=upstream) as service:
            broken = await service.send("POST", "/v1/responses", {**ASK, "stream": True})
            assert b'"error"' in broken.raw
            assert b"response.completed" not in broken.raw
            after = await service.send("POST", "/v1/responses", ASK)
            assert after.headers["X-Cache-Level"] != "response"
            assert upstream.calls == 2


@pytest.mark.parametrize("served", [("*",), ("first", "second")])
@pytest.mark.parametrize("absent", [{}, {"model": None}])
async def test_a_response_may_leave_the_model_to_a_kept_prompt_and_is_asked_for_each_time(
    served: tuple[str, ...], absent: dict[str, Any]
) -> None:
    upstream = ScriptedUpstream(json_reply(response_of()), json_reply(response_of()))
    async with serving(upstream=upstream, models=served) as service:
        ask = {"prompt": {"id": "pmpt_1"}, "kv_cache": {"enabled": True, "debug": True}, **absent}
        for _ in range(2):
            answer = await service.send("POST", "/v1/responses", ask)
            assert (answer.status, answer.headers["X-Cache-Miss-Reason"]) == (200, "stateful")
        assert upstream.calls == 2
    named = absent if served == ("*",) else {"model": "first"}
    assert upstream.seen[0].body == {"prompt": {"id": "pmpt_1"}, **named}


async def test_a_failed_response_is_an_answer_that_comes_back_as_it_is_and_is_not_kept() -> None:
    failed = response_of(
        status="failed", output=[], error={"code": "server_error", "message": "lost"}
    )
    upstream = ScriptedUpstream(json_reply(failed), json_reply(response_of()))
    async with serving(upstream=upstream) as service:
        first = await service.send("POST", "/v1/responses", ASK)
        assert first.status == 200
        assert {name: first.body[name] for name in ("status", "error")} == {
            "status": "failed",
            "error": {"code": "server_error", "message": "lost"},
        }
        second = await service.send("POST", "/v1/responses", ASK)
        assert (second.body["status"], upstream.calls) == ("completed", 2)


@pytest.mark.parametrize("field", [{"conversation": "conv_1"}, {"background": True}])
async def test_what_lives_at_the_provider_is_asked_for_each_time(field: dict[str, Any]) -> None:
    upstream = ScriptedUpstream(json_reply(response_of()), json_reply(response_of()))
    async with serving(upstream=upstream) as service:
        ask = {**ASK, **field, "kv_cache": {"enabled": True, "debug": True}}
        for _ in range(2):
            answer = await service.send("POST", "/v1/responses", ask)
            assert answer.headers["X-Cache-Miss-Reason"] == "stateful"
        assert upstream.calls == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m", "input": 5}, "input"),
        ({"model": "m", "input": ["text"]}, "input[0]"),
        ({"model": 3, "input": "x"}, "model"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    async with serving() as service:
        answer = await service.send("POST", "/v1/responses", body)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert service.upstream.calls == 0


async def test_the_sdk_reads_what_we_send() -> None:
    upstream = ScriptedUpstream(stream_of(response_of()))
    async with serving(upstream=upstream) as service:
        client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused")
        cached = {"kv_cache": {"enabled": True}}
        for _ in range(2):
            stream = await client.responses.create(
                model="m", input="Hi", stream=True, extra_body=cached
            )
            types = [event.type async for event in stream]
            assert types[-1] == "response.completed"
        plain = await client.responses.create(model="m", input="Hi", extra_body=cached)
        assert plain.output_text == "Hello äSee it."
        assert upstream.calls == 1
        await client.close()
