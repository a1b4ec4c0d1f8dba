"""The README is true: its commands are the gate's, its calls run, its links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.kit.served import Served

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_gate_installs_and_runs_what_the_readme_says() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    (command,) = [line for line in README.splitlines() if line.endswith("-m tests")]
    assert "pip install -e '.[engine,loadtest,test]'" in command
    assert "pip install -q -e '.[engine,loadtest,test]'" in gate
    assert ".venv/bin/python -m tests" in gate


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.model
def test_the_calls_run_and_the_second_is_a_hit(
    kvgate: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, shared = (
        block.replace("http://127.0.0.1:8080", kvgate.url) for block in blocks("python")
    )
    scope: dict[str, object] = {}

    def printed(block: str) -> str:
        exec(compile(block, "README.md", "exec"), scope)
        return capsys.readouterr().out.strip()

    assert printed(first).endswith("False")
    assert printed(first).endswith("True")
    assert "x-cache-debug" in printed(second).lower()
    client = scope["client"]
    assert isinstance(client, OpenAI)
    printed(shared)
    held = client.get("/cache/contexts/review-team", cast_to=dict[str, Any])
    assert held["usage"]["users"] == {"dev1": 1}
    client.close()
