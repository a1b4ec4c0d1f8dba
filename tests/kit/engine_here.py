"""The real engine with a tiny model on a real socket, in this process: so that a test can look inside."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from engine.config import EngineConfig
from engine.loading import make_service
from engine.server import Slot, make_app
from engine.service import Service as EngineService

BLOCK = 16


@dataclass(frozen=True)
class EngineHere:
    """A running engine, its address, and a client of it."""

    url: str
    service: EngineService
    session: aiohttp.ClientSession

    @property
    def backend(self) -> dict[str, Any]:
        """It as a backend in the gateway's configuration."""
        return {"name": "here", "base_url": f"{self.url}/v1", "dialect": "kvgate", "models": ["m"]}

    async def chat(self, content: str, **body: Any) -> Any:
        """A greedy answer of four tokens with its log-probabilities, and all that comes with it."""
        messages = [{"role": "user", "content": content}]
        asked = {"messages": messages, "max_tokens": 4, "temperature": 0, "logprobs": True, **body}
        async with self.session.post(f"{self.url}/v1/chat/completions", json=asked) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def kv(self, route: str, **body: Any) -> Any:
        """The answer of a /kv route."""
        async with self.session.post(f"{self.url}/kv/{route}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def stats(self) -> Any:
        """What it says of itself."""
        async with self.session.get(f"{self.url}/kv/stats") as response:
            return await response.json()


@asynccontextmanager
async def engine_here(
    folder: Path, *, draw: Callable[[], float] = lambda: 1.0, **options: Any
) -> AsyncIterator[EngineHere]:
    """Serve the model in `folder` (`tests.kit.tiny_model`) until the block ends; nothing may be held then."""
    asked = {"dtype": "float32", "block_tokens": BLOCK, "chunk_tokens": 64, "kv_memory": 1 << 22}
    config = EngineConfig(model=str(folder), served_name="m", threads=1, **{**asked, **options})
    service = make_service(config, wall_clock=time.time, on_fatal=pytest.fail, draw=draw)
    service.engine.start()
    runner = web.AppRunner(make_app(Slot(service)), handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            yield EngineHere(url, service, session)
        await service.engine.ask(lambda scheduler: scheduler.check_integrity())
    finally:
        service.engine.close()
        await runner.cleanup()
