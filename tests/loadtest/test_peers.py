"""Peers that are not there are named; those that are get a configuration of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from loadtest import peers


def test_litellm_that_is_not_there_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(peers.AbsentError, match=r"not installed: .*--install"):
        peers.litellm(tmp_path, "http://127.0.0.1:1", "sk-k", None)


def test_a_broken_environment_of_litellm_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = peers.place() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(peers.AbsentError, match="not whole"):
        peers.litellm(tmp_path, "http://127.0.0.1:1", "sk-k", None)


def test_nginx_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.peers.shutil.which", lambda *_, **__: None)
    with pytest.raises(peers.AbsentError, match="nginx-light"):
        peers.nginx(tmp_path, 1, None)


def test_llama_cpp_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(peers.AbsentError, match="peers"):
        peers.llama_cpp(tmp_path, tmp_path / "model.gguf", threads=2)


def test_litellm_asks_the_upstream_once_and_keeps_answers_in_its_memory() -> None:
    made = yaml.safe_load(peers.litellm_config("http://127.0.0.1:9000"))
    assert made["model_list"][0]["litellm_params"]["api_base"] == "http://127.0.0.1:9000/v1"
    assert made["litellm_settings"]["cache_params"] == {"type": "local"}
    assert made["litellm_settings"]["num_retries"] == 0


def test_nginx_listens_on_loopback_and_is_pinned_where_it_may_be() -> None:
    made = peers.nginx_config(Path("/x"), 9400, 9000, core=1, root=True)
    assert "listen 127.0.0.1:9400;" in made
    assert "server 127.0.0.1:9000;" in made
    assert "worker_cpu_affinity 10;" in made
    assert "user root;" in made
    assert made.count("{") == made.count("}")
    other = peers.nginx_config(Path("/x"), 9400, 9000, core=None, root=False)
    assert "worker_cpu_affinity" not in other
    assert "user root;" not in other
