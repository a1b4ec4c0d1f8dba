"""The engine is restarted, or killed: the same prompt is read from disk and answered to the same bit.

`python -m engine` over HTTP with the real model: greedy text, and the log-probabilities of each token.
"""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_process import Child, started

STORY = "The lighthouse keeper wrote down the wind, the tide and the name of every ship. "
BODY = {
    "messages": [
        {"role": "system", "content": STORY * 18},
        {"role": "user", "content": "What did the keeper write down?"},
    ],
    "temperature": 0,
    "max_tokens": 24,
    "logprobs": True,
    "top_logprobs": 3,
}


def engine(model: Path, tmp_path: Path, number: int) -> Any:
    folder = tmp_path / str(number)
    folder.mkdir()
    disk = str(tmp_path / "kv")
    return started(model, folder, "--kv-memory", "64MiB", "--kv-disk-path", disk)


def cold(child: Child) -> dict[str, Any]:
    with urllib.request.urlopen(child.ready() + "/kv/stats") as response:
        told: dict[str, Any] = json.load(response)["tiers"]["cold"]
    return told


def said(answer: dict[str, Any]) -> tuple[str, Any]:
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["logprobs"]


@pytest.mark.model
def test_after_a_restart_and_after_a_kill_the_answer_is_the_same_to_the_bit(
    smollm_path: Path, tmp_path: Path
) -> None:
    with engine(smollm_path, tmp_path, 1) as child:
        first = child.post("/v1/chat/completions", BODY)
        code, _ = child.end(signal.SIGTERM)
        assert code == 0
    assert first["kv_receipt"]["cold"] == 0

    with engine(smollm_path, tmp_path, 2) as child:
        assert cold(child)["blocks"] >= 9, "written when it was told to stop"
        second = child.post("/v1/chat/completions", BODY)
        assert second["kv_receipt"]["cold"] >= 8 * 32
        assert second["kv_receipt"]["moved_bytes"] >= 8 * 32 * 23_040
        assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 8 * 32
        assert said(second) == said(first)
        before, deadline = cold(child)["writes"], time.monotonic() + 60
        other = child.post("/v1/chat/completions", BODY | {"kv": {"salt": "another"}})
        assert other["kv_receipt"]["cold"] == 0
        while cold(child)["writes"] < before + 9:  # written while it idles
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.end(signal.SIGKILL)

    with engine(smollm_path, tmp_path, 3) as child:
        for kv in ({}, {"salt": "another"}):
            third = child.post("/v1/chat/completions", BODY | {"kv": kv})
            assert third["kv_receipt"]["cold"] >= 8 * 32, kv
            assert said(third) == said(first)
        assert cold(child)["quarantined"] == 0
        assert child.post("/kv/invalidate", {"salt": "another"})["tokens"] > 0
        child.end(signal.SIGKILL)

    with engine(smollm_path, tmp_path, 4) as child:
        gone = child.post("/v1/chat/completions", BODY | {"kv": {"salt": "another"}})
        assert gone["kv_receipt"]["cold"] == 0, "forgotten before a kill"
        assert child.post("/v1/chat/completions", BODY)["kv_receipt"]["cold"] >= 8 * 32
