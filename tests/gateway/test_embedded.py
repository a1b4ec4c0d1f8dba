"""The engine as a child: real processes, real signals; only the backoff's waiting is injected."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import uvloop
from structlog.testing import capture_logs

from gateway.backends.embedded import EngineProcess, child_environment
from gateway.config_sections import Engine, Server
from gateway.errors import BackendFault
from gateway.flights import Tasks

ROOT = Path(__file__).parent.parent.parent
FAKE = ROOT / "tests" / "kit" / "fake_engine.py"


class Bench:
    """One engine process, its starts, its log and its backoff."""

    def __init__(self, tmp_path: Path) -> None:
        self.tasks = Tasks()
        self.starts_file = tmp_path / "starts"
        self.output = io.BytesIO()
        self.slept: list[float] = []
        self.passed_s = 0.0
        self.may_restart = asyncio.Semaphore(0)
        self.engine: EngineProcess | None = None
        self.logs: list[Any] = []

    async def start(self, behaviour: str = "", **kwargs: Any) -> EngineProcess:
        environ = dict(
            os.environ,
            KVGATE_TEST_FAKE=behaviour,
            KVGATE_TEST_STARTS=str(self.starts_file),
            KVGATE_TENANTS="secret",
        )
        self.engine = EngineProcess(
            Engine(),
            tasks=self.tasks,
            **{
                "command": (sys.executable, str(FAKE)),
                "environ": environ,
                "output": self.output,
                "clock": self.clock,
                "sleep": self.sleep,
                "draw": lambda: 0.0,
                **kwargs,
            },
        )
        await self.engine.start()
        return self.engine

    def clock(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        if seconds < 0.2:  # the polling for readiness is about a real process
            await asyncio.sleep(seconds)
        else:
            self.slept.append(seconds)
            await self.may_restart.acquire()
            self.passed_s += seconds

    async def delays(self, count: int) -> None:
        await until(lambda: len(self.slept) == count)

    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.starts_file.read_text().splitlines()]

    def events(self, name: str) -> list[Any]:
        return [line for line in self.logs if line["event"] == name]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    structlog.reset_defaults()
    bench = Bench(tmp_path)
    with capture_logs() as bench.logs:
        yield bench
        await bench.tasks.close()
        if bench.engine is not None:
            await bench.engine.stop()


async def test_the_token_goes_by_the_environment_and_no_command_line(bench: Bench) -> None:
    engine = await bench.start(token=lambda: "canary-token")
    await until(lambda: engine.state == "ready")
    (start,) = bench.starts()
    assert start["env"]["KVGATE_ENGINE__TOKEN"] == "canary-token"
    assert b"canary-token" not in b"".join(map(command_line, running_fakes()))
    assert "canary-token" not in bench.output.getvalue().decode() + str(bench.logs)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; there is no event to wait for."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def command_line(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def running_fakes() -> list[str]:
    """Our children that are fake engines, where the system can say so."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    pids = children.read_text().split() if children.exists() else []
    return [pid for pid in pids if b"fake_engine" in command_line(pid)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_is_starting_until_its_health_says_ready(bench: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    engine = await bench.start(f"unready-until={gate}")
    await until(lambda: bench.starts_file.exists() and bool(bench.starts()))
    with pytest.raises(BackendFault) as caught:
        engine.base_url()
    fault = caught.value
    assert (fault.status, fault.code, fault.retry_after_s) == (503, "engine_starting", 2.0)
    assert engine.state == "starting"
    gate.touch()
    await until(lambda: engine.state == "ready")
    assert engine.base_url().startswith("http://127.0.0.1:")
    assert engine.base_url().endswith("/v1")
    assert repr(engine) == f"<EngineProcess ready pid={bench.starts()[0]['pid']} restarts=0>"


async def test_a_killed_engine_is_logged_and_restarted_after_a_delay(bench: Bench) -> None:
    engine = await bench.start("say=last words")
    await until(lambda: engine.state == "ready")
    first = bench.starts()[0]["pid"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: engine.state == "restarting")
    (line,) = bench.events("engine crashed")
    assert (line["signal"], line["last_line"]) == ("SIGKILL", "last words")
    with pytest.raises(BackendFault) as caught:
        engine.base_url()
    fault = caught.value
    assert (fault.status, fault.code, fault.retry_after_s) == (503, "engine_unavailable", 2.5)
    bench.may_restart.release()
    await until(lambda: engine.state == "ready")
    assert bench.starts()[1]["pid"] != first
    assert engine.restarts == 1


async def test_delays_double_up_to_thirty_seconds(bench: Bench) -> None:
    await bench.start("exit=3,say=bye")
    for _ in range(8):
        bench.may_restart.release()
    await until(lambda: len(bench.slept) == 9)
    assert bench.slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert bench.events("engine crashed")[0]["exit_code"] == 3


async def test_chance_only_shortens_a_delay(bench: Bench) -> None:
    await bench.start("exit=3", draw=lambda: 1.0)
    await until(lambda: bool(bench.slept))
    assert bench.slept == [0.375]


async def test_a_minute_of_good_service_is_a_clean_slate(bench: Bench) -> None:
    engine = await bench.start()
    for crash in range(3):
        await until(lambda: engine.state == "ready")
        if crash == 2:
            bench.passed_s += 60
        os.kill(bench.starts()[-1]["pid"], signal.SIGKILL)
        await bench.delays(crash + 1)
        bench.may_restart.release()
    await until(lambda: engine.state == "ready")
    assert bench.slept == [0.5, 1.0, 0.5]


async def test_exit_code_78_is_final_and_told_once(bench: Bench) -> None:
    engine = await bench.start("exit=78,say=model.gguf: not a GGUF file")
    await until(lambda: engine.state == "failed")
    await bench.tasks.close()
    assert bench.slept == []
    assert len(bench.starts()) == 1
    assert engine.reason == "model.gguf: not a GGUF file"
    (line,) = bench.events("engine cannot start")
    assert line["reason"] == engine.reason
    assert bench.events("engine crashed") == []
    with pytest.raises(BackendFault) as caught:
        engine.base_url()
    assert (caught.value.status, caught.value.code) == (503, "engine_unavailable")
    assert "gguf" not in caught.value.message  # a path is the operator's business


async def test_exit_code_75_is_tried_again_and_says_what_it_waits_for(bench: Bench) -> None:
    engine = await bench.start("exit=75,say=kvgate engine: no network")
    await bench.delays(1)
    (line,) = bench.events("engine waits for its model")
    assert line["reason"] == engine.reason == engine.view().reason == "no network"
    assert not bench.events("engine crashed")
    with pytest.raises(BackendFault, match="cannot be fetched yet") as caught:
        engine.base_url()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2.5)
    for _ in range(3):
        bench.may_restart.release()
    await bench.delays(4)
    assert bench.slept == [0.5, 1, 2, 4]


async def test_what_it_waited_for_is_forgotten_once_it_is_ready(
    bench: Bench, tmp_path: Path
) -> None:
    network = tmp_path / "network"
    engine = await bench.start(f"exit=75,unless={network},say=kvgate engine: no network")
    await bench.delays(1)
    network.touch()
    bench.may_restart.release()
    await until(lambda: engine.state == "ready")
    assert engine.view().reason is None


async def test_why_it_cannot_start_is_logged_and_not_passed_on_as_well(bench: Bench) -> None:
    engine = await bench.start("exit=78,say=\x1b[0mshown\nkvgate engine: no such model\nmore")
    await until(lambda: engine.state == "failed")
    assert b"no such model" not in bench.output.getvalue()
    assert b"shown\nmore" in bench.output.getvalue()


async def test_in_json_its_lines_are_passed_on_or_put_into_objects(bench: Bench) -> None:
    server = Server(log_format="json")
    said = '\r\x1b[1mhalf a bar\n{"event": "a"}\nkvgate engine: no model'
    engine = await bench.start(f"exit=78,say={said}", server=server)
    await until(lambda: engine.state == "failed")
    assert bench.output.getvalue() == b'{"event": "a"}\n'
    assert [line["event"] for line in bench.logs if line["log_level"] == "info"] == [
        "engine starting", "first words", "half a bar",
    ]  # fmt: skip
    (start,) = bench.starts()
    assert start["env"]["KVGATE_ENGINE__LOG_FORMAT"] == "json"


async def test_a_command_that_does_not_exist_is_a_crash(bench: Bench) -> None:
    engine = await bench.start(command=("/nonexistent/python",))
    await until(lambda: engine.state == "restarting")
    assert bench.events("engine not started")[0]["reason"] == "No such file or directory"


async def test_its_output_goes_on_byte_for_byte(bench: Bench) -> None:
    engine = await bench.start("exit=78,say=\rhalf a bar")
    await until(lambda: engine.state == "failed")
    assert bench.output.getvalue() == b"first words\n\x1b[31m\rhalf a bar\x1b[0m\n\n"


async def test_an_output_nobody_reads_harms_nobody(bench: Bench) -> None:
    bench.output.close()
    engine = await bench.start("say=x")
    await until(lambda: engine.state == "ready")


async def test_a_terminal_gets_its_cursor_back(bench: Bench) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    bench.output = Terminal()
    engine = await bench.start("exit=78,say=\x1b[?25l half a bar")
    await until(lambda: engine.state == "failed")
    assert bench.output.getvalue().endswith(b"\x1b[?25h")


async def test_stop_ends_it_at_once_and_leaves_no_folder(bench: Bench) -> None:
    engine = await bench.start()
    await until(lambda: engine.state == "ready")
    pid = bench.starts()[0]["pid"]
    folder = engine._folder
    assert folder is not None
    await engine.stop()
    assert not alive(pid)
    assert not folder.exists()
    assert engine.state == "stopped"
    await engine.stop()
    with pytest.raises(BackendFault):
        engine.base_url()


async def test_an_engine_that_does_not_listen_to_sigterm_is_killed(bench: Bench) -> None:
    engine = await bench.start("deaf", grace_s=0.1)
    await until(lambda: engine.state == "ready")
    await engine.stop()
    assert not alive(bench.starts()[0]["pid"])


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(12))
def test_stop_in_the_middle_of_starting_leaves_no_child(
    run: Callable[..., None], turns: int, tmp_path: Path
) -> None:
    async def story() -> None:
        bench = Bench(tmp_path)
        engine = await bench.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 2:
            await bench.tasks.close()  # as the application does, before it stops the engine
        await engine.stop()
        assert engine.state == "stopped"
        assert running_fakes() == []

    run(story())


