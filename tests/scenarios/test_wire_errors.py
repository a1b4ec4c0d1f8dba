"""Errors in the shapes that upstreams really send, asked plain and streamed.

They come before the answer, in its place and in the middle of it. Their words must reach the client,
and nothing of them is stored.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
import pytest

from tests.kit.scripted_upstream import (
    DONE,
    EVENTS,
    JSON,
    Reply,
    ScriptedUpstream,
    chat_body,
    event,
    stream_reply,
)
from tests.kit.service import serving
from tests.kit.wire import ASKED, CHUNKS, is_answered_anew, last_error

MIDDLE = b"".join(CHUNKS[:3])
HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"


class Shape(NamedTuple):
    """An error of an upstream: its status, its body, and words that the client must see."""

    status: int
    body: Any
    words: str
    content_type: str = JSON

    @property
    def raw(self) -> bytes:
        """The body's bytes."""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


ERRORS: Mapping[str, Shape] = {
    "OpenAI": Shape(400, openai("no such", type="t", param="p", code="c"), "no such"),
    "OpenAI's message alone": Shape(404, openai("no such model"), "no such model"),
    "vLLM": Shape(400, openai("too long", type="BadRequestError", param=None, code=400), "too long"),
    "older vLLM": Shape(
        400,
        {"object": "error", "message": "maximum context length is 4096", "type": "BadRequestError",
         "param": None, "code": 400},
        "maximum context length is 4096",
    ),
    "SGLang 5xx": Shape(500, {"object": "error", "message": "NaN in probs", "code": 500}, "NaN in"),
    "FastAPI list": Shape(
        422, {"detail": [{"loc": ["body", "x"], "msg": "extra field", "type": "t"}]}, "extra field"
    ),
    "FastAPI two": Shape(
        422,
        {"detail": [{"loc": ["body", "x"], "msg": "first"}, {"loc": ["body", "y", 0], "msg": "2nd"}]},
        "body.x: first; body.y.0: 2nd",
    ),
    "FastAPI text": Shape(404, {"detail": "Not Found"}, "Not Found"),
    "FastAPI object": Shape(503, {"detail": {"message": "worker died", "code": 7}}, "worker died"),
    "FastAPI nested": Shape(400, {"detail": {"error": {"message": "deep words"}}}, "deep words"),
    "Gemini": Shape(
        400,
        [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}],
        "API key not valid",
    ),
    "Gemini alone": Shape(
        503, {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}, "overloaded"
    ),
    "Ollama": Shape(400, {"error": "model 'x' not found"}, "model 'x' not found"),
    "TGI": Shape(500, {"error": "queue is full", "error_type": "overloaded"}, "queue is full"),
    "text twice": Shape(500, {"error": {"error": "inner words"}}, "inner words"),
    "error list": Shape(500, {"error": ["first words", "second words"]}, "first words; second words"),
    "error without message": Shape(500, {"error": {"reason": "shard lost"}}, "shard lost"),
    "error of unknown members": Shape(500, {"error": {"oops": "E77"}}, "E77"),
    "Mistral": Shape(400, {"message": "bad field", "request_id": "r"}, "bad field"),
    "Mistral 422": Shape(
        422, {"object": "error", "message": {"detail": [{"loc": ["n"], "msg": "bad n"}]}}, "bad n"
    ),
    "Cohere": Shape(500, {"message": "internal trouble"}, "internal trouble"),
    "Anthropic": Shape(
        529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
    ),
    "OpenRouter": Shape(
        502,
        {"error": {"code": 502, "message": "Provider returned error", "metadata": {"raw": "x"}},
         "user_id": "u"},
        "Provider returned error",
    ),
    "Cloudflare": Shape(
        400, {"success": False, "errors": [{"code": 7, "message": "no such model"}], "result": None},
        "no such model",
    ),
    "OAuth": Shape(
        400, {"error": "invalid_scope", "error_description": "Scope is not known"}, "Scope is not"
    ),
    "Spring": Shape(
        404, {"timestamp": 1, "status": 404, "error": "Not Found", "message": "No handler"},
        "No handler",
    ),
    "problem details": Shape(
        503, {"type": "about:blank", "title": "Busy", "status": 503, "detail": "Try tomorrow"},
        "Try tomorrow", "application/problem+json",
    ),
    "Apigee": Shape(500, {"fault": {"faultstring": "Policy failed", "detail": {}}}, "Policy failed"),
    "AWS": Shape(500, {"Message": "Unable to load"}, "Unable to load"),
    "Baidu": Shape(500, {"error_code": 18, "error_msg": "qps limit"}, "qps limit"),
    "DashScope": Shape(400, {"code": "BadThing", "message": "not so", "request_id": "r"}, "not so"),
    "MiniMax": Shape(
        500, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "rate limit"
    ),
    "unknown object": Shape(500, {"whatever": "E42"}, "E42"),
    "JSON text": Shape(500, '"just words"', "just words"),
    "proxy": Shape(503, "upstream connect error", "upstream connect error", "text/plain"),
    "proxy as JSON": Shape(503, "no healthy upstream", "no healthy upstream"),
    "no content type": Shape(500, "Internal Server Error", "Internal Server Error", ""),
    "HTML": Shape(502, HTML, "502 Bad Gateway", "text/html"),
    "HTML without title": Shape(502, "<p>gone <b>away</b></p>", "gone away", "text/html"),
    "a stream's words": Shape(
        400, 'data: {"error": {"message": "event words"}}\n\n', "event words", EVENTS
    ),
    "a stream's named words": Shape(
        503, 'event: error\ndata: {"detail": "event words"}', "event words", EVENTS
    ),
    "wrong key": Shape(
        401, openai("Incorrect API key provided", type="x", code="invalid_api_key"), "API key"
    ),
}  # fmt: skip
HELD_BY_200 = {
    "older vLLM": ERRORS["older vLLM"].body,
    "out of memory": {"object": "error", "message": "out of memory", "code": 500},
    "OpenAI": ERRORS["OpenAI"].body,
    "Gemini": ERRORS["Gemini"].body,
    "Ollama": ERRORS["Ollama"].body,
    "FastAPI": ERRORS["FastAPI list"].body,
    "Mistral": ERRORS["Mistral"].body,
    "Cloudflare": ERRORS["Cloudflare"].body,
    "MiniMax": ERRORS["MiniMax"].body,
    "OpenRouter with choices": {**chat_body(ASKED), "error": {"code": 429, "message": "slow down"}},
    "Anthropic": ERRORS["Anthropic"].body,
}
WORDS_OF_200 = {
    "older vLLM": "maximum context length is 4096",
    "out of memory": "out of memory",
    "OpenAI": "no such",
    "Gemini": "API key not valid",
    "Ollama": "model 'x' not found",
    "FastAPI": "extra field",
    "Mistral": "bad field",
    "Cloudflare": "no such model",
    "MiniMax": "rate limit",
    "OpenRouter with choices": "slow down",
    "Anthropic": "Overloaded",
}


