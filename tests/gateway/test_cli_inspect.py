"""``kvgate inspect``: an entry by its key, its first digits or its name."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway.cli_inspect import span, told
from tests.kit.service import Service, serving
from tests.kit.threads import command


@pytest.fixture(autouse=True)
def quiet_gateway() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


async def stored(service: Service, text: str = "Why?", **wish: Any) -> str:
    messages = [{"role": "user", "content": text}]
    answer = await service.chat({"enabled": True, **wish}, messages=messages)
    await service.settled()
    return answer.headers["X-Cache-Key"]


async def test_an_entry_is_told_by_key_by_its_first_digits_and_by_name() -> None:
    async with serving() as service:
        wish: dict[str, Any] = {"cache_key": "faq:one", "tags": ["a", "b"]}
        key = await stored(service, **wish)
        await stored(service, **wish)
        for asked in (key, key[:12], key[:9], "faq:one"):
            done = await command("inspect", asked, "--url", service.url)
            assert done.exit_code == 0, done.output
            said = done.stdout.splitlines()
            assert f"key        {key}" in said
            assert "tier       hot, priority high" in said
            assert "age        0s, 1d left" in said
            assert "tokens     9 of the prompt, 4 of the answer" in said
            assert "hits       1" in said
            assert "tags       a, b" in said
            assert "           tier       hot          key prefix faq:" in said
            assert "You asked well" not in done.stdout


async def test_for_programs_it_is_json_without_the_answer() -> None:
    async with serving() as service:
        key = await stored(service)
        done = await command("inspect", key, "--url", service.url, "--json")
        entry = json.loads(done.stdout)
        assert (entry["key"], entry["tier"], entry["hits"]) == (key, "warm", 0)
        assert entry["made_by"]["key"] == key
        assert "response" not in entry


async def test_of_one_name_there_may_be_several() -> None:
    async with serving() as service:
        keys = {await stored(service, text, cache_key="name") for text in ("One?", "Two?")}
        await stored(service, cache_key="name:longer")
        done = await command("inspect", "name", "--url", service.url, COLUMNS="100")
        assert done.exit_code == 0
        assert {word for word in done.stdout.split() if len(word) == 32} == keys
        done = await command("inspect", "name", "--url", service.url, "--json")
        assert {entry["key"] for entry in json.loads(done.stdout)} == keys


@pytest.mark.parametrize("key", ["0" * 32, "deadbeef", "no such name", "zz"])
async def test_what_is_not_there_is_exit_code_1(key: str) -> None:
    async with serving() as service:
        await stored(service)
        done = await command("inspect", key, "--url", service.url)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"kvgate: {key}: nothing is stored under it\n"


async def test_nobody_to_ask_is_exit_code_2() -> None:
    done = await command("inspect", "deadbeef", "--url", "http://127.0.0.1:9")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_what_another_process_stored_is_told_as_far_as_it_is_known() -> None:
    entry: dict[str, Any] = {
        "key": "k", "cache_key": None, "endpoint": "chat", "model": "m\x1b", "status": 400,
        "scope": "user", "tenant": "t", "user": "u", "tier": "hot", "priority": "low",
        "age_s": 100.0, "ttl_left_s": -40.0, "prompt_tokens": 1, "completion_tokens": 0,
        "size_bytes": 2048, "cost_s": 0.5, "tags": [], "batch": "b1", "context": "code_review",
        "hits": None, "made_by": None, "kv": {"backend": "eng", "tokens": 64, "hit_tokens": 32},
    }  # fmt: skip
    assert list(told(entry)) == [
        "key        k",
        "answer     chat, model m\\x1b, status 400",
        "shared by  user, tenant t, user u",
        "tier       hot, priority low",
        "age        1m 40s, expired 40s ago",
        "tokens     1 of the prompt, 0 of the answer",
        "size       2,048 bytes; took 0.50 s to compute",
        "hits       not known here",
        "batch      b1",
        "context    code_review",
        "KV         eng has 32 of the prompt's 64 tokens now",
        "made by    not known here: another process stored it, or it was long ago",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3700, "1h 1m"), (90_000, "1d 1h"), (-61, "-1m 1s")],
)
def test_spans_have_two_units_at_most(seconds: float, said: str) -> None:
    assert span(seconds) == said
