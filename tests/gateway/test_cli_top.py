"""``kvgate top``: numbers that are the gateway's, 80 columns by 24 lines, and a clean way out."""

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import structlog
from rich.console import Console

from gateway.cli_remote import Remote
from gateway.cli_top import screen, watch
from tests.kit.scripted_upstream import ScriptedUpstream, error_reply
from tests.kit.service import Service, serving
from tests.kit.threads import command, in_thread

URL = "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def quiet_gateway() -> Iterator[None]:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


async def asked(service: Service, times: int) -> None:
    for _ in range(times):
        await service.chat({"enabled": True})
    await service.settled()


async def test_one_look_has_the_gateways_numbers() -> None:
    async with serving() as service:
        await asked(service, 5)
        done = await command("top", "--url", service.url, "--once", "--json")
        assert done.exit_code == 0, done.output
        (line,) = done.stdout.splitlines()
        seen, stats = json.loads(line), (await service.send("GET", "/v1/cache/stats")).body
        assert seen["requests"] == stats["requests"] == 5
        assert seen["hit_rate"] == stats["hit_rate"] == 0.8
        assert seen["stored_rate"] == stats["stored_rate"] == 0.8
        assert seen["reuse_rate"] == stats["reuse_rate"] == 0
        assert seen["misses"] == stats["miss_reasons"] == {"cold": 1}
        assert seen["levels"]["response"]["requests"] == 4
        assert sum(tier["entries"] for tier in seen["tiers"].values()) == 1
        assert seen["status"] == "ready"
        assert seen["backends"]["up"]["state"] == "up"


async def test_one_look_for_people() -> None:
    async with serving() as service:
        await asked(service, 5)
        done = await command("top", "--url", service.url, "--once", COLUMNS="80")
        assert done.exit_code == 0
        rows = [" ".join(row.split()) for row in done.stdout.splitlines()]
        assert any(row.startswith("response 4 - 80.0%") for row in rows)
        assert "misses cold 1" in rows
        assert rows[2] == (
            "from the store 80.0% (80.0% since the start) prompts reused 0.0% (0.0%)"
        )
        assert all(len(row) <= 80 for row in done.stdout.splitlines())


async def test_rates_are_of_what_came_between_two_looks() -> None:
    async with serving() as service:
        times = iter([100.0, 102.0])
        looks = watch(
            Remote(service.url), interval_s=2.0, once=False,
            sleep=lambda _: None, now=lambda: next(times),
        )  # fmt: skip
        await in_thread(lambda: next(looks))
        await asked(service, 4)
        seen = await in_thread(lambda: next(looks))
        assert (seen["requests"], seen["requests_per_s"]) == (4, 2.0)


async def test_a_gateway_that_goes_is_waited_for_and_the_line_says_so() -> None:
    async with serving() as service:
        url = service.url
        looks = watch(Remote(url), interval_s=1.0, once=False, sleep=lambda _: None)
        await in_thread(lambda: next(looks))
    seen = await in_thread(lambda: next(looks))
    assert "does not answer" in seen["error"]
    assert "does not answer" in printed(seen)


async def test_nobody_there_at_the_first_look_is_one_line_and_exit_code_2() -> None:
    done = await command("top", "--once", "--url", "http://127.0.0.1:9")
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (2, 1, "")


async def test_a_tenant_sees_its_own() -> None:
    key = "kv-alice-3f1c7a90b2d84e65"
    async with serving(tenants=[{"name": "a", "api_keys": [key]}]) as service:
        await service.chat({"enabled": True}, key=key)
        await service.settled()
        done = await command("top", "--once", "--json", "--url", service.url, "--api-key", key)
        seen = json.loads(done.stdout)
        assert (seen["tenant"], seen["requests"], seen["tiers"]) == ("a", 1, {})
        done = await command("top", "--once", "--url", service.url, "--api-key", key)
        assert done.exit_code == 0
        assert "tenant a" in done.stdout


def printed(seen: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, height=24)
    console.print(screen(seen, URL))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def full_frame() -> dict[str, Any]:
    """As much as there can be."""
    level = {"requests": 123456789, "per_s": 12345.6, "share": 0.2, "p50_s": 0.0123, "p95_s": 12.5}
    tier = {
        "store": "memory", "entries": 1234567, "size_bytes": 3 * 2**30, "max_bytes": 4 * 2**30,
        "fill": 0.75, "evictions": 1234567, "evictions_per_s": 3.0,
    }  # fmt: skip
    backend = {
        "state": "left out", "error": None, "kv_fill": 1.0, "kv_hit_rate": 0.5, "kv_evictions": 3,
        "running": 32, "waiting": 512,
    }  # fmt: skip
    job = {"id": "warm-" + "a" * 24, "status": "running", "total": 1000, "ended": 500, "failed": 3}
    return {
        "at": 1.0, "interval_s": 2.0, "tenant": None, "status": "degraded", "requests": 10**9,
        "requests_per_s": 123456.7, "hit_rate": 0.999, "stored_rate": 1.0, "reuse_rate": 1.0, "errors": 10**6, "store_errors": 10**6,
        "flights": 12345,
        "since_start": {
            "requests": 10**10, "hit_rate": 0.5, "stored_rate": 1.0, "reuse_rate": 1.0,
            "tokens_saved": 10**13, "seconds_saved": 1e8, "money_saved": 1e7,
        },
        "levels": dict.fromkeys(("response", "semantic", "prefix", "negative", "none"), level),
        "tiers": dict.fromkeys(("hot", "warm", "cold"), tier),
        "misses": {f"reason_number_{number}": 10**6 for number in range(9)},
        "backends": {f"backend-with-a-long-name-{number}": backend for number in range(9)},
        "warm": [job] * 9,
    }  # fmt: skip


def test_the_fullest_frame_fits_into_80_columns_and_24_lines() -> None:
    rows = printed(full_frame()).splitlines()
    assert len(rows) <= 24
    assert max(map(len, rows)) <= 80
    said = "\n".join(rows)
    for word in (
        "and 6 more",
        "█████████░░░  75%",
        "3.0 GiB/4.0 GiB",
        "500/1000, 3 failed",
        "12.50 s",
        "from the store 100.0% (100.0% since the start)  prompts reused 100.0% (100.0%)",
    ):
        assert word in said


async def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    async with serving() as service:
        for words, code in (((), 130), (("--json",), 130)):
            ours, its = pty.openpty()
            process = subprocess.Popen(  # noqa: ASYNC220 - on a terminal of its own; waited for in a thread
                [sys.executable, "-m", "gateway", "top", "--url", service.url, *words],
                stdin=its, stdout=its, stderr=its,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            )  # fmt: skip
            os.close(its)
            seen = await in_thread(partial(until, ours, b"ready"))
            process.send_signal(signal.SIGINT)
            seen += await in_thread(partial(rest, ours))
            assert await in_thread(process.wait) == code, seen
            assert b"Traceback" not in seen
            assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == (not words)
            os.close(ours)


def until(fd: int, word: bytes) -> bytes:
    seen = b""
    while word not in seen:
        seen += os.read(fd, 65536)
    return seen


def rest(fd: int) -> bytes:
    seen = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:  # the other end is closed
            return seen
        if not data:
            return seen
        seen += data


async def test_errors_are_counted_between_looks() -> None:
    async with serving(upstream=ScriptedUpstream(error_reply(500, "no"))) as service:
        looks = watch(Remote(service.url), interval_s=1.0, once=False, sleep=lambda _: None)
        await in_thread(lambda: next(looks))
        await service.chat()
        await asyncio.sleep(0)
        assert (await in_thread(lambda: next(looks)))["errors"] == 1
