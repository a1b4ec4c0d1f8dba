"""What ``kvgate check --connect`` says of each backend, and its exit code."""

import asyncio
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli import app
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, error_reply

SECRET = "sk-connect-0123456789abcdef"


def written(path: Path, url: str, models: list[str]) -> Path:
    backend = {"name": "up", "base_url": url, "api_key": SECRET, "models": models}
    file = path / "kvgate.yaml"
    file.write_text(yaml.safe_dump({"backends": [backend]}))
    return file


def check(*words: str) -> Result:
    return CliRunner().invoke(app, ["check", *words])


async def checked(file: Path) -> Result:
    return await asyncio.to_thread(check, str(file), "--connect")


async def test_a_backend_that_lists_its_models_is_ok(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        done = await checked(written(tmp_path, upstream.url, ["up-1", "*"]))
        assert done.exit_code == 0
        assert done.stdout.splitlines()[1:] == ["up: ok, 1 models: up-1"]
        assert upstream.checked[0].headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (error_reply(401, f"no such key {SECRET}"), "its key was refused: HTTP 401"),
        (error_reply(404), "/v1/models is 404. base_url is what stands before /chat/completions"),
        (error_reply(500), "is no list of models (HTTP 500)"),
    ],
)
async def test_what_is_wrong_is_one_line_without_the_key(
    reply: Reply, says: str, tmp_path: Path
) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.checks = lambda _: reply
        done = await checked(written(tmp_path, upstream.url, ["m"]))
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("up: ")
    assert says in line
    assert SECRET not in done.output


async def test_one_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    file = tmp_path / "kvgate.yaml"
    file.write_text("backends: [{name: gone, base_url: 'http://127.0.0.1:1/v1', models: [g]}]")
    done = await checked(file)
    assert done.exit_code == 1
    assert done.stderr == "gone: http://127.0.0.1:1/v1: gone cannot be reached\n"


def test_without_backends_there_is_nothing_to_ask() -> None:
    done = check("--connect")
    assert done.exit_code == 0
    assert done.stdout.endswith("no backends: the embedded engine answers alone\n")
