"""OpenAI's routes: what is answered, streamed, refused, and what a leaving client leaves behind."""

import asyncio
import io
import json
import threading
from typing import Any

import pytest

from engine.errors import NotReadyError
from tests.kit.scripted_service import Scripted, scripted

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(content: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": content}], **more}


async def stream(one: Scripted, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that must end properly."""
    response = await one.post(path, {**body, "stream": True})
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])
    return [json.loads(event[6:]) for event in events[:-2]]


def contents(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    own = [choice for choice in choices if choice["index"] == index]
    return "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in own)


# -- answers -------------------------------------------------------------------------------------


async def test_a_chat_is_answered_in_openais_shape() -> None:
    async with scripted() as one:
        response = await one.post(CHAT, chat("hi"))
        body = await response.json()
        assert body.pop("id").startswith("chatcmpl-")
        assert body == {
            "object": "chat.completion",
            "created": 1_000_000,
            "model": "scripted",
            "system_fingerprint": "fp_0123456789",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello, you.", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": 11,
                "total_tokens": 30,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
                "prompt_cache_hit_tokens": 0,
                "prompt_cache_miss_tokens": 19,
            },
        }
        assert response.headers["X-KV-Hit-Tokens"] == "0"
        assert response.headers["X-KV-Miss-Tokens"] == "19"
        assert response.headers["X-Request-ID"]


async def test_the_second_equal_chat_reports_what_it_found() -> None:
    async with scripted() as one:
        await one.post(CHAT, chat("hi"))
        response = await one.post(CHAT, chat("hi"), headers={"X-Request-ID": "mine"})
        usage = (await response.json())["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 16
        assert (usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]) == (16, 3)
        assert response.headers["X-KV-Hit-Tokens"] == "16"
        assert response.headers["X-Request-ID"] == "mine"
        other = await one.post(CHAT, chat("hi", kv={"salt": "s"}))
        assert other.headers["X-KV-Hit-Tokens"] == "0"


async def test_a_stream_says_role_content_end_and_done() -> None:
    async with scripted() as one:
        chunks = await stream(one, CHAT, chat())
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert contents(chunks) == "Hello, you."
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * 12 + ["stop"]
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_last_in_a_stream_that_asks_for_it() -> None:
    async with scripted() as one:
        body = chat(stream_options={"include_usage": True})
        chunks = await stream(one, CHAT, body)
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == []
        plain = await (await one.post(CHAT, chat(kv={"reuse": False}))).json()
        assert chunks[-1]["usage"] == plain["usage"]


@pytest.mark.parametrize(
    "more",
    [{}, {"n": 3}, {"stop": "you"}, {"max_tokens": 4}, {"logprobs": True, "top_logprobs": 2}],
)
async def test_a_plain_answer_is_the_fold_of_its_stream(more: dict[str, Any]) -> None:
    async with scripted() as one:
        plain = await (await one.post(CHAT, chat(**more))).json()
        chunks = await stream(one, CHAT, chat(**more))
        for choice in plain["choices"]:
            index = choice["index"]
            assert contents(chunks, index) == choice["message"]["content"]
            own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            assert own[-1]["finish_reason"] == choice["finish_reason"]
            assert [c["finish_reason"] for c in own].count(None) == len(own) - 1
            shown = [t for c in own if c["logprobs"] for t in c["logprobs"]["content"]]
            assert shown == ((choice["logprobs"] or {}).get("content") or [])


async def test_a_stop_string_cuts_and_ends_the_generation() -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(8)
        body = await (await one.post(CHAT, chat(stop=["lo, y", "zzz"]))).json()
        choice = body["choices"][0]
        assert choice["message"]["content"] == "Hel"
        assert choice["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] == 8
        one.runner.gate.release(2)
        assert await one.engine.ask(lambda scheduler: scheduler.busy) is False
        assert len(one.runner.schedules) <= 8 + 1


async def test_the_length_limit_is_named_as_the_end() -> None:
    async with scripted() as one:
        for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
            body = await (await one.post(CHAT, chat() | limit)).json()
            assert body["choices"][0]["message"]["content"] == "Hello"
            assert body["choices"][0]["finish_reason"] == "length"


async def test_the_answer_may_be_as_long_as_there_is_room_when_nothing_is_said() -> None:
    async with scripted(max_model_len=25) as one:
        body = await (await one.post(CHAT, chat())).json()
        assert body["usage"]["total_tokens"] == 25
        assert body["choices"][0]["finish_reason"] == "length"


async def test_half_characters_are_never_sent() -> None:
    async with scripted() as one:
        one.runner.says = "5 € 🙂"
        chunks = await stream(one, CHAT, chat())
        pieces = [c["choices"][0]["delta"].get("content") for c in chunks]
        assert [piece for piece in pieces if piece] == ["5", " ", "€", " ", "🙂"]


async def test_choices_share_the_prompt_which_is_computed_and_counted_once() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat("hi", n=3))).json()
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert body["usage"]["prompt_tokens"] == 19
        assert body["usage"]["completion_tokens"] == 33
        assert body["usage"]["prompt_cache_hit_tokens"] == 0
        prompt_rows = one.runner.rows_computed - 3 * 11
        assert prompt_rows == 19 + 2 * 3, "the others find all but the last block"


async def test_logprobs_have_openais_chat_shape() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat(logprobs=True, top_logprobs=2))).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in content) == "Hello, you."
        assert content[1] == {
            "token": "e",
            "logprob": -2.0,
            "bytes": [101],
            "top_logprobs": [
                {"token": "e", "logprob": -2.0, "bytes": [101]},
                {"token": "A", "logprob": -9.0, "bytes": [65]},
            ],
        }
        body = await (await one.post(CHAT, chat(logprobs=True))).json()
        assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_tokens_of_a_stop_string_have_no_logprobs() -> None:
    async with scripted() as one:
        body = await (await one.post(CHAT, chat(logprobs=True, stop="lo"))).json()
        content = body["choices"][0]["logprobs"]["content"]
        assert [entry["token"] for entry in content] == ["H", "e", "l"]


async def test_tools_reach_the_template_unless_none_are_to_be_used() -> None:
    async with scripted() as one:
        tools = [{"type": "function", "function": {"name": "f"}}]
        count = {}
        for choice in (None, "auto", "none"):
            body = chat(tools=tools, tool_choice=choice)
            count[choice] = (await (await one.post(CHAT, body)).json())["usage"]["prompt_tokens"]
        assert count[None] == count["auto"] == count["none"] + len("(1 tools)")


# -- completions ---------------------------------------------------------------------------------


async def test_completions_take_text_lists_and_token_ids() -> None:
    async with scripted() as one:
        for prompt, tokens, choices in [
            ("abc", 3, 1),
            (["abc", "de"], 5, 2),
            ([98, 99, 100], 3, 1),
            ([[98, 99], [100], [101]], 4, 3),
        ]:
            body = await (await one.post(COMPLETIONS, {"prompt": prompt, "max_tokens": 5})).json()
            assert body["object"] == "text_completion"
            assert body["id"].startswith("cmpl-")
            assert body["usage"]["prompt_tokens"] == tokens
            assert [choice["text"] for choice in body["choices"]] == ["Hello"] * choices
            assert [choice["index"] for choice in body["choices"]] == list(range(choices))


async def test_completions_default_to_sixteen_tokens() -> None:
    async with scripted() as one:
        one.runner.says = "x" * 50
        body = await (await one.post(COMPLETIONS, {"prompt": "abc"})).json()
        assert body["choices"][0]["text"] == "x" * 16


async def test_choices_are_ordered_by_prompt_and_then_by_number() -> None:
    async with scripted() as one:
        body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "echo": True}
        answer = await (await one.post(COMPLETIONS, body)).json()
        assert [c["text"] for c in answer["choices"]] == ["aHe", "aHe", "bHe", "bHe"]


async def test_echo_with_logprobs_scores_the_prompt() -> None:
    async with scripted() as one:
        await one.post(COMPLETIONS, {"prompt": "abcdefghij"})  # what is known must not matter
        body = {"prompt": "abcdefghij", "max_tokens": 2, "echo": True, "logprobs": 1}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        logprobs = choice["logprobs"]
        assert choice["text"] == "abcdefghijHe"
        assert "".join(logprobs["tokens"]) == choice["text"]
        assert logprobs["text_offset"] == list(range(12))
        assert logprobs["token_logprobs"][:3] == [None, -2.0, -3.0]
        assert logprobs["token_logprobs"][-2:] == [-1.0, -2.0]
        assert logprobs["top_logprobs"][1] == {"b": -2.0}


async def test_a_prompt_can_be_scored_without_generating() -> None:
    async with scripted() as one:
        body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
        choice = (await (await one.post(COMPLETIONS, body)).json())["choices"][0]
        assert choice["text"] == "abc"
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == 3


async def test_a_completion_stream_is_text_chunks() -> None:
    async with scripted() as one:
        chunks = await stream(one, COMPLETIONS, {"prompt": "abc", "echo": True})
        assert contents(chunks) == "abcHello, you."
        assert chunks[-1]["choices"][0] == {
            "index": 0,
            "text": "",
            "logprobs": None,
            "finish_reason": "stop",
        }


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_field"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "invalid_type"),
        ({"messages": [{"role": "alien"}]}, "messages", "invalid_value"),
        ({"model": 7}, "model", "invalid_type"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.01}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"seed": 0.5}, "seed", "invalid_type"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias.999", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": 1}, "stream_options", "invalid_type"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value"),
        ({"response_format": "text"}, "response_format", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"kv": 1}, "kv", "invalid_type"),
        ({"kv": {"salt": 1}}, "kv.salt", "invalid_type"),
        ({"kv": {"salt": "x" * 513}}, "kv.salt", "invalid_value"),
        ({"kv": {"priority": "urgent"}}, "kv.priority", "invalid_value"),
        ({"kv": {"lane": "fast"}}, "kv.lane", "invalid_value"),
        ({"kv": {"ttl_s": -1}}, "kv.ttl_s", "invalid_value"),
        ({"kv": {"reuse": "no"}}, "kv.reuse", "invalid_type"),
    ],
)
async def test_a_bad_chat_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], param: str, code: str
) -> None:
    async with scripted() as one:
        error = await one.refused(CHAT, chat() | change)
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert one.runner.schedules == []


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_field"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": [[]]}, "prompt", "invalid_type"),
        ({"prompt": [1, "x"]}, "prompt", "invalid_type"),
        ({"prompt": ["x", 1]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": [257]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": ["x"] * 65}, "prompt", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"echo": 1}, "echo", "invalid_type"),
        ({"suffix": "end"}, "suffix", "unsupported_value"),
        ({"best_of": 3}, "best_of", "unsupported_value"),
    ],
)
async def test_a_bad_completion_is_refused_by_the_name_of_the_field(
    change: dict[str, Any], param: str, code: str
) -> None:
    async with scripted() as one:
        error = await one.refused(COMPLETIONS, {"prompt": "abc"} | change)
        assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b'{"temperature": NaN}', b"\xff\xfe", b"[" * 5000]
)
async def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    async with scripted() as one:
        response = await one.client.post(CHAT, data=body)
        assert response.status == 400
        error = (await response.json())["error"]
        assert error["code"] in ("invalid_json", "invalid_type")


async def test_unknown_members_are_ignored_and_null_is_absent() -> None:
    async with scripted() as one:
        body = chat(store=True, prediction={"x": 1}, temperature=None, stop=None, kv=None, n=None)
        assert (await one.post(CHAT, body | {"kv": {"later": 1}})).status == 200


async def test_a_model_that_is_not_served_is_404() -> None:
    async with scripted() as one:
        error = await one.refused(CHAT, chat() | {"model": "gpt-9"}, 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        for name in ("scripted", "default", "some/path", None):
            assert (await one.post(CHAT, chat() | {"model": name})).status == 200


async def test_too_long_a_prompt_is_refused_with_both_numbers() -> None:
    async with scripted(max_model_len=40) as one:
        error = await one.refused(CHAT, chat("x" * 100))
        assert error["code"] == "context_length_exceeded"
        assert "40 tokens" in error["message"]
        assert "117 in the messages" in error["message"]
        error = await one.refused(COMPLETIONS, {"prompt": "abc", "max_tokens": 38})
        assert error["param"] == "prompt"
        assert "requested 41 tokens (3 in" in error["message"]


async def test_a_request_larger_than_the_pool_is_refused_and_one_that_fits_alone_is_not() -> None:
    async with scripted(blocks=8) as one:
        error = await one.refused(COMPLETIONS, {"prompt": "x" * 30, "max_tokens": 3})
        assert "32 tokens" in error["message"]
        body = {"prompt": "x" * 29, "max_tokens": 3}
        answers = await asyncio.gather(*(one.post(COMPLETIONS, body) for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 4


async def test_a_long_text_is_made_into_tokens_beside_the_loop() -> None:
    async with scripted() as one:
        loop_thread, seen = threading.get_ident(), []
        encode = one.text.encode

        def spy(text: str, *, add_bos: bool) -> list[int]:
            seen.append(threading.get_ident() == loop_thread)
            return encode(text, add_bos=add_bos)[:20]

        one.text.encode = spy  # type: ignore[method-assign]
        for content in ("short", "x" * 10_000):
            assert (await one.post(CHAT, chat(content))).status == 200
        assert seen == [True, False]


async def test_a_full_queue_is_503_with_retry_after() -> None:
    async with scripted(max_waiting=2) as one:
        response = await one.post(CHAT, chat(n=3))
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == "overloaded"


async def test_paths_methods_and_sizes_are_refused_in_json() -> None:
    async with scripted() as one:
        for method, path, status, code in [
            ("GET", "/nowhere", 404, "not_found"),
            ("GET", CHAT, 405, "method_not_allowed"),
        ]:
            response = await one.client.request(method, path)
            assert response.status == status
            assert (await response.json())["error"]["code"] == code
        response = await one.client.post(CHAT, data=io.BytesIO(b" " * (17 << 20)))
        assert response.status == 413
        assert (await response.json())["error"]["code"] == "body_too_large"


async def test_before_the_model_is_loaded_everything_is_503() -> None:
    async with scripted() as one:
        service, one.slot.service = one.slot.service, None
        for path in ("/healthz", "/v1/models", "/kv/stats"):
            response = await one.client.get(path)
            assert response.status == 503
            assert response.headers["Retry-After"] == "2"
        assert (await one.refused(CHAT, chat(), 503))["code"] == "not_ready"
        one.slot.service = service
        assert await (await one.client.get("/healthz")).json() == {
            "status": "ok",
            "model": "scripted",
        }
        with pytest.raises(NotReadyError):
            type(one.slot)().ready()


async def test_a_model_without_a_template_takes_completions_only() -> None:
    async with scripted() as one:
        one.text.chat = None
        assert (await one.refused(CHAT, chat()))["param"] == "messages"
        assert (await one.post(COMPLETIONS, {"prompt": "abc"})).status == 200


# -- faults and leaving --------------------------------------------------------------------------


async def test_a_step_that_fails_before_the_first_token_is_an_http_error() -> None:
    async with scripted() as one:
        for streams in (True, False):
            one.runner.fail_steps = 1
            error = await one.refused(CHAT, chat(stream=streams), 500)
            assert error["code"] == "generation_failed"
        assert (await one.post(CHAT, chat())).status == 200


async def test_a_step_that_fails_in_mid_stream_is_an_error_event_and_no_done() -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(4)
        response = await one.post(CHAT, chat(stream=True))
        one.runner.fail_steps = 1
        one.runner.gate.release(100)
        text = await response.text()
        assert "[DONE]" not in text
        last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_frees_its_blocks(*, streams: bool) -> None:
    async with scripted() as one:
        one.runner.says = "x" * 150
        one.runner.gate = threading.Semaphore(5)
        call = asyncio.ensure_future(one.post(CHAT, chat(stream=streams, max_tokens=150)))
        if streams:
            (await call).close()
        else:
            while not one.runner.schedules:  # noqa: ASYNC110 - happens in a thread
                await asyncio.sleep(0.001)
            call.cancel()
        while one.engine._sinks:  # noqa: ASYNC110 - the server notices by itself
            await asyncio.sleep(0.001)
        one.runner.gate.release(2)
        held = await one.engine.ask(lambda scheduler: scheduler.index.pool.held_blocks)
        assert held == 0
        assert len(one.runner.schedules) <= 7


async def test_an_unexpected_fault_is_500_without_its_details() -> None:
    async with scripted() as one:
        one.service.facts = {"device": object()}
        response = await one.client.get("/kv/stats")
        assert response.status == 500
        assert (await response.json())["error"]["message"] == "The engine failed."


# -- models and /kv ------------------------------------------------------------------------------


async def test_the_model_is_listed_and_found() -> None:
    async with scripted() as one:
        listed = await (await one.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        model = listed["data"][0]
        assert (model["id"], model["object"], model["created"]) == ("scripted", "model", 1_000_000)
        assert await (await one.client.get("/v1/models/scripted")).json() == model
        assert await (await one.client.get("/v1/models/some/path")).json() == model
        assert (await one.client.get("/v1/models/other")).status == 404


async def test_what_is_prefilled_is_found_by_lookup_and_by_the_chat() -> None:
    async with scripted() as one:
        messages = [{"role": "system", "content": "x" * 20}]
        body = {"messages": messages, "kv": {"salt": "s", "ttl_s": 60, "priority": "high"}}
        usage = (await (await one.post("/kv/prefill", body)).json())["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (28, 0)
        longer = {"messages": [*messages, {"role": "user", "content": "hi"}]}
        found = await (await one.post("/kv/lookup", {**longer, "salt": "s"})).json()
        assert found == {"tokens": 47, "hit_tokens": 28}
        assert (await (await one.post("/kv/lookup", longer)).json())["hit_tokens"] == 0
        response = await one.post(CHAT, {**longer, "kv": {"salt": "s"}})
        assert response.headers["X-KV-Hit-Tokens"] == "28"


async def test_lookup_takes_text_and_token_ids() -> None:
    async with scripted() as one:
        await one.post("/kv/prefill", {"prompt": "abcdefghi"})
        for body in ({"prompt": "abcdefghi"}, {"token_ids": list(range(98, 107))}):
            found = await (await one.post("/kv/lookup", body)).json()
            assert found == {"tokens": 9, "hit_tokens": 8}
        wrong: list[dict[str, Any]] = [
            {},
            {"prompt": ["a", "b"]},
            {"token_ids": ""},
            {"messages": []},
        ]
        for bad in wrong:
            await one.refused("/kv/lookup", bad)


async def test_invalidation_wants_a_salt_or_all() -> None:
    async with scripted() as one:
        for salt in ("", "s"):
            await one.post("/kv/prefill", {"prompt": "abcdefgh", "kv": {"salt": salt}})
        assert await (await one.post("/kv/invalidate", {"salt": "s"})).json() == {"tokens": 8}
        assert await (await one.post("/kv/invalidate", {"all": True})).json() == {"tokens": 8}
        wrong: list[dict[str, Any]] = [{}, {"all": False}, {"all": True, "salt": "s"}, {"salt": 1}]
        for bad in wrong:
            await one.refused("/kv/invalidate", bad)


async def test_the_state_is_reported_as_numbers() -> None:
    async with scripted() as one:
        await one.post(CHAT, chat())
        stats = await (await one.client.get("/kv/stats")).json()
        assert stats["model"] == "scripted"
        assert stats["device"] == "none"
        assert stats["blocks"] == {
            "total": 64,
            "free": 57,
            "cached": 7,
            "idle": 7,
            "in_use": 0,
            "block_tokens": 4,
        }
        assert stats["tokens"] == {"hit": 0, "miss": 19, "generated": 11, "rows": 30}
        assert stats["sequences"] == {
            "running": 0,
            "waiting": 0,
            "finished": 1,
            "preempted": 0,
        }
