"""What backends keep of a tenant's prompts is found again after a restart of kvgate, and by its other gateways."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.kit import redis_server
from tests.kit.scripted_upstream import ScriptedUpstream
from tests.kit.served import Served, serving
from tests.kit.tiny_model import TinyLlama

STORY = "The keeper wrote down the wind, the tide and the ships. "
QUESTION = {
    "model": "default",
    "messages": [{"role": "user", "content": STORY * 8}],
    "max_tokens": 1,
    "temperature": 0,
    "kv_cache": {"debug": True},
}


def asked(served: Served, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{served.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_engines_disk_tier_is_found_after_a_restart_of_the_gateway(
    tmp_path: Path, workers: int
) -> None:
    environ = {
        "KVGATE_ENGINE__MODEL": str(TinyLlama().write(tmp_path / "model")),
        "KVGATE_ENGINE__KERNELS": "torch",
        "KVGATE_ENGINE__THREADS": "1",
        "KVGATE_ENGINE__KV_MEMORY": "16MiB",
        "KVGATE_ENGINE__KV_DISK__PATH": str(tmp_path / "kv"),
        "KVGATE_CACHE_DIR": str(tmp_path / "cache"),
    }
    for start in (1, 2):
        with serving(f"--workers={workers}", environ=environ) as served:
            receipt = asked(served, QUESTION)["kv_receipt"]
            if start == 1:
                assert receipt["missed"]["reason"] == "never_seen"
                assert receipt["computed"] >= 8 * 32
            else:  # so short a prompt may be computed sooner than it is read
                found = receipt["cold"] >= 8 * 32 or receipt["missed"]["reason"] == "declined"
                assert found, receipt
            assert served.interrupt() == 0


def named_by_two_starts_and_another_gateway(folder: Path, url: str, redis: str) -> None:
    """One call of each: of a gateway, of the same one after a restart, of another one."""
    makes = ("vllm", "deepseek", "openai")
    backends = [
        {"name": make, "dialect": make, "base_url": url, "models": [make]} for make in makes
    ]
    environ = {"KVGATE_BACKENDS": json.dumps(backends), "KVGATE_STORE__REDIS_URL": redis}
    for disk in ("here", "here", "there"):
        environ["KVGATE_STORE__DISK_PATH"] = str(folder / disk)
        with serving(environ=environ) as served:
            for make in makes:
                asked(served, QUESTION | {"model": make, "kv_cache": {"cache_key": "story"}})


async def test_other_servers_hear_the_same_names_from_each_start_and_gateway(
    tmp_path: Path,
) -> None:
    with redis_server.running() as redis:
        async with ScriptedUpstream() as upstream:
            await asyncio.to_thread(
                named_by_two_starts_and_another_gateway, tmp_path, upstream.url, redis.url
            )
    bodies = [seen.body for seen in upstream.seen if seen.method == "POST"]
    for make, field in [
        ("vllm", "cache_salt"), ("deepseek", "user_id"), ("openai", "prompt_cache_key"),
    ]:  # fmt: skip
        names = [body[field] for body in bodies if body["model"] == make]
        assert len(names) == 3
        assert len(set(names)) == 1, make
