"""Bad checkpoints are refused with the tensor's or the file's name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.weights.load import load
from tests.kit.hf_model import deepseek_v3, write_hf
from tests.kit.stage import CPU, make_stage, sequence

EXPERT = "model.layers.2.mlp.experts.5.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf(deepseek_v3(), tmp_path / "v3").folder


def load_here(folder: Path) -> None:
    load(folder, device=CPU, dtype=torch.float32)


def changed(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name, None)
    save_file(tensors if tensor is None else tensors | {name: tensor}, file)


@pytest.mark.parametrize("name", [EXPERT, "model.layers.1.mlp.gate.e_score_correction_bias"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    changed(folder, name, None)
    with pytest.raises(ModelLoadError, match=f"tensor '{name}' is missing"):
        load_here(folder)


@pytest.mark.parametrize("name", [EXPERT, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"])
def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder: Path, name: str) -> None:
    changed(folder, name, torch.zeros(7, 3))
    with pytest.raises(ModelLoadError, match=rf"tensor '{name}' has shape \(7, 3\), not \("):
        load_here(folder)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    changed(folder, "model.layers.0.self_attn.q_proj.weight", torch.zeros(2, 2))
    with pytest.raises(ModelLoadError, match=r"q_proj.weight' is not part of a deepseek_v3 model"):
        load_here(folder)


def test_an_unknown_architecture_is_named_with_its_file(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "mamba"}))
    with pytest.raises(ModelLoadError, match=r"config\.json: model_type 'mamba' is not known"):
        load_here(folder)


def test_a_pickle_is_refused_unread_with_its_name(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: a pickle can run any code"):
        load_here(folder)


def test_an_index_that_names_a_pickle_is_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin.*not a safetensors file"):
        load_here(folder)


def test_layers_that_guess_further_ahead_are_left_out(folder: Path) -> None:
    one = sequence([5, 6, 7], [0])
    before = make_stage(folder, dtype=torch.float32).prefill(one)
    changed(folder, "model.layers.3.eh_proj.weight", torch.ones(64, 128))
    assert torch.equal(make_stage(folder, dtype=torch.float32).prefill(one), before)
