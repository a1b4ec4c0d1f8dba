"""Warming as operators have it: processes that are killed, several workers, an engine that loads."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import OpenAI

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, chat_body, json_reply
from tests.kit.served import Served, serving

WARM = "/v1/cache/warm"
IN_TIME_S = 60.0


def config(tmp_path: Path, upstream: ScriptedUpstream, **more: Any) -> str:
    """A file; everything is kept on disk."""
    file = tmp_path / "config.yaml"
    tiers = {name: {"store": "disk"} for name in ("hot", "warm", "cold")}
    backend = {"name": "up", "base_url": upstream.url, "models": ["m"]}
    wishes = {
        "backends": [backend],
        "tiers": tiers,
        "store": {"disk_path": str(tmp_path / "kept"), "timeout_ms": 5000},
        **more,
    }
    file.write_text(json.dumps(wishes))
    return str(file)


class Client:
    """Asks a running gateway, on a new connection each time."""

    def __init__(self, served: Served, session: aiohttp.ClientSession) -> None:
        self._url = served.url
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, self._url + path, json=body) as answer:
            return await answer.json()

    async def ended(self, name: str) -> dict[str, Any]:
        """The job at its end."""
        async with asyncio.timeout(IN_TIME_S):
            while True:
                job: dict[str, Any] = await self.ask("GET", f"{WARM}/{name}")
                if job["status"] != "running":
                    return job
                await asyncio.sleep(0.05)


@asynccontextmanager
async def client(served: Served) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(served, session)


async def test_a_job_goes_on_after_a_kill_and_computes_nothing_twice(tmp_path: Path) -> None:
    gate = Gate()
    answer = json_reply(chat_body({"model": "m"}))
    environ = {"KVGATE_TIERS__COLD__STORE": "disk"}
    async with ScriptedUpstream(answer, answer, Reply((gate,))) as upstream:
        file = config(tmp_path, upstream, warm={"concurrency": 1})
        with serving("--config", file, environ=environ) as served:
            async with client(served) as asking:
                questions = [f"{number}?" for number in range(6)]
                job = await asking.ask("POST", WARM, {"questions": questions})
                await gate.reached()
                served.process.kill()
                await asyncio.to_thread(served.process.wait)
        with serving("--config", file, environ=environ) as served:
            async with client(served) as asking:
                ended = await asking.ended(job["id"])
        assert ended["status"] == "done"
        assert [item["status"] for item in ended["items"]] == ["skipped"] * 2 + ["done"] * 4
        assert upstream.calls == 2 + 1 + 4


async def test_every_worker_knows_the_job_and_any_of_them_cancels_it(tmp_path: Path) -> None:
    gate = Gate()
    async with ScriptedUpstream() as upstream:
        upstream.otherwise = lambda _: Reply((gate,))
        file = config(tmp_path, upstream)
        with serving("--config", file, "--workers", "2") as served:
            async with client(served) as asking:
                job = await asking.ask("POST", WARM, {"questions": ["One?", "Two?", "Three?"]})
                await gate.reached()
                workers: set[int] = set()
                async with asyncio.timeout(IN_TIME_S):
                    while len(workers) < 2:
                        workers.add((await asking.ask("GET", "/healthz"))["worker"])
                        seen = await asking.ask("GET", f"{WARM}/{job['id']}")
                        assert seen["counts"]["total"] == 3
                cancelled = await asking.ask("DELETE", f"{WARM}/{job['id']}")
                assert cancelled["status"] == "cancelled"
                async with asyncio.timeout(IN_TIME_S):
                    await asyncio.gather(*(seen.gone.wait() for seen in upstream.seen))
                assert (await asking.ended(job["id"]))["counts"]["done"] == 0


@pytest.mark.model
async def test_what_is_wanted_at_the_start_waits_for_the_engine_and_is_a_hit_then(
    smollm_path: Path,
) -> None:
    system = {"role": "system", "content": "You are a Python programming assistant."}
    pattern = {
        "id": "python_help",
        "base_messages": [system],
        "variations": ["What is a list comprehension?", "What are decorators?"],
        "params": {"max_tokens": 8},
        "on_start": True,
    }
    environ = {
        "KVGATE_ENGINE__MODEL": str(smollm_path),
        "KVGATE_WARM__PATTERNS": json.dumps([pattern]),
    }
    with serving(environ=environ) as served:
        async with client(served) as asking:
            ended = await asking.ended("start-python_help")
            assert ended["counts"]["done"] == 2, ended
        with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as openai:
            answer = openai.chat.completions.create(
                model="deepseek-chat",
                messages=[
                    {"role": "system", "content": system["content"]},
                    {"role": "user", "content": "What are decorators?"},
                ],
                max_tokens=8,
                extra_body={"kv_cache": {"enabled": True}},
            )
            assert (answer.model_extra or {})["cache_hit"] is True
