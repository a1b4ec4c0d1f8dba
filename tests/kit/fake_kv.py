"""A server that answers chats and ``/kv/lookup`` as the bundled engine does, without a model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway import sse
from tests.kit.scripted_backend import delta


@dataclass
class FakeKv:
    """``asked`` are the look-ups; ``status`` what they are answered with; ``heads`` of the chats."""

    tokens: int
    hit_tokens: int
    url: str = ""
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)

    async def _lookup(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        said: dict[str, Any] = {"tokens": self.tokens, "hit_tokens": self.hit_tokens}
        said["tiers"] = {"hot": self.hit_tokens}
        said["missed"] = {"reason": "diverged", "at_token": self.hit_tokens}
        return web.json_response(said, status=self.status)

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats, status=self.status)

    async def _chat(self, request: web.Request) -> web.Response:
        await request.read()
        self.heads.append(dict(request.headers))
        usage = {"prompt_tokens": self.tokens, "completion_tokens": 1}
        events = (delta("Hi."), delta(finish="stop"))
        data = b"".join(sse.encode(event.data) for event in events)
        data += sse.encode({**delta().data, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"
        return web.Response(body=data, content_type="text/event-stream")


@asynccontextmanager
async def fake_kv_engine(*, tokens: int = 40, hit_tokens: int = 0) -> AsyncIterator[FakeKv]:
    """One, on a free port of this machine."""
    fake = FakeKv(tokens, hit_tokens)
    app = web.Application()
    app.router.add_post("/kv/lookup", fake._lookup)
    app.router.add_get("/kv/stats", fake._stats)
    app.router.add_post("/v1/chat/completions", fake._chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield fake
    finally:
        await runner.cleanup()
