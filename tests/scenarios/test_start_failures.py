"""What keeps kvgate from starting is told once, in one line, and ends it with exit code 78."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.served import serving
from tests.kit.tiny_model import TinyLlama

QUESTION = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


def without_torch(folder: Path) -> dict[str, str]:
    """As where kvgate was installed without its engine extra."""
    (folder / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    return {"PYTHONPATH": str(folder), "KVGATE_ENGINE__MODEL": str(folder)}


def without_compiler(folder: Path) -> dict[str, str]:
    model = TinyLlama(heads=2, kv_heads=1).write(folder / "model")
    (folder / "bin").mkdir()
    return {
        "PATH": str(folder / "bin"),
        "CC": "",
        "KVGATE_CACHE_DIR": str(folder / "cache"),
        "KVGATE_ENGINE__KERNELS": "native",
        "KVGATE_ENGINE__MODEL": str(model),
    }


def of_file(content: bytes) -> Callable[[Path], dict[str, str]]:
    def bad(folder: Path) -> dict[str, str]:
        (folder / "bad.gguf").write_bytes(content)
        return {"KVGATE_ENGINE__MODEL": str(folder / "bad.gguf")}

    return bad


def of_folder(name: str, content: str) -> Callable[[Path], dict[str, str]]:
    def bad(folder: Path) -> dict[str, str]:
        model = TinyLlama().write(folder / "model")
        (model / name).write_text(content)
        return {"KVGATE_ENGINE__MODEL": str(model), "KVGATE_ENGINE__KERNELS": "torch"}

    return bad


def named(model: str) -> Callable[[Path], dict[str, str]]:
    return lambda _: {"KVGATE_ENGINE__MODEL": model}


@pytest.mark.parametrize(
    ("environ_of", "complaint", "log_format"),
    [
        pytest.param(without_torch, "No module named 'torch'", "json", id="no engine extra"),
        pytest.param(
            without_compiler, "kernels: native was asked for, but", "console", id="no compiler"
        ),
        pytest.param(named("/nowhere/a.gguf"), "/nowhere/a.gguf", "console", id="no such file"),
        pytest.param(named("gpt-9"), "neither a file, nor a folder", "json", id="no such name"),
        pytest.param(of_file(b"GGUF\3\0\0\0 cut"), "bad.gguf", "json", id="a file cut short"),
        pytest.param(
            of_folder("config.json", "{"), "config.json", "console", id="no model's folder"
        ),
    ],
)
def test_an_engine_that_cannot_start_is_one_line_and_exit_code_78(
    environ_of: Callable[[Path], dict[str, str]], complaint: str, log_format: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port=0", f"--log-format={log_format}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environ_of(tmp_path)},
    )
    assert ended.returncode == 78, ended.stderr
    told = [line for line in ended.stderr.splitlines() if complaint in line]
    assert len(told) == 1, ended.stderr
    assert "engine cannot start" in told[0]
    assert "Traceback" not in ended.stderr
    if log_format == "json":
        lines = [json.loads(line) for line in ended.stderr.splitlines()]
        assert [line["severity"] for line in lines].count("error") == 1
    assert ended.stdout == ""


def test_several_workers_end_the_same_way(tmp_path: Path) -> None:
    environ = {"KVGATE_ENGINE__MODEL": str(tmp_path / "nothing.gguf")}
    with serving("--workers=2", environ=environ, ready=False) as served:
        assert served.process.wait(timeout=120) == 78
    assert [line["event"] for line in served.lines].count("engine cannot start") == 1


def test_beside_other_backends_the_gateway_goes_on_without_the_engine(tmp_path: Path) -> None:
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    environ = {
        "KVGATE_BACKENDS": json.dumps([backend]),
        "KVGATE_ENGINE__ENABLED": "true",
        "KVGATE_ENGINE__MODEL": str(tmp_path / "nothing.gguf"),
    }
    with serving(environ=environ, ready=False) as served:
        served.wait_until_it_says("engine cannot start")
        assert served.get("/healthz")[0] == 200
        assert served.get("/readyz")[1]["waiting_for"] == {"engine": "failed"}
        assert served.interrupt() == 0


def test_without_a_network_the_model_is_fetched_later_and_readyz_says_so(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    environ = {
        "KVGATE_CACHE_DIR": str(tmp_path),
        "PIP_INDEX_URL": f"{nobody}/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_TIMEOUT": "1",
    }
    with serving(environ=environ, ready=False) as served:
        for times in (1, 2):
            served.wait_until_it_says("engine restarts", times=times)
        status, said = served.get("/readyz")
        assert status == 503
        assert (
            "the model smollm2-135m-instruct could not be fetched" in said["waiting_for"]["engine"]
        )
        request = urllib.request.Request(
            f"{served.url}/v1/chat/completions",
            json.dumps(QUESTION).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught, urllib.request.urlopen(request):
            pass
        assert caught.value.code == 503
        assert int(caught.value.headers["Retry-After"]) < 60
        caught.value.close()
        assert served.interrupt() == 0
    assert "Traceback" not in served.log()
    assert len(served.lines) == len(served.text), served.log()
