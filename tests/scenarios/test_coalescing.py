"""Many equal cold calls over two gateways with two workers each and one Redis: one upstream call."""

import asyncio
import json
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit import redis_server
from tests.kit.scripted_upstream import ScriptedUpstream
from tests.kit.served import Served, serving

CALLS = 300
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
BODY = QUESTION | {"kv_cache": {"enabled": True, "tier": "cold"}}
BURSTS = 3


def config(folder: Path, upstream: str, redis: str) -> Path:
    path = folder / "config.yaml"
    wishes: dict[str, Any] = {
        "server": {"workers": 2},
        "backends": [{"name": "up", "base_url": upstream, "models": ["m"]}],
        "store": {"redis_url": redis, "disk_path": str(folder / "store")},
    }
    path.write_text(json.dumps(wishes))
    return path


def start(stack: ExitStack, path: Path) -> Served:
    environ = {"KVGATE_TIERS__COLD__STORE": "redis"}  # tests have it in memory
    return stack.enter_context(serving("--config", str(path), environ=environ))


async def ask(session: aiohttp.ClientSession, url: str, text: str) -> int:
    body = BODY | {"messages": [{"role": "user", "content": text}]}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status


async def test_a_burst_of_equal_cold_calls_over_four_processes_is_one_upstream_call(
    tmp_path: Path,
) -> None:
    with redis_server.running() as redis, ExitStack() as processes:
        async with ScriptedUpstream() as upstream, AsyncExitStack() as sessions:
            path = config(tmp_path, upstream.url, redis.url)
            starting = [asyncio.to_thread(start, processes, path) for _ in range(2)]
            gateways = await asyncio.gather(*starting)
            # a client of its own for each call: connections are spread over the workers
            session = await sessions.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            for burst in range(BURSTS):
                before = upstream.calls
                asking = [
                    ask(session, gateways[number % 2].url, f"{burst}?") for number in range(CALLS)
                ]
                assert set(await asyncio.gather(*asking)) == {200}
                assert upstream.calls == before + 1
            await asyncio.to_thread(processes.close)
