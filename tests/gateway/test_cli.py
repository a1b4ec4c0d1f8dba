"""The command line: exit codes, one readable line per failure, and a quick --help."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

import gateway.serve
from gateway import cli
from gateway.config import Config

ROOT = Path(__file__).parent.parent.parent
GOOD_KEY = "kv-3f1c7a90b2d84e65a1c0"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("KVGATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("gateway.logs.catch_stray", lambda: None)  # this process is pytest's
    yield
    structlog.reset_defaults()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, prog_name="kvgate")


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | environ
    )


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Catches the configuration that would be served."""
    found: list[Config] = []

    def serve(config: Config) -> int:
        found.append(config)
        return 0

    monkeypatch.setattr(gateway.serve, "serve", serve)
    return found


def test_serve_takes_the_defaults(served: list[Config]) -> None:
    assert invoke("serve").exit_code == 0
    assert served == [Config()]


def test_serve_takes_a_file_the_environment_and_flags_in_that_order(
    served: list[Config], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 1, log_level: error, host: '::1'}\n")
    environ = {"KVGATE_SERVER__LOG_LEVEL": "warning", "KVGATE_CONFIG": str(file)}
    done = CliRunner().invoke(
        cli.app, ["serve", "--port", "3", "--log-format", "json"], env=environ
    )
    assert done.exit_code == 0, done.output
    server = served[0].server
    assert (server.port, server.log_level, server.host) == (3, "warning", "::1")
    assert server.log_format == "json"


def test_the_exit_code_of_serving_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.serve, "serve", lambda _: 130)
    assert invoke("serve").exit_code == 130


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--host", "0.0.0.0"), "--host: server.host: without tenants only loopback"),
        (("--workers", "0"), "--workers: server.workers: must be greater than or equal to 1"),
        (("--log-level", "loud"), "--log-level: server.log_level: must be one of debug, info"),
        (("--port", "70000"), "--port: server.port: must be less than or equal to 65535"),
        (("--config", "/nonexistent.yaml"), "/nonexistent.yaml: cannot be read: No such file"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_code_78(
    arguments: tuple[str, ...], line: str, served: list[Config]
) -> None:
    done = invoke("serve", *arguments)
    assert done.exit_code == 78
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    in_json = invoke("serve", *arguments, "--log-format", "json")
    assert in_json.exit_code == 78
    said = json.loads(in_json.stderr)
    assert said["severity"] == "error"
    assert said["event"].startswith(line)
    assert served == []


def test_a_wrong_command_line_is_exit_code_2() -> None:
    assert invoke("serve", "--prot", "1").exit_code == 2
    assert invoke("serve", "--port", "x").exit_code == 2
    assert invoke("sevre").exit_code == 2


def test_a_port_in_use_is_one_line_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done, in_json = (
            run("serve", "--port", str(port), *more) for more in ((), ("--log-format", "json"))
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"kvgate: 127.0.0.1:{port} is in use by another process; choose another port with --port\n"
    )
    assert in_json.returncode == 1
    assert json.loads(in_json.stderr)["event"] == done.stderr.strip()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied"), "[::1]:80 needs rights we do not have"),
        (OSError(99, "Cannot assign requested address"), "[::1]:80 is no address of this machine"),
        (socket.gaierror(-2, "Name or service not known"), "[::1]:80 is no address of this"),
        (OSError(28, "No space left on device"), "[::1]:80: No space left on device"),
    ],
)
def test_why_it_cannot_listen_is_one_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(_: Config) -> int:
        raise error

    monkeypatch.setattr(gateway.serve, "serve", serve)
    done = invoke("serve", "--host", "::1", "--port", "80")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"kvgate: {line}")
    assert done.stderr.count("\n") == 1


def test_a_weak_key_is_warned_of_in_the_log_and_by_check(
    served: list[Config], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("tenants:\n- {name: a, api_keys: [changeme]}\n")
    done = run("check", str(file))
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: {file}:2: tenants.0.api_keys.0: a well-known")
    assert "at=tenants.0.api_keys.0" in invoke("serve", "--config", str(file)).stderr
    assert len(served) == 1


def test_check_prints_every_problem_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("server:\n  prot: 1\ntiers:\n  hot: {ttl: soon}\n")
    done = run("check", str(file), KVGATE_SERVER__PORT="x")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{file}:2: server.prot: unknown key; did you mean server.port?",
        f"{file}:4: tiers.hot.ttl: must be seconds, or a number with a unit such as 30m, 2h or 1d",
        "KVGATE_SERVER__PORT: server.port: must be a valid integer, unable to parse string as an integer",
    ]
    assert done.stdout == ""


def test_check_says_ok(tmp_path: Path) -> None:
    done = invoke("check", str(ROOT / "config.yaml"))
    assert (done.exit_code, done.stdout) == (0, f"{ROOT / 'config.yaml'}: ok\n")
    assert invoke("check").stdout == "the defaults and the environment: ok\n"


def test_fetching_the_model_is_the_engines_business(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def fake(command: list[str], **kwargs: Any) -> Any:
        ran.append((command[1:], kwargs["env"]["PYTHONPATH"].split(os.pathsep)[0]))
        return subprocess.CompletedProcess(command, 78)

    monkeypatch.setattr(subprocess, "run", fake)
    assert invoke("model", "fetch").exit_code == 78
    assert ran == [(["-P", "-m", "engine.weights.fetch"], str(ROOT))]

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    assert invoke("model", "fetch").exit_code == 130


def test_planning_a_models_memory_is_the_engines_business(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "model", "plan", "--model", str(file)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr.startswith(f"kvgate engine: {file}: model_type None is not known here")


def test_version_and_help() -> None:
    assert re.fullmatch(r"kvgate \S.*\n", invoke("--version").stdout)
    assert (
        "Exit codes: 0 done, 1 failed or the answer is no, 2 wrong usage or no gateway"
        in " ".join(invoke("--help").stdout.split())
    )


def test_help_loads_neither_the_web_server_nor_the_configuration() -> None:
    code = (
        "import sys; from gateway.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('aiohttp', 'http.client', 'pydantic_settings', 'structlog', 'torch', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
