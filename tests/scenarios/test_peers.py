"""In front of llama.cpp's own server: its reuse comes back as ours, and our words stay with us."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.kit.llama_peer import llama_server
from tests.kit.scripted_upstream import CHECK, Seen
from tests.kit.service import Answer, Service, serving

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

MODEL = "smollm"
OPERATORS_KEY, CLIENTS_KEY = "sk-operator-secret", "sk-client-secret"
CACHED = {"enabled": True, "cache_key": "faq:trees", "ttl": 600, "tags": ["trees"]}
SPOKEN = {"X-Cache-Priority": "high", "X-Cache-User": "ann", "X-Cache-Debug": "true"}
RULES = "You answer in a word or two. You never apologise, and you never ask back. " * 3


def messages(subject: str, *turns: str) -> list[dict[str, str]]:
    """A conversation of its own kind, so that no other test's prompt begins like it."""
    roles = ("user", "assistant")
    told = [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return [{"role": "system", "content": f"About {subject}. {RULES}"}, *told]


class Tap:
    """Between the gateway and the peer: passes all on, and keeps what it was asked."""

    def __init__(self, session: aiohttp.ClientSession, onward: str) -> None:
        self._session = session
        self._onward = onward.removesuffix("/v1")
        self.seen: list[Seen] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, streamed back as it comes."""
        raw = await request.read()
        if request.headers.get("User-Agent") != CHECK:
            self.seen.append(Seen(request.method, request.path_qs, request.headers.copy(), raw))
        headers = {name: value for name, value in request.headers.items() if name != "Host"}
        async with self._session.request(
            request.method, self._onward + request.path_qs, data=raw, headers=headers
        ) as answer:
            told = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await told.prepare(request)
            async for piece in answer.content.iter_any():
                await told.write(piece)
            await told.write_eof()
            return told


@pytest.fixture(scope="module")
def peer(smollm_path: Path) -> Iterator[str]:
    with llama_server(smollm_path, OPERATORS_KEY) as url:
        yield url


@asynccontextmanager
async def before(peer: str, **config: Any) -> AsyncIterator[tuple[Service, Tap]]:
    """A gateway with the peer behind it and the tap between."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        tap = Tap(session, peer)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", tap.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            backend = {
                "name": "llama",
                "base_url": f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
                "api_key": OPERATORS_KEY,
                "dialect": "llamacpp",
                "models": [MODEL],
            }
            async with serving(backends=[backend], **config) as service:
                yield service, tap
        finally:
            await runner.cleanup()


async def ask(service: Service, told: list[dict[str, str]], **more: Any) -> Answer:
    """One turn, as a client speaks that wants all that we offer."""
    body = {"messages": told, "max_tokens": 8, "temperature": 0, **more}
    key = body.pop("key", CLIENTS_KEY)
    answer = await service.chat(CACHED, key=key, headers=SPOKEN, model=MODEL, **body)
    assert answer.status == 200, answer.raw
    return answer


def hit_tokens(usage: dict[str, Any]) -> int:
    """Prompt tokens that were not computed, said in both ways."""
    hit: int = usage["prompt_cache_hit_tokens"]
    assert hit == usage["prompt_tokens_details"]["cached_tokens"]
    assert hit + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
    return hit


async def test_what_the_peer_reuses_of_a_conversation_comes_back_as_ours(peer: str) -> None:
    async with before(peer) as (service, _):
        told = messages("trees", "Name a tree.")
        first = await ask(service, told)
        assert first.headers["X-Cache-Level"] == "none"
        assert hit_tokens(first.body["usage"]) < 10  # the template's first words at most

        told = messages("trees", "Name a tree.", first.text, "Name another.")
        second = await ask(service, told)
        known = first.body["usage"]["prompt_tokens"]
        assert second.headers["X-Cache-Level"] == "prefix"
        assert second.headers["X-Cache-Hit"] == "true"
        assert known - 5 <= hit_tokens(second.body["usage"]) < second.body["usage"]["prompt_tokens"]
        assert second.body["cache_hit"] is True

        told = messages("trees", "Name a tree.", first.text, "Name another.", second.text, "More.")
        third = await ask(service, told, stream=True, stream_options={"include_usage": True})
        assert third.text
        assert hit_tokens(third.chunks[-1]["usage"]) > hit_tokens(second.body["usage"])


async def test_what_was_answered_once_is_not_asked_again_plain_or_streamed(peer: str) -> None:
    async with before(peer) as (service, tap):
        told = messages("rivers", "Name a river.")
        streamed = await ask(service, told, stream=True)
        await service.settled()
        again = [await ask(service, told), await ask(service, told, stream=True)]
        assert len(tap.seen) == 1
        for answer in again:
            assert answer.headers["X-Cache-Level"] == "response"
            assert answer.text == streamed.text


@pytest.mark.parametrize("stream", [False, True])
async def test_no_word_of_ours_and_no_clients_key_reaches_the_peer(
    peer: str, *, stream: bool
) -> None:
    async with before(peer) as (service, tap):
        odd = {"stop": ["\n\n"], "min_p": 0.05, "unheard_of": {"nested": [1, None]}}
        told = messages("lakes", "Name a lake.")
        await ask(service, told, stream=stream, user="ann", **odd)
    (seen,) = tap.seen
    assert seen.headers["Authorization"] == f"Bearer {OPERATORS_KEY}"
    assert not [name for name in seen.headers if name.lower().startswith("x-cache")]
    assert CLIENTS_KEY.encode() not in seen.raw + repr(seen.headers).encode()
    ours = {"cache_prompt": True, "stream_options": {"include_usage": True}}
    if not stream:
        del ours["stream_options"]
    asked = {"max_tokens": 8, "temperature": 0, "stream": stream, "user": "ann"}
    assert seen.body == {"model": MODEL, "messages": told, **asked, **odd, **ours}


async def test_a_peer_without_salts_reuses_nothing_where_two_tenants_ask(peer: str) -> None:
    tenants = [{"name": name, "api_keys": [f"sk-{name}"]} for name in ("acme", "beta")]
    async with before(peer, tenants=tenants) as (service, tap):
        for name in ("acme", "beta"):
            body: dict[str, Any] = {"messages": messages("seas", "Name a sea.")}
            answer = await service.chat(CACHED, key=f"sk-{name}", model=MODEL, max_tokens=2, **body)
            assert answer.headers["X-Cache-Level"] == "none"
            assert hit_tokens(answer.body["usage"]) == 0
    assert [seen.body["cache_prompt"] for seen in tap.seen] == [False, False]


async def test_its_responses_are_kept_too_plain_and_as_events(peer: str) -> None:
    async with before(peer) as (service, tap):
        body: dict[str, Any] = {
            "model": MODEL,
            "instructions": f"About hills. {RULES}",
            "input": "Name a hill.",
            "max_output_tokens": 64,
            "temperature": 0,
            "kv_cache": CACHED,
        }
        first = await service.send("POST", "/v1/responses", body, key=CLIENTS_KEY)
        assert (first.status, first.body["status"]) == (200, "completed"), first.raw
        again = await service.send("POST", "/v1/responses", body, key=CLIENTS_KEY)
        assert again.headers["X-Cache-Level"] == "response"
        assert again.body["output"] == first.body["output"]
        events = await service.send("POST", "/v1/responses", {**body, "stream": True})
        assert b"response.completed" in events.raw
        assert len(tap.seen) == 1
        assert "kv_cache" not in tap.seen[0].body
        assert tap.seen[0].body["cache_prompt"] is True
