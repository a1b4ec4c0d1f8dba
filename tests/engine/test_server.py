"""The routes: what is refused before it is looked at, faults, and what a leaving client leaves behind."""

import asyncio
import io
import json
import threading

import pytest

from engine.errors import NotReadyError
from tests.kit.scripted_service import CHAT, chat, scripted


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
