"""The scripted upstream is a real server and does what its script says."""

import asyncio
from contextlib import nullcontext
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    DONE,
    Cut,
    Reply,
    ScriptedUpstream,
    error_reply,
    event,
    json_reply,
    stream_reply,
)

ASKED = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


async def post(upstream: ScriptedUpstream, **body: object) -> tuple[int, str, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{upstream.url}/chat/completions", json={**ASKED, **body}) as response,
    ):
        return response.status, response.headers["Content-Type"], await response.read()


async def test_it_answers_as_asked_when_no_script_is_left() -> None:
    async with ScriptedUpstream() as upstream:
        status, kind, raw = await post(upstream)
        assert (status, kind) == (200, "application/json")
        assert b'"You asked well."' in raw
        status, kind, raw = await post(upstream, stream=True)
        assert kind.startswith("text/event-stream")
        assert raw.endswith(DONE)
        assert b"usage" not in raw
        _, _, raw = await post(upstream, stream=True, stream_options={"include_usage": True})
        assert raw.count(b'"usage": null') == raw.count(b"data: ") - 2
        assert upstream.calls == 3


async def test_it_keeps_what_it_saw() -> None:
    async with ScriptedUpstream(json_reply({}), error_reply(429)) as upstream:
        await post(upstream, extra=1)
        assert upstream.seen[0].path == "/v1/chat/completions"
        assert upstream.seen[0].body == {**ASKED, "extra": 1}
        assert upstream.seen[0].headers["Content-Type"] == "application/json"
        assert (await post(upstream))[0] == 429


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_cut_breaks_the_body_off(cut: Cut) -> None:
    async with ScriptedUpstream(stream_reply(event({}), cut)) as upstream:
        with pytest.raises(aiohttp.ClientError):
            await post(upstream)


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_cut_may_come_before_the_head(cut: Cut) -> None:
    async with ScriptedUpstream(Reply((cut,))) as upstream:
        with pytest.raises(aiohttp.ClientError):
            await post(upstream)


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_reset_is_a_reset_and_an_orderly_end_is_none(cut: Cut) -> None:
    async with ScriptedUpstream(stream_reply(event({}), cut)) as upstream:
        url = urlsplit(upstream.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError) if cut == "rst" else nullcontext():
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


async def test_it_sees_that_the_client_went_away() -> None:
    gate = Gate()
    async with ScriptedUpstream(stream_reply(event({}), gate)) as upstream:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{upstream.url}/chat/completions", json=ASKED),
        ):
            await gate.reached()
        await upstream.seen[0].gone.wait()


async def test_a_number_is_waited_for() -> None:
    reply = Reply((b"a", 0.02, b"b"))
    async with ScriptedUpstream(reply) as upstream:
        began_s = asyncio.get_running_loop().time()
        assert (await post(upstream))[2] == b"ab"
        assert asyncio.get_running_loop().time() - began_s >= 0.02
