"""The routes: what is refused before it is looked at, faults, and what a leaving client leaves behind."""

import asyncio
import io
import json
import threading

import pytest
from aiohttp import web

from engine.errors import NotReadyError
from engine.server import Pace
from engine.text.chat import ChatTemplate
from tests.kit.scripted_service import CHAT, chat, scripted
from tests.kit.timer import Timer


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b'{"temperature": NaN}', b"\xff\xfe", b"[" * 5000]
)
async def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    async with scripted() as one:
        response = await one.client.post(CHAT, data=body)
        assert response.status == 400
        error = (await response.json())["error"]
        assert error["code"] in ("invalid_json", "invalid_type")


async def test_with_a_token_every_route_but_health_wants_it() -> None:
    async with scripted(token="the gateway's own") as one:
        for given in (None, "", "Bearer", "Bearer wrong", "the gateway's own", "Bearer \xff"):
            headers = {} if given is None else {"Authorization": given}
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/kv/stats"),
                                 ("POST", "/kv/invalidate"), ("GET", "/nowhere")):  # fmt: skip
                response = await one.client.request(method, path, headers=headers, json=chat())
                assert response.status == 401
                error = (await response.json())["error"]
                assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        assert (await one.client.get("/healthz")).status == 200
        own = {"Authorization": "Bearer the gateway's own"}
        assert (await one.client.post(CHAT, json=chat(), headers=own)).status == 200


async def test_without_a_token_the_engine_alone_is_open() -> None:
    async with scripted() as one:
        assert (await one.client.post(CHAT, json=chat())).status == 200


async def test_unknown_members_are_ignored_and_null_is_absent() -> None:
    async with scripted() as one:
        body = chat(store=True, prediction={"x": 1}, temperature=None, stop=None, kv=None, n=None)
        assert (await one.post(CHAT, body | {"kv": {"later": 1}})).status == 200


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


async def test_a_stream_that_waits_is_kept_alive_every_ten_seconds() -> None:
    timer = Timer()
    async with scripted(Pace(timer.monotonic, timer.sleep)) as one:
        one.runner.gate = threading.Semaphore(0)
        asked = asyncio.ensure_future(one.post(CHAT, chat(stream=True)))
        await timer.asleep()
        await timer.go_on(9.9)
        assert not asked.done()
        await timer.go_on(0.2)  # before the first token: the headers go out with the comment
        response = await asked
        assert response.status == 200
        assert "X-KV-Hit-Tokens" not in response.headers
        assert await response.content.readuntil(b"\n\n") == b": \n\n"
        await timer.go_on(20)
        assert await response.content.readexactly(8) == b": \n\n" * 2
        one.runner.gate.release(3)  # two steps of the prompt and one token
        event = await response.content.readuntil(b"\n\n")
        assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == ""
        assert b'"H"' in await response.content.readuntil(b"\n\n")
        await timer.go_on(9.9)  # ten seconds begin anew with each event
        one.runner.gate.release(1)
        assert b'"e"' in await response.content.readuntil(b"\n\n")
        await timer.go_on(9.9)
        one.runner.gate.release(100)
        rest = await response.text()
        assert "\n: " not in rest
        assert rest.endswith("data: [DONE]\n\n")
        await timer.go_on(100)
        assert timer.sleepers == []


async def test_an_error_after_a_keep_alive_is_an_event_of_the_stream() -> None:
    timer = Timer()
    async with scripted(Pace(timer.monotonic, timer.sleep)) as one:
        one.runner.gate = threading.Semaphore(0)
        asked = asyncio.ensure_future(one.post(CHAT, chat(stream=True)))
        await timer.asleep()
        await timer.go_on(10)
        response = await asked
        one.runner.fail_steps = 1
        one.runner.gate.release(100)
        comment, event = (await response.text()).strip().split("\n\n")
        assert comment == ": "
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "generation_failed"


async def test_a_client_that_leaves_before_the_first_token_ends_its_keep_alive() -> None:
    timer = Timer()
    async with scripted(Pace(timer.monotonic, timer.sleep)) as one:
        one.runner.gate = threading.Semaphore(0)
        asked = asyncio.ensure_future(one.post(CHAT, chat(stream=True)))
        await timer.asleep()
        await timer.go_on(10)
        (await asked).close()
        for _ in range(1000):  # comments go out until the server sees that nobody reads them
            await timer.go_on(10)
            if not timer.sleepers:
                break
        assert timer.sleepers == []
        one.runner.gate.release(100)


