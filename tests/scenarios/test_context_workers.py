"""Shared contexts with several workers: what one of them is told holds in the others with the next call."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.scripted_upstream import ScriptedUpstream
from tests.kit.served import Served, serving

BASE = "You are an expert code reviewer."
QUESTION = {"role": "user", "content": "Please review this."}
PATH = "/v1/cache/contexts/team"
ANN, BOB = {"X-Cache-User": "ann"}, {"X-Cache-User": "bob"}
IN_TIME_S = 60.0


class Workers:
    """A client for each of two workers."""

    def __init__(self, url: str, clients: dict[int, aiohttp.ClientSession]) -> None:
        self._url = url
        self._clients = clients
        self.uses: Counter[str] = Counter()

    async def send(
        self, worker: int, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, str]:
        """Status, JSON, and the cache level if there is one."""
        url = self._url + path
        async with self._clients[worker].request(method, url, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers.get("X-Cache-Level", "")

    async def put(self, worker: int, *users: str) -> None:
        body = {"base_prompt": BASE, "allowed_users": users}
        status, answer, _ = await self.send(worker, "PUT", PATH, body)
        assert status in {200, 201}, answer

    async def named(self, worker: int, user: dict[str, str]) -> str:
        """What became of a call that leaves the base prompt to the gateway."""
        wish = {"enabled": True, "shared_context": "team"}
        return await self._chat(worker, {"messages": [QUESTION], "kv_cache": wish}, user)

    async def by_id(self, worker: int, user: dict[str, str]) -> str:
        """What became of a call that brings the base prompt and names the context by its ID."""
        messages = [{"role": "system", "content": BASE}, QUESTION]
        wish = {"enabled": True, "cache_key": "team"}
        return await self._chat(worker, {"messages": messages, "kv_cache": wish}, user)

    async def _chat(self, worker: int, body: dict[str, Any], user: dict[str, str]) -> str:
        path = "/v1/chat/completions"
        status, answer, level = await self.send(
            worker, "POST", path, {"model": "m", **body}, **user
        )
        if status != 200:
            return str(answer["error"]["code"])
        self.uses[user["X-Cache-User"]] += 1
        return level

    async def shares(self, worker: int, user: dict[str, str]) -> None:
        """The answer is stored behind its first reader's back: it is there before long."""
        async with asyncio.timeout(IN_TIME_S):
            while (level := await self.named(worker, user)) != "response":
                assert level == "none"

    async def counted(self, worker: int) -> None:
        """So are the uses."""
        async with asyncio.timeout(IN_TIME_S):
            while True:
                _, shown, _ = await self.send(worker, "GET", PATH)
                if shown["usage"]["users"] == self.uses:
                    return
                assert shown["usage"]["total"] < self.uses.total()


async def meet(served: Served, sessions: AsyncExitStack) -> Workers:
    clients: dict[int, aiohttp.ClientSession] = {}
    async with asyncio.timeout(IN_TIME_S):
        while len(clients) < 2:
            connector = aiohttp.TCPConnector(limit=1)
            session = await sessions.enter_async_context(aiohttp.ClientSession(connector=connector))
            async with session.get(f"{served.url}/healthz") as answer:
                clients.setdefault((await answer.json())["worker"], session)
    return Workers(served.url, clients)


@asynccontextmanager
async def two_workers(folder: Path) -> AsyncIterator[Workers]:
    async with ScriptedUpstream() as upstream, AsyncExitStack() as sessions:
        config = {
            "backends": [{"name": "up", "base_url": upstream.url, "models": ["m"]}],
            # on a busy machine a disk may be late: that is another story
            "store": {"disk_path": str(folder / "store"), "timeout_ms": 10_000},
            "tiers": {"warm": {"store": "disk"}, "cold": {"store": "disk"}},
        }
        file = folder / "config.yaml"
        file.write_text(json.dumps(config))
        stack = ExitStack()
        served = await asyncio.to_thread(
            stack.enter_context, serving("--config", str(file), "--workers", "2")
        )
        try:
            yield await meet(served, sessions)
        finally:
            await asyncio.to_thread(stack.close)


async def test_a_context_made_changed_and_revoked_at_one_worker_is_so_at_the_other(
    tmp_path: Path,
) -> None:
    async with two_workers(tmp_path) as workers:
        one, two = 1, 2
        await workers.put(one, "ann")
        assert await workers.by_id(two, BOB) == "context_forbidden"
        assert await workers.by_id(two, ANN) == "none"
        await workers.put(one, "ann", "bob")
        await workers.shares(two, BOB)
        await workers.shares(one, BOB)
        await workers.put(two, "ann")
        assert await workers.named(one, BOB) == "context_forbidden"
        assert await workers.by_id(one, BOB) == "context_forbidden"
        assert await workers.named(one, ANN) == "response"
        await workers.counted(two)
        status, answer, _ = await workers.send(two, "DELETE", PATH)
        assert (status, answer["entries"]) == (200, 1)
        assert await workers.named(one, ANN) == "context_not_found"
        await workers.put(two, "bob")
        assert await workers.named(one, BOB) == "none"
        assert await workers.named(one, ANN) == "context_forbidden"
