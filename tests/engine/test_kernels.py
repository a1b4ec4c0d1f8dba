"""Which kernels run a model: the native ones where nothing speaks for torch, and why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import kernels
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelLoadError
from engine.kernels import Made, make
from engine.native.build import NoNativeError
from engine.native.library import Library
from engine.native.runner import NativeRunner
from engine.runner import Runner
from tests.kit.hf_model import deepseek_v2, write_hf
from tests.kit.tiny_model import TinyLlama

Making = Callable[..., Made]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(heads=2, kv_heads=1).write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def making(native: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Making:
    """Make the tiny model with some options, on a machine with native kernels."""
    monkeypatch.setattr(kernels, "library", lambda: native)

    def made(**options: Any) -> Made:
        asked: dict[str, Any] = {"model": str(folder), "kv_memory": 1 << 20, "threads": 1}
        return make(EngineConfig(**asked | {"device": "cpu"} | options), on_fatal=pytest.fail)

    return made


def test_a_llama_with_no_wishes_runs_on_the_native_kernels(making: Making) -> None:
    made = making()
    assert isinstance(made.runner, NativeRunner)
    assert (made.kernels, made.dtype, made.mla, made.tiles) == ("native", "int8", None, "any")
    assert made.runner.exact
    assert made.runner.cache.layout.element == "bfloat16"
    assert made.runner.cache.nbytes <= 1 << 20
    assert making(kernels="native").fingerprint == made.fingerprint


SPEAKS: dict[str, tuple[dict[str, Any], str]] = {
    "float32": ({"dtype": "float32"}, "dtype is float32"),
    "bfloat16": ({"dtype": "bfloat16"}, "dtype is bfloat16"),
    "fp8": ({"kv_dtype": "fp8"}, "kv_dtype is fp8"),
    "small blocks": ({"block_tokens": 8}, "block_tokens is 8"),
}


@pytest.mark.parametrize("name", list(SPEAKS))
def test_what_speaks_for_torch_is_served_by_torch_and_said(
    making: Making, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    options, reason = SPEAKS[name]
    with caplog.at_level(logging.INFO, logger="engine"):
        made = making(**options)
    assert isinstance(made.runner, Runner)
    assert made.kernels == "torch"
    assert f"kernels: torch; {reason}" in caplog.text


@pytest.mark.parametrize("name", list(SPEAKS))
def test_native_kernels_and_what_speaks_for_torch_are_the_operators_contradiction(
    making: Making, name: str
) -> None:
    options, reason = SPEAKS[name]
    with pytest.raises(ConfigError) as raised:
        making(kernels="native", **options)
    text = str(raised.value)
    assert text.startswith(f"kernels: native was asked for, but {reason}")
    assert "\n" not in text


def test_ranks_and_other_devices_speak_for_torch(folder: Path) -> None:
    config = EngineConfig(model=str(folder), tensor_parallel=2)
    with pytest.raises(NoNativeError, match="tensor_parallel is 2"):
        kernels._check_wishes(config, torch.device("cpu"))
    config = EngineConfig(model=str(folder), device="cuda")
    with pytest.raises(NoNativeError, match="device is cuda"):
        kernels._check_wishes(config, torch.device("cuda"))
    kernels._check_wishes(EngineConfig(model=str(folder)), torch.device("cpu"))


def test_torch_that_was_asked_for_is_torch(making: Making) -> None:
    assert isinstance(making(kernels="torch").runner, Runner)


def test_other_families_and_heads_of_16_run_on_torch(
    making: Making, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="engine")
    assert making(model=str(TinyLlama().write(tmp_path / "small"))).kernels == "torch"
    assert "kernels: torch; head_dim is 16, no multiple of 32" in caplog.text
    latent = write_hf(deepseek_v2(), tmp_path / "latent").folder
    assert making(model=str(latent)).kernels == "torch"
    assert "kernels: torch; latent attention and experts run on torch" in caplog.text
    with pytest.raises(ConfigError, match="kernels: native was asked for, but latent attention"):
        making(model=str(latent), kernels="native")


def test_without_a_compiler_auto_is_torch_and_native_is_an_error(
    making: Making, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Library:
        raise NoNativeError("there is no C compiler (CC, cc, gcc, clang)")

    monkeypatch.setattr(kernels, "library", none)
    caplog.set_level(logging.INFO, logger="engine")
    assert making().kernels == "torch"
    assert "kernels: torch; there is no C compiler" in caplog.text
    with pytest.raises(ConfigError, match="native was asked for, but there is no C compiler"):
        making(kernels="native")


def test_blocks_of_both_kernels_and_of_other_sources_never_meet(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = {
        making().root,
        making(kernels="torch", dtype="float32").root,
        making(kernels="torch", dtype="bfloat16").root,
    }
    monkeypatch.setattr(kernels, "code_version", lambda: "another")
    roots.add(making().root)
    assert len(roots) == 4


def test_a_model_that_is_damaged_is_not_tried_on_torch(making: Making, tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", tmp_path / "nothing.gguf"):
        with pytest.raises(ModelLoadError, match="no such file or folder"):
            making(model=str(missing))


def test_too_little_and_too_much_kv_memory_are_the_operators_fault(making: Making) -> None:
    with pytest.raises(ConfigError, match="kv_memory: 1000 bytes hold no block"):
        making(kv_memory=1000)
    with pytest.raises(ConfigError, match=r"kv_memory: .* cannot be had"):
        making(kv_memory=1 << 50)


def test_as_many_threads_as_cores_unless_it_was_said(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 4, 5})
    for threads, wanted in ((0, 3), (2, 2)):
        runner = making(threads=threads).runner
        assert isinstance(runner, NativeRunner)
        assert runner.model.threads == wanted


@pytest.mark.model
def test_the_default_model_runs_on_the_native_kernels(making: Making, smollm_path: Path) -> None:
    made = making(model=str(smollm_path), kv_memory=1 << 24)
    assert (made.kernels, made.config.vocab) == ("native", 49152)
