"""The bundled engine's port, as another process of this machine finds it: it answers its gateway only."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.kit.served import Served, serving

pytestmark = pytest.mark.model

ASK = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def engine_of(served: Served) -> tuple[str, list[str]]:
    """Where the engine listens, and its command line."""
    for pid in served.children():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "--port-file" in words:
            port = int(Path(words[words.index("--port-file") + 1]).read_text())
            return f"http://127.0.0.1:{port}", words
    raise AssertionError("no engine runs")


def status(url: str, body: object = None, key: str | None = None) -> int:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_its_gateway_commands_the_engine(smollm_path: Path, workers: str) -> None:
    environ = {"KVGATE_ENGINE__MODEL": str(smollm_path)}
    with serving("--workers", workers, environ=environ) as served:
        engine, words = engine_of(served)
        for key in (None, "guessed"):
            assert status(f"{engine}/v1/chat/completions", ASK, key) == 401
            assert status(f"{engine}/kv/invalidate", {"salt": None}, key) == 401
            assert status(f"{engine}/v1/models", key=key) == 401
        assert status(f"{engine}/healthz") == 200
        assert status(f"{served.url}/v1/chat/completions", ASK) == 200
        assert status(f"{served.url}/v1/cache/stats") == 200
        assert "TOKEN" not in " ".join(words).upper()