async def test_a_defect_of_the_watcher_is_heard(bench: Bench) -> None:
    def broken() -> float:
        raise ZeroDivisionError

    engine = await bench.start(clock=broken)
    await until(lambda: engine.state == "failed")
    assert bench.events("engine no longer watched")


async def test_stop_while_waiting_to_restart(bench: Bench) -> None:
    engine = await bench.start("exit=1")
    await until(lambda: bool(bench.slept))
    await engine.stop()
    assert engine.state == "stopped"
    assert len(bench.starts()) == 1


async def test_it_leads_a_session_of_its_own(bench: Bench) -> None:
    engine = await bench.start()
    await until(lambda: engine.state == "ready")
    (start,) = bench.starts()
    assert start["sid"] == start["pid"] != os.getsid(0)


def test_it_gets_its_options_and_none_of_the_gateways_secrets() -> None:
    environ = {
        "PATH": "/bin",
        "PYTHONPATH": "/mine",
        "KVGATE_TENANTS": "secret",
        "kvgate_backends": "secret",
        "KVGATE_ENGINE__MODEL": "old",
        "KVGATE_CACHE_DIR": "/cache",
    }
    section = Engine.model_validate({"model": "m", "prefix_cache": False, "kv_memory": "1MiB"})
    found = child_environment(section, environ, Server())
    assert "secret" not in found.values()
    assert found["PATH"] == "/bin"
    assert found["KVGATE_CACHE_DIR"] == "/cache"
    assert found["KVGATE_ENGINE__MODEL"] == "m"
    assert found["KVGATE_ENGINE__PREFIX_CACHE"] == "0"
    assert found["KVGATE_ENGINE__KV_MEMORY"] == "1048576"
    assert found["KVGATE_ENGINE__THREADS"] == "auto"
    assert "KVGATE_ENGINE__ENABLED" not in found
    root, mine = found["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "gateway" / "backends").is_dir()
    assert mine == "/mine"


def test_a_terminal_is_passed_on_for_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "TTY_INTERACTIVE" not in child_environment(Engine(), {}, Server())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert child_environment(Engine(), {}, Server())["TTY_INTERACTIVE"] == "1"


PARENT = """
    import asyncio, sys, uvloop
    from gateway.backends.embedded import EngineProcess
    from gateway.config_sections import Engine
    from gateway.flights import Tasks

    async def main():
        engine = EngineProcess(Engine(), tasks=Tasks(), command=(sys.executable, sys.argv[1]))
        await engine.start()
        while engine.state != "ready":
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.sleep(600)

    runner = {"uvloop": uvloop.run, "asyncio": asyncio.run}[sys.argv[2]]
    runner(main())
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_gateway_killed_with_9_leaves_no_engine(loop: str, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(PARENT), str(FAKE), loop),
        env=dict(os.environ, KVGATE_TEST_STARTS=str(starts), PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        while await parent.stdout.readline() != b"ready\n":  # the log comes first
            assert parent.returncode is None
    pid = json.loads(starts.read_text())["pid"]
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not alive(pid))
