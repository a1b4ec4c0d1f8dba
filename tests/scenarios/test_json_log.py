"""With ``--log-format json`` every line is JSON: the gateway's, its workers', its engine's."""

import os
import signal
from pathlib import Path

import pytest

from tests.kit.served import serving
from tests.kit.tiny_model import TinyLlama

# Run by the engine's interpreter at its start: what no log of ours has made.
STRAY = """
import sys
if "engine" in sys.orig_argv:
    print("a library's own words")
    print("half a bar\\r\\x1b[2Khalf a bar", file=sys.stderr)
    sys.stderr.write("Traceback (most recent call last):\\n  File nowhere\\n")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_is_an_object_whoever_wrote_it(tmp_path: Path, workers: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(STRAY)
    environ = {
        "PYTHONPATH": str(tmp_path),
        "KVGATE_ENGINE__MODEL": str(TinyLlama().write(tmp_path / "model")),
        "KVGATE_ENGINE__KERNELS": "torch",
        "KVGATE_ENGINE__KV_MEMORY": "16MiB",
        "KVGATE_CACHE_DIR": str(tmp_path / "cache"),
    }
    with serving(f"--workers={workers}", environ=environ) as served:
        (started,) = [line for line in served.lines if line["event"] == "engine starting"]
        os.kill(started["pid"], signal.SIGKILL)
        served.wait_until_it_says("engine crashed")
        served.wait_until_it_says("engine ready", times=2)
        assert served.interrupt() == 0
    assert len(served.lines) == len(served.text), served.log()
    for line in served.lines:
        assert {"ts", "severity", "logger", "event"} <= line.keys()
    events = [line["event"] for line in served.lines]
    for said in ("a library's own words", "half a bar", "  File nowhere", "ready"):
        assert said in events, events