async def test_an_unexpected_fault_in_mid_stream_ends_the_stream_with_an_error_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(4)
        response = await one.post(CHAT, chat(stream=True))
        one.text.token_bytes = None  # type: ignore[method-assign,assignment]
        one.runner.gate.release(100)
        events = (await response.text()).strip().split("\n\n")
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["error"]["message"] == "The engine failed."
        assert all(event.startswith("data: ") for event in events)
        assert "[DONE]" not in events[-1]
    assert caplog.text.count("failed in mid-stream") == 1


async def test_an_error_that_a_client_who_left_does_not_hear_is_no_fault_of_the_engine(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = web.StreamResponse.write

    async def gone(self: web.StreamResponse, data: bytes) -> None:
        if b"error" in data:
            raise ConnectionResetError
        await write(self, data)

    monkeypatch.setattr(web.StreamResponse, "write", gone)
    async with scripted() as one:
        one.runner.gate = threading.Semaphore(4)
        response = await one.post(CHAT, chat(stream=True))
        one.runner.fail_steps = 1
        one.runner.gate.release(100)
        assert "error" not in await response.text()
    assert "POST" not in caplog.text


@pytest.mark.parametrize("depth", [100, 1000])
@pytest.mark.parametrize("member", ["content", "extra", "type", "tools"])
async def test_deep_json_is_never_the_engines_fault(member: str, depth: int) -> None:
    template = ChatTemplate(
        "{{ tools }}{% for m in messages %}{{ m.role }}: {{ m }}{% endfor %}",
        bos_token="",
        eos_token="",
    )
    deep = "[" * depth + "]" * depth  # the JSON library reads this deep, and writes not so deep
    fields = {
        "content": f'"content": {deep}',
        "extra": f'"content": "hi", "extra": {deep}',
        "type": f'"content": [{{"type": {deep}, "text": "x"}}]',
        "tools": '"content": "hi"',
    }
    tools = f', "tools": [{{"type": "function", "function": {deep}}}]' if member == "tools" else ""
    body = f'{{"max_tokens": 1, "messages": [{{"role": "user", {fields[member]}}}]{tools}}}'
    async with scripted(blocks=4096, max_model_len=16384) as one:
        one.text.chat = template  # type: ignore[assignment]
        for path in (CHAT, "/kv/lookup"):
            response = await one.client.post(path, data=body)
            assert response.status in ((400,) if member in ("content", "type") else (200, 400))


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


async def test_stats_name_the_hit_rate_the_waits_and_the_memory_in_use() -> None:
    async with scripted() as one:
        one.service.facts = {"kv_token_bytes": 100}
        assert (await (await one.client.get("/kv/stats")).json())["hit_rate"] == 0.0
        for _ in range(2):
            await one.client.post(CHAT, json=chat(max_tokens=3))
        found = await (await one.client.get("/kv/stats")).json()
        assert found["latency"]["first_token"]["count"] == 2
        assert found["latency"]["inter_token"]["count"] == 4
        tokens = found["tokens"]
        assert found["hit_rate"] == round(tokens["hit"] / (tokens["hit"] + tokens["miss"]), 4) > 0
        blocks = found["blocks"]
        kept = (blocks["total"] - blocks["free"]) * blocks["block_tokens"]
        assert found["kv_used_bytes"] == kept * 100 > 0


async def test_stats_count_guesses_and_a_salt_that_is_forgotten_takes_its_answers_along() -> None:
    async with scripted(speculate_tokens=4) as one:
        body = chat(max_tokens=8, kv={"salt": "s"})
        for _ in range(2):
            await one.client.post(CHAT, json=body)
        found = (await (await one.client.get("/kv/stats")).json())["speculation"]
        assert found["most"] == 4
        assert found["answers_salts"] == 1
        assert found["answers_bytes"] > 0
        tried = {source: found[source] for source in ("prompt", "answers")}
        assert tried["answers"]["accepted"] > 0
        assert all(0 <= one["accepted"] <= one["drafted"] for one in tried.values())
        await one.client.post("/kv/invalidate", json={"salt": "s"})
        found = (await (await one.client.get("/kv/stats")).json())["speculation"]
        assert found["answers_salts"] == found["answers_bytes"] == 0
