"""``kvgate explain``: for people in lines, for programs as JSON, offline from a configuration."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from gateway.cli_explain import lines
from tests.kit.service import QUESTION, serving
from tests.kit.threads import command

BODY: dict[str, Any] = {"model": "m", "messages": QUESTION, "kv_cache": {"enabled": True}}


@pytest.fixture(autouse=True)
def quiet_gateway() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(BODY))
    return str(file)


async def test_a_call_is_explained_before_and_after_it_was_made(request_file: str) -> None:
    async with serving() as service:
        done = await command("explain", request_file, "--url", service.url)
        assert done.exit_code == 0, done.output
        said = done.stdout.splitlines()
        assert said[0] == "would be   computed by up"
        assert said[1] == "because    cold: nothing like it was stored, as far as is remembered"
        await service.chat(BODY["kv_cache"])
        done = await command("explain", "-", "--url", service.url, stdin=json.dumps(BODY))
        said = done.stdout.splitlines()
        assert said[0] == "would be   answered from the store"
        assert said[1] == "stored     warm, 0s old, 30m left, 13 tokens"
        assert f"plan       chat, model m, key {await key(service)}" in said
        assert said[-1] == "backend    up (up), model m"


async def key(service: Any) -> str:
    found: str = (await service.send("GET", "/v1/cache/entries")).body["data"][0]["key"]
    return found


async def test_headers_are_those_of_the_call(request_file: str) -> None:
    async with serving() as service:
        words = ("-H", "X-Cache-TTL: 60", "--header", "x-cache-tier:hot", "--json")
        done = await command("explain", request_file, "--url", service.url, *words)
        plan = json.loads(done.stdout)["plan"]
        assert (plan["ttl_s"], plan["tier"]) == (60.0, "hot")
        assert ["ttl_s", "60", "header X-Cache-TTL"] in [list(r.values()) for r in plan["reasons"]]


async def test_the_environment_names_gateway_and_key(request_file: str) -> None:
    secret = "kv-alice-3f1c7a90b2d84e65"
    async with serving(tenants=[{"name": "a", "api_keys": [secret]}]) as service:
        environ = {"KVGATE_URL": service.url, "KVGATE_API_KEY": secret}
        assert (await command("explain", request_file, **environ)).exit_code == 0
        done = await command("explain", request_file, KVGATE_URL=service.url)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("body", "words", "code", "said"),
    [
        ({**BODY, "model": "gone"}, (), 1, "does not exist here"),
        ({**BODY, "kv_cache": {"ttl": -1}}, (), 1, "kv_cache.ttl"),
        (BODY, ("-H", "X-Cache-TTL"), 2, "must be a name, a colon and a value"),
        (BODY, ("-H", "X: a\nY: b"), 2, "must be a name, a colon and a value"),
        (BODY, ("--endpoint", "chats"), 1, "endpoint must be one of"),
    ],
)
async def test_what_cannot_be_is_one_line(
    body: Any, words: tuple[str, ...], code: int, said: str
) -> None:
    async with serving() as service:
        done = await command(
            "explain", "-", "--url", service.url, *words, stdin=orjson.dumps(body).decode()
        )
        assert (done.exit_code, done.stderr.count("\n")) == (code, 1)
        assert said in done.stderr
        assert done.stdout == ""


async def test_a_file_that_is_not_there_is_one_line() -> None:
    done = await command("explain", "/nonexistent.json")
    assert done.exit_code == 2
    assert done.stderr == "kvgate: /nonexistent.json: No such file or directory\n"


async def test_offline_it_asks_nobody(request_file: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "backends: [{name: up, base_url: 'http://127.0.0.1:9/v1', models: [m]}]\n"
        "tiers: {warm: {ttl: 77}}\n"
    )
    words = ("--offline", "--config", str(config), "--url", "http://127.0.0.1:9")
    done = await command("explain", request_file, *words)
    assert done.exit_code == 0, done.output
    assert "tier warm, ttl 77 s" in done.stdout
    assert "would be" not in done.stdout
    assert "backend    " not in done.stdout
    config.write_text("server: {prot: 1}")
    done = await command("explain", request_file, *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_everything_that_can_be_told_has_its_line() -> None:
    plan = {
        "key": "k", "read": False, "store": False, "tier": "hot", "ttl_s": 60.0, "priority": "low",
        "lane": "batch", "reasons": [], "unknown": ["X-Cache-Odd"],
    }  # fmt: skip
    response = {
        "served": True, "tier": "hot", "age_s": 70.0, "ttl_left_s": -10.0, "tokens": 5,
        "miss_reason": None, "difference": None,
    }  # fmt: skip
    told = {
        "verdict": "stale", "endpoint": "chat", "model": "m", "plan": plan, "response": response,
        "kv": {
            "backend": "eng", "tokens": 1000, "hit_tokens": 96,
            "tiers": {"hot": 32, "warm": 64, "cold": 0},
            "missed": {"reason": "evicted", "at_token": 96, "cause": "capacity", "ago_s": 70.0},
        },
        "inputs": {"different": 3, "states": {"fresh": 2, "absent": 1}},
        "backends": [
            {"backend": "eng", "state": "up", "model": "m"},
            {"backend": "spare", "state": "down", "model": "n"},
        ],
    }  # fmt: skip
    assert list(lines(told)) == [
        "would be   answered from the store with a stale answer, which is computed anew meanwhile",
        "stored     hot, 1m 10s old, expired 10s ago, 5 tokens",
        "inputs     3 different: 2 fresh, 1 absent",
        "plan       chat, model m, key k",
        "           reads not, stores not; tier hot, ttl 60 s, priority low, lane batch",
        "unknown    X-Cache-Odd",
        "KV         eng would reuse 96 of the prompt's 1,000 tokens (hot 32, warm 64)",
        "           no more: evicted from token 96 on (capacity, 1m 10s ago)",
        "backend    eng (up), model m",
        "  then     spare (down), model n",
    ]
