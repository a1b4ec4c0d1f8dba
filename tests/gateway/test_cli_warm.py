"""``kvgate warm``: a job from a file, its progress, Ctrl-C, and one readable line for each failure."""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from gateway import cli, cli_warm
from gateway.warming import WarmJobs
from gateway.warming_job import Job
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    error_reply,
    json_reply,
    stream_reply,
)
from tests.kit.service import Service, serving

FAQ = "questions:\n  - One?\n  - Two?\n"
KEY = "kv-alice-3f1c7a90b2d84e65"


@pytest.fixture(autouse=True)
def quiet_gateway() -> Iterator[None]:
    """Gateway and command run in one process here: its log is not the command's output."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    yield
    structlog.reset_defaults()


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    file = tmp_path / "faq.yaml"
    file.write_text(FAQ)
    return file


async def invoke(url: str, file: Path, *flags: str, **environ: str) -> Result:
    def run() -> Result:
        return CliRunner().invoke(
            cli.app, ["warm", str(file), "--url", url, *flags], env=environ, prog_name="kvgate"
        )

    return await asyncio.to_thread(run)


async def hit(service: Service, text: str, **more: Any) -> bool:
    messages = [{"role": "user", "content": text}]
    answer = await service.chat({"enabled": True}, messages=messages, **more)
    return answer.headers["X-Cache-Level"] == "response"


async def test_a_file_of_questions_is_warmed(faq: Path) -> None:
    async with serving() as service:
        done = await invoke(service.url, faq)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("2 computed, 0 were fresh, 0 failed, 0 left (26 tokens, ")
        assert await hit(service, "One?")
        assert await hit(service, "Two?")
        assert service.upstream.calls == 2


async def test_run_again_it_skips_what_is_fresh(faq: Path) -> None:
    async with serving() as service:
        await hit(service, "One?")
        done = await invoke(service.url, faq)
        assert done.stdout.startswith("1 computed, 1 were fresh")
        assert done.exit_code == 0


@pytest.mark.parametrize(
    "text",
    [
        '["One?", "Two?"]',
        '{"questions": ["One?", {"question": "Two?"}]}',
        'patterns:\n  faq: {variations: ["One?", "Two?"]}\n',
        'patterns: [{id: faq, variations: ["One?", "Two?"]}]',
    ],
)
async def test_the_file_has_one_of_several_shapes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "faq.json"
    file.write_text(text)
    async with serving() as service:
        assert (await invoke(service.url, file)).exit_code == 0
        assert service.upstream.calls == 2


async def test_what_failed_is_named_and_the_exit_code_says_so(faq: Path) -> None:
    upstream = ScriptedUpstream(error_reply(400, "too \x1b[31mrude"))
    async with serving(upstream=upstream, warm={"concurrency": 1}) as service:
        done = await invoke(service.url, faq)
        assert done.exit_code == 1
        first, last = done.stdout.splitlines()
        assert first.startswith("failed: questions[0] 'One?': ")
        assert "rude" in first
        assert "\x1b" not in first
        assert last.startswith("1 computed, 0 were fresh, 1 failed, 0 left")


async def test_many_failures_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "faq.yaml"
    file.write_text(json.dumps([{"question": f"{n}", "model": "gone"} for n in range(25)]))
    async with serving() as service:
        done = await invoke(service.url, file)
        assert done.exit_code == 1
        assert "and 5 more; --json shows all" in done.stdout


async def test_as_json_it_is_the_ended_job(faq: Path) -> None:
    async with serving() as service:
        done = await invoke(service.url, faq, "--json")
        assert done.exit_code == 0
        job = json.loads(done.stdout)
        assert (job["status"], job["counts"]["done"], len(job["items"])) == ("done", 2, 2)


async def test_with_tenants_it_needs_their_key(faq: Path) -> None:
    tenants = [{"name": "a", "api_keys": [KEY]}]
    async with serving(tenants=tenants) as service:
        refused = await invoke(service.url, faq)
        assert (refused.exit_code, "--api-key" in refused.stderr) == (2, True)
        assert (await invoke(service.url, faq, KVGATE_API_KEY=KEY)).exit_code == 0
        assert await hit(service, "One?", key=KEY)


async def test_what_is_wrong_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "faq.yaml"
    file.write_text('questions: ["One?", 5]')
    async with serving() as service:
        done = await invoke(service.url, file)
        assert done.exit_code == 1
        assert done.stderr.strip() == (
            "kvgate: questions[1] is a number; it must be a string, a message "
            "or an object with a question"
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("questions: [", "line 1"),
        ("just a text", "must hold a list of questions"),
        ("a: \x00", "no YAML"),
        ("when: 2024-02-31", "no YAML"),
    ],
)
async def test_a_file_that_is_none_is_told_in_one_line(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "faq.yaml"
    if text is not None:
        file.write_text(text)
    done = await invoke("http://127.0.0.1:9", file)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kvgate: ")
    assert said in line or said == "line 1"


async def test_an_address_where_nobody_is_is_told_in_one_line(faq: Path) -> None:
    for url, said in (
        ("http://127.0.0.1:9", "does not answer"),
        ("ftp://x", "is no address"),
        ("http://", "is no address"),
    ):
        done = await invoke(url, faq)
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr


@pytest.mark.parametrize("reply", [Reply((b"<html>",)), Reply((b"[]",), status=500)])
async def test_another_server_is_asked_whether_it_is_kvgate(faq: Path, reply: Reply) -> None:
    async with ScriptedUpstream(reply) as other:
        done = await invoke(other.url, faq)
        assert done.exit_code == 2
        assert "is this kvgate?" in done.stderr


async def test_a_job_cancelled_elsewhere_ends_with_1(faq: Path) -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(Reply((gate,)))) as service:
        running = asyncio.create_task(invoke(service.url, faq))
        await gate.reached()
        (job,) = (await service.send("GET", "/v1/cache/warm")).body["data"]
        await service.send("DELETE", f"/v1/cache/warm/{job['id']}")
        done = await running
        assert done.exit_code == 1
        assert done.stdout.startswith("cancelled elsewhere: ")


async def test_ctrl_c_cancels_the_job_and_says_so(
    faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, watched, watch = Gate(), asyncio.Event(), WarmJobs.watch

    def seen(jobs: WarmJobs, tenant: str, name: str) -> AsyncGenerator[Job, None]:
        watched.set()
        return watch(jobs, tenant, name)

    monkeypatch.setattr(WarmJobs, "watch", seen)
    async with serving(upstream=ScriptedUpstream(Reply((gate,)), Reply((gate,)))) as service:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "warm", str(faq), "--url", service.url,
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        await gate.reached()
        await watched.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        assert process.returncode == 130, err
        assert b"cancelled: 0 computed" in err
        assert b"Traceback" not in out + err
        (job,) = (await service.send("GET", "/v1/cache/warm")).body["data"]
        assert job["status"] == "cancelled"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([{"error": {"message": "the store \x1b[0m is down"}}], "the store \\x1b[0m is down"),
        ([], "run the same command again"),
    ],
)
async def test_events_that_end_before_the_job_are_told(
    faq: Path, monkeypatch: pytest.MonkeyPatch, states: list[Any], said: str
) -> None:
    monkeypatch.setattr(cli_warm, "follow", lambda *_: iter(states))
    async with serving() as service:
        done = await invoke(service.url, faq)
        assert done.exit_code == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


async def test_a_connection_that_breaks_is_told(faq: Path) -> None:
    head = b'data: {"id": "warm-1", "status": "running", "counts": {"done": 0, "skipped": 0, '
    job = {"id": "warm-1", "status": "running", "counts": {"total": 2, "failed": 0}}
    async with ScriptedUpstream(json_reply(job, status=202), stream_reply(head, "rst")) as other:
        done = await invoke(other.url.removesuffix("/v1"), faq)
        assert done.exit_code == 1
        assert "broke off" in done.stderr
