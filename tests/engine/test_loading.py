"""From options to a service, on a tiny model."""

from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError, ModelLoadError
from engine.loading import make_service
from engine.service import Service
from tests.kit.tiny_model import TinyLlama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(context_tokens=100).write(tmp_path_factory.mktemp("model") / "tiny")


def made(folder: Path, **options: object) -> Service:
    options = {"model": str(folder), "kv_memory": 1 << 20, "threads": 1, **options}
    config = EngineConfig(**options)  # type: ignore[arg-type]
    return make_service(config, wall_clock=lambda: 7.9, on_fatal=pytest.fail)


def test_the_model_is_named_after_its_folder_and_answers_to_its_path(folder: Path) -> None:
    service = made(folder)
    assert (service.model, service.created) == ("tiny", 7)
    for name in ("tiny", str(folder), "default", None):
        service.check_model(name)
    assert made(folder, served_name="mine").model == "mine"


def test_the_smaller_of_option_model_and_pool_bounds_a_request(folder: Path) -> None:
    assert made(folder).engine.scheduler.capacity_tokens == 100
    assert made(folder, max_model_len=50).engine.scheduler.capacity_tokens == 50
    block_bytes = 2 * 2 * 2 * 16 * 4 * 32
    service = made(folder, kv_memory=2 * block_bytes, dtype="float32")
    assert service.engine.scheduler.capacity_tokens == 64
    assert service.stats()["kv_bytes"] == 2 * block_bytes
    assert service.stats()["dtype"] == "float32"
    assert service.stats()["kv_used_bytes"] == 0
    assert service.stats()["kv_token_bytes"] * 32 == block_bytes


def test_token_ids_are_bounded_by_the_smaller_of_tokenizer_and_model(folder: Path) -> None:
    assert made(folder).vocabulary == 266


def test_two_dtypes_never_share_a_block(folder: Path) -> None:
    one, other = (made(folder, dtype=dtype) for dtype in ("float32", "bfloat16"))
    roots = {service.engine.scheduler.index.root("") for service in (one, other)}
    assert len(roots) == 2


def test_too_little_and_too_much_kv_memory_are_the_operators_fault(folder: Path) -> None:
    with pytest.raises(ConfigError, match="kv_memory: 1000 bytes hold no block"):
        made(folder, kv_memory=1000)
    with pytest.raises(ConfigError, match=r"kv_memory: .* cannot be had"):
        made(folder, kv_memory=1 << 50)


def test_a_device_that_is_not_there_is_the_operators_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        made(folder, device="cuda")


def test_a_path_that_is_not_there_is_not_taken_for_a_models_name(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", tmp_path / "nothing.gguf"):
        with pytest.raises(ModelLoadError, match="no such file or folder"):
            made(missing)
