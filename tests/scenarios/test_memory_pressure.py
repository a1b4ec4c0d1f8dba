"""In a small control group the shipped sizes make room for others in time: the kernel ends no kvgate."""

import asyncio
import json
import urllib.request
from pathlib import Path

from tests.kit.control_group import limited_to
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, Seen, json_reply
from tests.kit.served import Served, serving

GROUP_BYTES = 200 * 2**20
ANSWER_BYTES = 1_000_000
ANSWERS = 250  # more than the group could ever hold


def large(_: Seen) -> Reply:
    message = {"role": "assistant", "content": "x" * ANSWER_BYTES}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json_reply({"object": "chat.completion", "choices": [choice]})


def ask(served: Served, number: int) -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "kv_cache": {"enabled": True, "tier": ("hot", "warm")[number % 2]},
    }
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert len(answer.read()) > ANSWER_BYTES


def filled(url: str, folder: Path) -> None:
    backend = {"name": "up", "base_url": url, "models": ["m"]}
    environ = {
        "KVGATE_BACKENDS": json.dumps([backend]),
        "KVGATE_TIERS__COLD__STORE": "disk",
        "KVGATE_STORE__DISK_PATH": str(folder),
    }
    with (
        limited_to(GROUP_BYTES) as before,
        serving(environ=environ, before=before) as served,
    ):
        (line,) = [line for line in served.lines if str(line["event"]).startswith("default sizes")]
        assert (line["memory"], line["tiers.hot"], line["tiers.warm"]) == (
            "200MiB",
            "25MiB",
            "25MiB",
        )
        for number in range(ANSWERS):
            ask(served, number)
        status, stats = served.get("/v1/cache/stats")
        assert status == 200
        for tier in ("hot", "warm"):
            assert 20 * 2**20 < stats["tiers"][tier]["size_bytes"] <= 25 * 2**20
        assert served.interrupt() == 0


async def test_the_default_tiers_fill_up_in_200_mib_and_kvgate_serves_on(tmp_path: Path) -> None:
    upstream = ScriptedUpstream()
    upstream.otherwise = large
    async with upstream:
        await asyncio.to_thread(filled, upstream.url, tmp_path)
