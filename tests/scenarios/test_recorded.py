"""Recorded OpenAI traffic as the upstream: what of it reaches the client, and what a hit repeats.

On a miss an answer is the recorded one, member for member and in the same order, with what section 4
of the wire contract adds (``cache_hit`` and the figures of reuse in ``usage``) and without the
white space that OpenAI's pretty printer put in: taking the one away and squeezing the other, the
bytes are the same. A refusal has nothing added. On a hit the content is the same, under a new ``id`` and
``created``.
"""

import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.chunks import Chunk, fold
from tests.kit.recorded import Exchange, exchanges, fetched
from tests.kit.service import DONE, Answer, Service, serving

ADDED_TO_USAGE = ("prompt_cache_hit_tokens", "prompt_cache_miss_tokens")


@pytest.fixture(scope="module")
def recorded() -> list[Exchange]:
    try:
        distribution = fetched(Path.home() / ".cache" / "kvgate-tests")
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    return exchanges(distribution)


async def ask(service: Service, exchange: Exchange) -> Answer:
    body = {**exchange.request, "kv_cache": True}
    return await service.send("POST", exchange.path, body)


def squeezed(raw: bytes) -> bytes:
    return orjson.dumps(orjson.loads(raw))


def without_ours(raw: bytes, original: bytes) -> bytes:
    """The answer without what section 4 adds."""
    body, given = orjson.loads(raw), orjson.loads(original)
    body.pop("cache_hit", None)
    usage = body.get("usage")
    if isinstance(usage, dict):
        for name in ADDED_TO_USAGE:
            usage.pop(name)
        if "prompt_tokens_details" not in given["usage"]:
            assert usage.pop("prompt_tokens_details") == {"cached_tokens": 0}
    return orjson.dumps(body)


def events_of(raw: bytes) -> list[bytes]:
    return [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event.strip()]


def content_of(body: dict[str, Any]) -> dict[str, Any]:
    """What is left of an answer without what every answer has of its own."""
    kept = {name: value for name, value in body.items() if name not in {"id", "created"}}
    return {**kept, "usage": None, "cache_hit": None}


async def test_on_a_miss_the_bytes_are_the_recorded_ones_but_for_what_is_ours(
    recorded: list[Exchange],
) -> None:
    seen = {"streams": 0, "plain": 0, "refusals": 0}
    async with serving(models=("*",)) as service:
        for exchange in recorded:
            service.upstream.replies = [exchange.reply()]
            answer = await service.send("POST", exchange.path, exchange.request)
            sent = service.upstream.seen[-1]
            assert orjson.loads(sent.raw) == exchange.request, exchange.name
            assert answer.status == exchange.status, exchange.name
            told = {name.lower(): value for name, value in answer.headers.items()}
            for name, value in exchange.headers.items():
                ours = "x-upstream-request-id" if name == "x-request-id" else name
                assert told[ours] == value, exchange.name
            if exchange.status != 200:
                assert answer.raw == squeezed(exchange.raw), exchange.name
                seen["refusals"] += 1
            elif exchange.stream:
                got, given = answer.events, events_of(exchange.raw)
                assert got.pop() == given.pop() == DONE
                shown = [without_ours(*pair) for pair in zip(got, given, strict=True)]
                assert shown == given, exchange.name
                seen["streams"] += 1
            else:
                assert without_ours(answer.raw, exchange.raw) == squeezed(exchange.raw)
                seen["plain"] += 1
    assert all(count >= 2 for count in seen.values()), seen


async def test_on_a_hit_the_content_is_the_recorded_one(recorded: list[Exchange]) -> None:
    for exchange in recorded:
        async with serving(models=("*",)) as service:
            service.upstream.replies = [exchange.reply()]
            await ask(service, exchange)
            await service.settled()
            answer = await ask(service, exchange)
            assert service.upstream.calls == 1, exchange.name
            assert answer.status == exchange.status
            if exchange.status != 200:
                assert answer.headers["X-Cache-Level"] == "negative"
                assert answer.raw == squeezed(exchange.raw), exchange.name
                continue
            assert answer.headers["X-Cache-Level"] == "response", exchange.name
            if exchange.stream:
                *given, _ = events_of(exchange.raw)
                original = fold(Chunk(orjson.loads(event)) for event in given)
                replayed = fold(Chunk(chunk) for chunk in answer.chunks)
                assert content_of(replayed) == content_of(original), exchange.name
            else:
                original = orjson.loads(exchange.raw)
                assert content_of(answer.body) == content_of(original), exchange.name
                assert answer.body["usage"].items() >= original["usage"].items()