@pytest.mark.parametrize("name", ERRORS)
async def test_the_words_of_a_refusal_reach_the_client(name: str) -> None:
    shape = ERRORS[name]
    reply = Reply((shape.raw,), shape.status, content_type=shape.content_type)
    async with serving(upstream=ScriptedUpstream(*[reply] * 4)) as service:
        for streamed in (False, True):
            answer = await service.chat(stream=streamed)
            assert answer.status == (502 if shape.status == 401 else shape.status)
            assert shape.words in answer.error["message"]
            assert answer.headers["Content-Type"].startswith("application/json")
        if shape.status not in {400, 404, 422}:
            assert shape.words in (await service.chat(True)).error["message"]
            await is_answered_anew(service)
            return
        levels = []
        for _ in range(2):
            answer = await service.chat(True)
            await service.settled()
            levels.append(answer.headers.get("X-Cache-Level"))
            assert (answer.status, shape.words in answer.error["message"]) == (shape.status, True)
        assert levels[1] == "negative"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("content_type", [JSON, EVENTS, "text/plain"])
@pytest.mark.parametrize("name", HELD_BY_200)
async def test_a_success_that_holds_an_error_is_that_error(
    name: str, content_type: str, streamed: bool
) -> None:
    raw = json.dumps(HELD_BY_200[name]).encode()
    async with serving(
        upstream=ScriptedUpstream(Reply((raw,), content_type=content_type))
    ) as service:
        answer = await service.chat(stream=streamed)
        assert answer.status >= 400
        assert WORDS_OF_200[name] in answer.error["message"]
        await is_answered_anew(service, stream=streamed)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", HELD_BY_200)
