"""From a judged body to the engine and back; what is known, computed and forgotten of a prompt."""

import asyncio
import threading
from typing import Any

from tests.kit.scripted_service import CHAT, COMPLETIONS, chat, scripted


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


async def test_a_text_that_can_never_fit_is_refused_before_it_is_made_into_tokens() -> None:
    async with scripted(max_model_len=40) as one:
        one.text.encode = None  # type: ignore[method-assign,assignment]
        error = await one.refused(CHAT, chat("x" * 640))
        assert error["code"] == "context_length_exceeded"
        assert "40 tokens" in error["message"]
        assert "at least 42 tokens" in error["message"]  # of 16 bytes, with what the template adds
        error = await one.refused(COMPLETIONS, {"prompt": "ü" * 321})
        assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


async def test_a_long_text_is_made_into_tokens_beside_the_loop() -> None:
    async with scripted(blocks=256, max_model_len=1000) as one:
        loop_thread, seen = threading.get_ident(), []
        encode = one.text.encode

        def spy(text: str, *, add_bos: bool) -> list[int]:
            seen.append(threading.get_ident() == loop_thread)
            return encode(text, add_bos=add_bos)[:20]

        one.text.encode = spy  # type: ignore[method-assign]
        for prompt in ("short", "x" * 5_000):
            assert (await one.post(COMPLETIONS, {"prompt": prompt})).status == 200
        assert seen == [True, False]
        assert (await one.post(CHAT, chat("short"))).status == 200
        assert seen == [True, False, False]


async def test_a_model_without_a_template_takes_completions_only() -> None:
    async with scripted() as one:
        one.text.chat = None
        assert (await one.refused(CHAT, chat()))["param"] == "messages"
        assert (await one.post(COMPLETIONS, {"prompt": "abc"})).status == 200


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
        assert (found["tokens"], found["hit_tokens"]) == (47, 28)
        assert (await (await one.post("/kv/lookup", longer)).json())["hit_tokens"] == 0
        response = await one.post(CHAT, {**longer, "kv": {"salt": "s"}})
        assert response.headers["X-KV-Hit-Tokens"] == "28"


async def test_lookup_takes_text_and_token_ids() -> None:
    async with scripted() as one:
        await one.post("/kv/prefill", {"prompt": "abcdefghi"})
        for body in ({"prompt": "abcdefghi"}, {"token_ids": list(range(98, 107))}):
            found = await (await one.post("/kv/lookup", body)).json()
            assert (found["tokens"], found["hit_tokens"]) == (9, 8)
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
            "pinned": 0,
            "block_tokens": 4,
        }
        assert stats["tokens"] == {"hit": 0, "miss": 19, "generated": 11, "rows": 30}
        assert stats["sequences"] == {
            "running": 0,
            "waiting": 0,
            "finished": 1,
            "preempted": 0,
        }
