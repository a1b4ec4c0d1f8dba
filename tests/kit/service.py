"""The whole gateway on a real socket, in front of a scripted upstream, under a scripted clock.

Built by the gateway's own composition root; nothing in it is replaced but time and chance.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDictProxy
from openai import AsyncOpenAI

from gateway.app import GATEWAY, Gateway, build
from gateway.config import Config
from gateway.config_sources import overlay
from gateway.http_server import JsonErrorRunner
from tests.kit.clock import Clock
from tests.kit.scripted_upstream import ScriptedUpstream

QUESTION: list[Any] = [{"role": "user", "content": "What is asked?"}]
DONE = b"[DONE]"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; it must have all four members."""
        error: dict[str, Any] = self.body["error"]
        assert error.keys() >= {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[bytes]:
        """The data of the stream's events, without its comments."""
        return [
            event.removeprefix(b"data: ")
            for event in self.raw.split(b"\n\n")
            if event.strip() and not event.startswith(b":")
        ]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON events of a stream that must end in ``[DONE]``."""
        *events, last = self.events
        assert last == DONE
        return [orjson.loads(event) for event in events]

    @property
    def text(self) -> str:
        """The content of the first choice, streamed or not."""
        if self.headers["Content-Type"].startswith("text/event-stream"):
            choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
            return "".join(
                choice["delta"].get("content") or "" for choice in choices if choice["index"] == 0
            )
        text: str = self.body["choices"][0]["message"]["content"]
        return text


@dataclass(frozen=True)
class Service:
    """A running gateway, its upstream and its clock."""

    url: str
    gateway: Gateway
    upstream: ScriptedUpstream
    clock: Clock
    session: aiohttp.ClientSession
    log: io.StringIO

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request; ``body`` as JSON, or bytes as they are."""
        data = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        async with self.session.request(
            method, self.url + path, data=data, headers=sent
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def chat(
        self,
        kv_cache: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> Answer:
        """A chat request."""
        body = {"model": "m", "messages": QUESTION, **body}
        if kv_cache is not None:
            body["kv_cache"] = kv_cache
        return await self.send("POST", "/v1/chat/completions", body, key=key, headers=headers)

    @asynccontextmanager
    async def openai(self, key: str = "unused") -> AsyncIterator[AsyncOpenAI]:
        """The SDK, with its base URL changed and nothing else, but no retries."""
        async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0) as client:
            yield client

    async def readers(self, count: int) -> None:
        """Wait until ``count`` requests read along with flights."""
        flights = self.gateway.flights
        while sum(flight.readers for flight in flights._by_key.values()) != count:  # noqa: ASYNC110 - turns of the loop, not time: a flight has nothing to wait on
            await asyncio.sleep(0)

    async def settled(self) -> None:
        """Wait until nothing is in the air: what had to be stored is stored, counted and logged."""
        await asyncio.gather(*self.gateway.tasks._running, return_exceptions=True)
        self.gateway.journal.settle()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was logged about requests, if the log is JSON."""
        self.gateway.journal.settle()
        return [orjson.loads(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def serving(
    *,
    upstream: ScriptedUpstream | None = None,
    draw: float = 0.0,
    read_timeout: float = 30.0,
    models: tuple[str, ...] = ("m",),
    max_concurrency: int | None = None,
    max_waiting: int = 512,
    scripted_durations: bool = False,
    span_exporter: Any = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **config: Any,
) -> AsyncIterator[Service]:
    """A gateway in front of ``upstream`` (a well-behaved one if none is given).

    With ``scripted_durations`` answers take the time that the clock is advanced meanwhile, and no
    other.
    """
    clock = Clock()
    async with upstream or ScriptedUpstream() as running:
        backend = {
            "name": "up",
            "base_url": running.url,
            "models": models,
            "api_key": "sk-operator-secret",
            "read_timeout": read_timeout,
            "max_concurrency": max_concurrency,
            "max_waiting": max_waiting,
        }
        server = {"log_format": "json"}
        tiers = {"cold": {"store": "memory"}}  # who tests the disk gives a folder and says so
        # A script says what becomes of each call; who tests what is tried anew says so.
        failover = {"retries": 0, "breaker_failures": 0}
        given = {"backends": [backend], "server": server, "tiers": tiers, "failover": failover}
        wishes = Config.model_validate(overlay(given, config))
        log = io.StringIO()
        app = await build(
            wishes,
            now=clock.now,
            draw=lambda: draw,
            clock=clock.monotonic if scripted_durations else time.monotonic,
            log_stream=log,
            span_exporter=span_exporter,
            sleep=sleep,
        )
        runner = JsonErrorRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Service(url, app[GATEWAY], running, clock, session, log)
        finally:
            await runner.cleanup()
