"""Start, crash, stop: no request is lost without a word and no child process is left."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.served import serving

pytestmark = pytest.mark.model

QUESTION = json.dumps(
    {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
).encode()


def until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    """Poll for something that happens in another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def ask(url: str) -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", QUESTION, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_a_crashed_engine_is_restarted_and_meanwhile_clients_are_told_when_to_come_back(
    smollm_path: Path,
) -> None:
    with serving(environ={"KVGATE_ENGINE__MODEL": str(smollm_path)}) as served:
        (engine,) = served.children()
        os.kill(engine, signal.SIGKILL)
        until(lambda: ask(served.url)[0] == 503)
        status, headers = ask(served.url)
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        assert served.get("/healthz")[0] == 200
        served.wait_until_ready()
        assert served.children() != [engine]
        assert ask(served.url)[0] == 200
        assert any("crash" in str(line.get("event")) for line in served.lines)


def test_ctrl_c_ends_cleanly_and_leaves_no_child(smollm_path: Path) -> None:
    with serving(environ={"KVGATE_ENGINE__MODEL": str(smollm_path)}) as served:
        children = served.children()
        assert children
        assert served.interrupt() == 0
        until(lambda: all(gone(pid) for pid in children))
        assert "Traceback" not in served.log()


def test_ctrl_c_while_the_model_loads_leaves_no_child(smollm_path: Path) -> None:
    with serving(environ={"KVGATE_ENGINE__MODEL": str(smollm_path)}, ready=False) as served:
        until(lambda: bool(served.url) and bool(served.children()))
        children = served.children()
        assert served.interrupt() == 0
        until(lambda: all(gone(pid) for pid in children))
        assert "Traceback" not in served.log()


def test_a_killed_gateway_takes_its_engine_along(smollm_path: Path) -> None:
    with serving(environ={"KVGATE_ENGINE__MODEL": str(smollm_path)}) as served:
        children = served.children()
        served.process.kill()
        served.process.wait()
        until(lambda: all(gone(pid) for pid in children))


def refused_start(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        check=False,
    )


def test_a_port_in_use_is_one_readable_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = refused_start("--port", str(port))
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_typo_in_the_configuration_names_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("server:\n  prot: 9000\n")
    ended = refused_start("--config", str(config))
    assert ended.returncode != 0
    assert "config.yaml:2" in ended.stderr + ended.stdout
    assert "port" in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