async def test_an_error_as_the_first_event_of_a_stream_is_a_status(
    name: str, streamed: bool
) -> None:
    reply = stream_reply(event(HELD_BY_200[name]), DONE)
    async with serving(upstream=ScriptedUpstream(reply)) as service:
        answer = await service.chat(stream=streamed)
        assert answer.status >= 400
        assert WORDS_OF_200[name] in answer.error["message"]


async def test_a_status_that_the_error_names_is_the_status() -> None:
    for code, status in ((429, 429), ("503", 503), (42, 502), ("rate_limited", 502)):
        body = openai("no", code=code)
        async with serving(upstream=ScriptedUpstream(Reply((orjson.dumps(body),)))) as service:
            answer = await service.chat()
            assert (answer.status, answer.error["code"]) == (status, code)


IN_MID_STREAM = {
    **{name: event(body) for name, body in HELD_BY_200.items() if name != "Gemini"},
    "Gemini": event(HELD_BY_200["Gemini"]),
    "named": b"event: error\n" + event({"message": "named words"}),
    "named text": b"event: error\ndata: named words\n\n",
    "named, of no shape": b"event: error\n" + event({"odd": "named words"}),
    "llama.cpp": b'error: {"code": 500, "message": "slot is lost"}\n\n',
    "plain text as data": b"data: upstream connect error\n\n",
    "plain text": b"upstream connect error\n",
    "plain text without an end": b"upstream connect error",
    "JSON without data": b'{"error": {"message": "raw words"}}\n',
    "after an end": event({"choices": [{"index": 1, "delta": {}}]}) + event(openai("late words")),
}
WORDS_IN_MID_STREAM = {
    **WORDS_OF_200,
    "named": "named words",
    "named text": "named words",
    "named, of no shape": "named words",
    "llama.cpp": "slot is lost",
    "plain text as data": "upstream connect error",
    "plain text": "upstream connect error",
    "plain text without an end": "upstream connect error",
    "JSON without data": "raw words",
    "after an end": "late words",
}


@pytest.mark.parametrize("name", IN_MID_STREAM)
async def test_an_error_in_mid_stream_is_told_in_its_words_and_never_stored(name: str) -> None:
    words = WORDS_IN_MID_STREAM[name]
    reply = stream_reply(MIDDLE, IN_MID_STREAM[name])
    async with serving(upstream=ScriptedUpstream(reply, reply)) as service:
        streamed = await service.chat(True, stream=True)
        assert words in last_error(streamed)["message"]
        assert orjson.loads(streamed.events[0])["choices"][0]["delta"]["role"] == "assistant"
        await service.settled()
        plain = await service.chat(True)
        assert plain.status >= 500
        assert words in plain.error["message"]
        await is_answered_anew(service)


@pytest.mark.parametrize(
    "told",
    [
        {"type": "error", "code": "rate_limit", "message": "typed words", "param": None},
        {"error": {"code": "rate_limit", "message": "typed words"}},
    ],
)
async def test_an_error_in_a_stream_of_typed_events_is_a_typed_event(told: dict[str, Any]) -> None:
    created = {"type": "response.created", "response": {"object": "response", "id": "r"}}
    upstream = ScriptedUpstream(stream_reply(event(created), b"event: error\n" + event(told)))
    async with serving(upstream=upstream) as service:
        ask = {"model": "m", "input": "?", "stream": True}
        answer = await service.send("POST", "/v1/responses", ask)
        name, _, data = answer.raw.rstrip().rpartition(b"event: ")[2].partition(b"\ndata: ")
        said = orjson.loads(data)
        assert (name, said["type"], said["message"]) == (b"error", "error", "typed words")
        assert (said["code"], said["error"]["message"]) == ("rate_limit", "typed words")


@pytest.mark.parametrize("path", ["completions", "embeddings"])
@pytest.mark.parametrize("name", HELD_BY_200)
async def test_an_error_under_200_is_one_on_each_route(name: str, path: str) -> None:
    body: Any = HELD_BY_200[name]
    async with serving(upstream=ScriptedUpstream(Reply((json.dumps(body).encode(),)))) as service:
        ask = {"model": "m", "prompt": "?", "input": "?"}
        answer = await service.send("POST", f"/v1/{path}", ask)
        assert answer.status >= 400
        assert WORDS_OF_200[name] in answer.error["message"]
