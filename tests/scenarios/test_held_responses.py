"""Responses that go on from others, and what is kept under an id, with several backends."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    Seen,
    chat_body,
    error_reply,
    event,
    json_reply,
    stream_reply,
)
from tests.kit.service import Service, serving

FAILOVER = {"retries": 2, "breaker_failures": 5}


class Keeper(ScriptedUpstream):
    """A server that keeps its responses under ids, and refuses to go on from another's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.kept: set[str] = set()
        self.otherwise = self.answer

    def answer(self, seen: Seen) -> Reply:
        if seen.method != "POST":
            known = seen.path.rpartition("/")[2] in self.kept
            return json_reply({"by": self.name}) if known else error_reply(404, "no such thing")
        body = seen.body
        before = body.get("previous_response_id")
        if before is not None and before not in self.kept:
            return error_reply(400, "not here", code="previous_response_not_found")
        made = f"{self.name}-{len(self.kept)}"
        self.kept.add(made)
        if seen.path.endswith("/chat/completions"):
            return json_reply({**chat_body(body), "id": made})
        item = {"type": "message", "id": "i", "role": "assistant", "status": "completed"}
        part = {"type": "output_text", "text": "yes", "annotations": []}
        response = {
            "id": made, "object": "response", "status": "completed", "model": "m", "error": None,
            "output": [{**item, "content": [part]}],
            "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
        }  # fmt: skip
        if not body.get("stream"):
            return json_reply(response)
        begun = {"type": "response.created", "response": {**response, "status": "in_progress"}}
        done = {"type": "response.completed", "response": response}
        return stream_reply(event(begun), event(done))


@asynccontextmanager
async def three(**config: Any) -> AsyncIterator[tuple[Service, Sequence[Keeper]]]:
    async with AsyncExitStack() as stack:
        keepers = [await stack.enter_async_context(Keeper(name)) for name in "abc"]
        backends = [
            {"name": one.name, "base_url": one.url, "models": ["m"], "read_timeout": 5}
            for one in keepers
        ]
        given = {"backends": backends, "routing": {"strategy": "round_robin"}, **config}
        yield await stack.enter_async_context(serving(failover=FAILOVER, **given)), keepers


async def respond(service: Service, **body: Any) -> Any:
    return await service.send("POST", "/v1/responses", {"model": "m", "input": "Hi", **body})


def id_of(answer: Any) -> str:
    if answer.headers["Content-Type"].startswith("application/json"):
        return str(answer.body["id"])
    data = [line for line in answer.raw.split(b"\n") if line.startswith(b"data: ")]
    return str(orjson.loads(data[-1].removeprefix(b"data: "))["response"]["id"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_goes_on_where_the_one_before_is(*, stream: bool) -> None:
    async with three() as (service, keepers):
        for first in [await respond(service, stream=stream) for _ in range(3)]:
            last = id_of(first)
            for _ in range(4):
                before = sum(one.calls for one in keepers)
                answer = await respond(service, stream=stream, previous_response_id=last)
                assert answer.status == 200
                assert sum(one.calls for one in keepers) == before + 1  # nobody else is asked
                assert id_of(answer)[0] == last[0]
                last = id_of(answer)
        assert {len(one.kept) for one in keepers} == {5}


async def test_what_is_kept_is_found_and_deleted_where_it_is() -> None:
    async with three() as (service, keepers):
        chat = await service.chat(store=True)
        response = await respond(service)
        for path, one in (("chat/completions", chat), ("responses", response)):
            name = one.body["id"]
            calls = {keeper.name: keeper.calls for keeper in keepers}
            for method in ("GET", "DELETE"):
                found = await service.send(method, f"/v1/{path}/{name}")
                assert (found.status, found.body) == (200, {"by": name[0]})
            asked = {k.name: k.calls - calls[k.name] for k in keepers}
            assert asked == {k.name: 2 * (k.name == name[0]) for k in keepers}


async def test_after_a_restart_the_backends_are_asked_until_one_knows() -> None:
    async with three() as (service, (_, __, last)):
        last.kept |= {"old", "older"}
        answer = await respond(service, previous_response_id="old")
        assert (answer.status, id_of(answer)[0]) == (200, "c")
        assert (await service.send("GET", "/v1/responses/older")).body == {"by": "c"}
        calls = last.calls
        assert (await respond(service, previous_response_id="old")).status == 200
        assert (await service.send("GET", "/v1/responses/older")).status == 200
        assert last.calls == calls + 2


async def test_what_no_backend_knows_is_not_found_and_what_one_may_know_is_no_404() -> None:
    async with three() as (service, (_, __, last)):
        answer = await respond(service, previous_response_id="none")
        assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
        assert (await service.send("GET", "/v1/responses/none")).status == 404
        await last.stop()
        assert (await respond(service, previous_response_id="other")).status in {502, 503}
        assert (await service.send("GET", "/v1/responses/other")).status == 502


async def test_a_fallback_model_is_not_asked_for_what_it_cannot_go_on_from() -> None:
    async with Keeper("a") as large, Keeper("b") as small:
        backends = [
            {"name": "a", "base_url": large.url, "models": ["m"]},
            {"name": "b", "base_url": small.url, "models": ["s"]},
        ]
        async with serving(backends=backends, fallbacks={"m": ["s"]}) as service:
            first = id_of(await respond(service))
            large.otherwise = lambda _: error_reply(503)
            assert (await respond(service, previous_response_id=first)).status == 503
            assert small.calls == 0
            assert (await respond(service)).headers["X-Cache-Fallback"] == "s"
