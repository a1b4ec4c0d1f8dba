"""What we have no opinion about reaches the backend as it came: equal values, in the same order.

Compared as JSON text: ``1`` is not ``1.0`` there, and the order of a schema's properties, which steers
what a model writes, counts.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.dialects import Dialect
from tests.gateway.test_responses import response_of
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, Seen, json_reply, well_behaved
from tests.kit.service import Service, serving
from tests.policies.making import few

Body = dict[str, Any]

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
}
QUESTION: Body = {"role": "user", "content": "What is asked?"}
SCHEMA: Body = {
    "type": "object",
    "properties": {"zeta": {"type": "integer"}, "alpha": {"$ref": "#/$defs/é"}, "": {}},
    "required": ["zeta", "alpha"],
    "additionalProperties": False,
    "$defs": {"é": {"enum": [None, True, 1, 1.0, "1", "</script>\u2028\u0000😀"]}},
}
TOOL: Body = {"name": "weather", "description": "", "parameters": SCHEMA, "strict": True}
PIXEL = "data:image/png;base64,iVBORw0KGgo+/A=="
SOUND: Body = {"data": "UklGRiQAAABXQVZF+/A==", "format": "wav"}


def chat(*content: Body, **fields: Any) -> Body:
    """A chat whose last message has these parts, if there are any."""
    last = {"role": "user", "content": list(content)} if content else QUESTION
    return {"messages": [{"role": "system", "content": "Be brief."}, last], **fields}


CALLED: Body = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"zeta" : 1.0}\n'},
        }
    ],
}
TOLD: Body = {
    "role": "tool",
    "tool_call_id": "call_1",
    "content": [{"type": "text", "text": '{"sun": 1e400}'}],
}
CASES: dict[str, tuple[str, Body]] = {
    "tools": (
        "chat",
        chat(
            tools=[
                {"type": "function", "function": TOOL},
                {"type": "custom", "custom": {"name": "c"}},
            ],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            parallel_tool_calls=False,
        ),
    ),
    "a tool's answer": ("chat", {"messages": [QUESTION, CALLED, TOLD]}),
    "old functions": ("chat", chat(functions=[TOOL], function_call="auto")),
    "json_schema": (
        "chat",
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "s", "strict": True, "schema": SCHEMA},
            }
        ),
    ),
    "images": (
        "chat",
        chat(
            {"type": "text", "text": "Which?"},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a b?c=%20&d=é"}},
        ),
    ),
    "sound and files": (
        "chat",
        chat(
            {"type": "input_audio", "input_audio": SOUND},
            {"type": "file", "file": {"file_id": "file-1", "filename": None}},
            modalities=["text", "audio"],
            audio={"voice": {"id": "v"}, "format": "wav"},
        ),
    ),
    "sampling": (
        "chat",
        chat(
            temperature=1,
            top_p=0.1,
            seed=-(2**63),
            logit_bias={"50256": -100, "1": 0.5},
            stop=None,
            top_logprobs=20,
            n=1,
            prediction={"type": "content", "content": ""},
            web_search_options={},
            chat_template_kwargs={"enable_thinking": False},
        ),
    ),
    "tokens": ("completions", {"prompt": [1, 2, 3], "suffix": "", "echo": True, "best_of": 1}),
    "text": ("completions", {"prompt": "\u0000 \\u0041 \r\n", "guided_json": SCHEMA}),
    "inputs": ("embeddings", {"input": ["a"], "dimensions": 4, "input_type": "query"}),
    "items": (
        "responses",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Which?"},
                        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                        {"type": "input_file", "file_data": PIXEL, "filename": "é.png"},
                        {"type": "input_audio", "input_audio": SOUND},
                    ],
                },
                {"type": "function_call_output", "call_id": "call_1", "output": "{}"},
                {"type": "item_reference", "id": "msg_1"},
            ],
            "tools": [{"type": "function", **TOOL}, {"type": "web_search", "filters": None}],
            "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "previous_response_id": None,
        },
    ),
}


def text(value: object) -> str:
    """What two bodies must have in common, number by number and in order."""
    return json.dumps(value, ensure_ascii=True)


def upstream_for(endpoint: str) -> ScriptedUpstream:
    """A server that answers this endpoint."""

    def answer(seen: Seen) -> Reply:
        return json_reply(response_of()) if endpoint == "responses" else well_behaved(seen)

    upstream = ScriptedUpstream()
    upstream.otherwise = answer
    return upstream


async def sent_on(service: Service, endpoint: str, body: Body) -> Body:
    """The body that the upstream got for it."""
    raw = json.dumps(body).encode()
    answer = await service.send("POST", PATHS[endpoint], raw, headers={"X-Cache-Tags": "t"})
    assert answer.status == 200, answer.raw
    return service.upstream.seen[-1].body


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kv_cache", [{}, {"kv_cache": {"enabled": True, "cache_key": "k"}}])
async def test_a_body_reaches_the_backend_as_it_came(name: str, kv_cache: Body) -> None:
    endpoint, fields = CASES[name]
    body = {"model": "m", **fields}
    async with serving(upstream=upstream_for(endpoint)) as service:
        got = await sent_on(service, endpoint, {**kv_cache, **body})
        assert text(got) == text(body)
        if kv_cache:
            again = await service.send("POST", PATHS[endpoint], {**kv_cache, **body})
            assert again.headers["X-Cache-Level"] == "response"
            assert service.upstream.calls == 1


@pytest.mark.parametrize(
    "dialect", ["openai", "deepseek", "vllm", "sglang", "llamacpp", "generic", "kvgate"]
)
async def test_every_make_gets_tools_schemas_and_parts_as_they_came(dialect: Dialect) -> None:
    rich = {name: fields for name, (endpoint, fields) in CASES.items() if endpoint == "chat"}
    async with ScriptedUpstream() as upstream:
        backend = {
            "name": "up", "base_url": upstream.url, "dialect": dialect, "models": ["m"],
        }  # fmt: skip
        async with serving(backends=[backend]) as service:
            for fields in rich.values():
                answer = await service.chat({"enabled": True, "reuse": False}, **fields)
                assert answer.status == 200, answer.raw
                got = upstream.seen[-1].body
                assert text({name: got[name] for name in fields}) == text(fields)
                assert "kv_cache" not in got


letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)  # UTF-8 has no others
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(letters, inner, max_size=3),
    max_leaves=8,
)
READ = {"model", "messages", "stream", "stream_options", "kv_cache", "prompt_cache_key"}
ANSWERED = {"n", "logprobs", "tools", "tool_choice"}  # the scripted server goes by these
others = letters.filter(lambda name: name not in READ | ANSWERED)


@few
@given(bodies=st.lists(st.dictionaries(others, values, max_size=4), min_size=1, max_size=6))
async def test_whatever_json_a_field_holds_arrives(bodies: list[Body]) -> None:
    async with serving() as service:
        for at, fields in enumerate(bodies):
            body = {"model": "m", "messages": [{**QUESTION, "name": f"u{at}"}], **fields}
            for kv_cache in ({}, {"kv_cache": {"enabled": True, "reuse": False}}):
                assert text(await sent_on(service, "chat", {**body, **kv_cache})) == text(body)
