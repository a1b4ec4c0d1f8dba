"""`python -m engine` as its parent sees it: port file, health, signals, exit codes."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.native.library import Library
from engine.process import JsonLines
from tests.kit.tiny_model import TinyLlama

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "engine", "--threads", "1", "--kv-memory", "4MiB")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama().write(tmp_path_factory.mktemp("model") / "tiny-llama")


class Child:
    """A running engine. `url` waits for the port file, `ready` for /healthz."""

    def __init__(self, process: subprocess.Popen[str], port_file: Path) -> None:
        self.process, self.port_file = process, port_file

    @property
    def url(self) -> str:
        while not self.port_file.exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.port_file.read_text().strip()}"

    def ready(self) -> str:
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/healthz"):
                    return self.url
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 503:
                    raise
                time.sleep(0.02)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        with urllib.request.urlopen(self.ready() + path, data) as response:
            answer = json.loads(response.read())
        assert isinstance(answer, dict)
        return answer

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; exit code and what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said


@contextmanager
def started(model: Path, tmp_path: Path, *more: str) -> Iterator[Child]:
    port_file = tmp_path / "port"
    flags = ("--port", "0", "--port-file", str(port_file), "--model", str(model), *more)
    process = subprocess.Popen(
        [*COMMAND, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Child(process, port_file)
    finally:
        process.kill()
        process.communicate()


def failed(*flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, "--log-level", "error", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_ends_cleanly_at_a_signal(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with started(model, tmp_path) as child:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = child.post("/v1/chat/completions", body)
        assert answer["model"] == "tiny-llama"
        assert answer["usage"]["total_tokens"] <= answer["usage"]["prompt_tokens"] + 3
        code, said = child.end(number)
        assert code == 0
        assert "Traceback" not in said


def test_a_signal_while_the_model_is_loaded_ends_it_at_once(model: Path, tmp_path: Path) -> None:
    with started(model, tmp_path) as child:
        assert child.url
        code, said = child.end(signal.SIGTERM)
        assert code == 0
        assert "Traceback" not in said


def test_an_open_stream_hears_an_error_when_the_engine_is_told_to_end(
    model: Path, tmp_path: Path
) -> None:
    with started(model, tmp_path) as child:
        body = {"prompt": "x", "max_tokens": 1500, "stream": True, "ignore_eos": True}
        url = child.ready() + "/v1/completions"
        with urllib.request.urlopen(url, json.dumps(body).encode()) as response:
            assert response.readline().startswith(b"data: {")
            child.process.send_signal(signal.SIGTERM)
            text = response.read().decode()
        assert "[DONE]" not in text
        assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert child.process.wait(30) == 0


def test_it_ends_when_its_parent_has_been_killed(model: Path, tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    script = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([*sys.argv[1:], '--parent-pid', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    flags = ("--port", "0", "--port-file", str(port_file), "--model", str(model))
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *COMMAND, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    while not port_file.exists():
        time.sleep(0.01)
    parent.kill()
    parent.communicate()
    while Path(f"/proc/{pid}").exists():
        # an orphan that has ended waits for whoever inherited it
        if "(python" in (stat := _stat(pid)) and ") Z " in stat:
            break
        time.sleep(0.02)


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return ""


def test_what_cannot_start_says_so_in_one_line_and_exits_78(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF\3\0\0\0 and then nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flags, complaint in [
            (("--port", "x"), "--port: must be a whole number"),
            (("--port", port, "--model", str(model)), f"port {port}"),
            (("--port", "0", "--model", str(tmp_path / "nothing.gguf")), "no such file"),
            (("--port", "0", "--model", str(damaged)), "model.gguf"),
            (("--port", "0", "--host", "a" * 70), "cannot listen on 'aaa"),
            (("--port", "0", "--port-file", str(tmp_path / "no/port")), "cannot write the port"),
            (("--port", "0", "--model", str(model), "--kv-memory", "1kB"), "kv_memory"),
        ]:
            code, said = failed(*flags)
            assert code == 78, said
            assert said.startswith("kvgate engine: ")
            assert said.count("\n") == 1, said
            assert complaint in said


def test_an_option_may_come_from_the_environment(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "KVGATE_ENGINE__PREFIX_CACHE", "0")
    with started(model, tmp_path, "--served-name", "mine") as child:
        body = {"prompt": "x" * 100, "max_tokens": 1}
        child.post("/v1/completions", body)
        again = child.post("/v1/completions", body)
        assert again["usage"]["prompt_cache_hit_tokens"] == 0
        assert again["model"] == "mine"


def test_in_json_each_line_is_an_object(model: Path, tmp_path: Path) -> None:
    with started(model, tmp_path, "--log-format", "json") as child:
        child.ready()
        code, said = child.end(signal.SIGTERM)
    assert code == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"ts", "severity", "logger", "event"} <= set(lines[0])
    assert "ready" in [line["event"] for line in lines]


def test_a_traceback_is_a_field_of_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("engine", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["severity"]) == ("failed", "error")
    assert line["exception"].endswith("ValueError: broken")


def test_help_names_the_options() -> None:
    done = subprocess.run(
        [*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--kv-memory" in done.stdout


def test_importing_the_engine_imports_no_torch() -> None:
    names = "engine engine.request engine.scheduler engine.engine engine.kv.blocks engine.kv.prefix"
    names += " engine.api engine.answers engine.service engine.server engine.text.detokenizer"
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names.split()!r}]"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_native_kernels_are_compiled_once_and_start_again_with_the_same_answer(
    native: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends it, its threads with it; the next start finds what the first one compiled."""
    monkeypatch.setenv("KVGATE_CACHE_DIR", str(tmp_path / "cache"))
    tiny = TinyLlama(heads=2, kv_heads=1).write(tmp_path / "tiny")
    body = {"model": "tiny", "prompt": [5, 6, 7] * 30, "max_tokens": 8, "temperature": 0}
    texts, made = [], []
    for turn in range(2):
        where = tmp_path / str(turn)
        where.mkdir()
        with started(tiny, where, "--kernels", "native", "--threads", "2") as child:
            answer = child.post("/v1/completions", body)
            texts.append(answer["choices"])
            with urllib.request.urlopen(f"{child.url}/kv/stats") as response:
                assert json.loads(response.read())["kernels"] == "native"
            code, said = child.end(signal.SIGINT)
        assert code == 0, said
        assert "Traceback" not in said
        (library,) = (tmp_path / "cache" / "native").iterdir()
        made.append(library.stat().st_mtime_ns)
    assert texts[0] == texts[1]
    assert made[0] == made[1]


def test_native_kernels_that_cannot_be_had_are_one_line_and_exit_code_78(
    model: Path, tmp_path: Path
) -> None:
    with started(model, tmp_path, "--kernels", "native") as child:
        _, said = child.process.communicate(timeout=120)
    assert child.process.returncode == 78
    wanted = "kvgate engine: kernels: native was asked for, but "
    assert [line for line in said.splitlines() if line.startswith(wanted)]
    assert "Traceback" not in said
