"""A folder with a config and safetensors, and what is said of folders that are none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.weights.load import load
from tests.kit.stage import CPU
from tests.kit.tiny_model import TinyLlama


def load_here(path: Path) -> None:
    load(path, device=CPU, dtype=torch.float32)


def changed_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyLlama().write(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not known here"),
        ({"attention_bias": True}, r"tensor '.*_proj.bias' is missing"),
        ({"mlp_bias": True}, "mlp_bias True is not known here"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not known here"),
        ({"num_hidden_layers": None}, "config.json: TypeError"),
        ({"num_attention_heads": 0}, "config.json: heads is 0"),
        ({"head_dim": 15}, "head dimension 15 is odd"),
        ({"hidden_size": 128, "head_dim": 16}, r"tensor '.*' has shape"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope' is not known"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "config.json: KeyError 'factor'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_here(changed_config(folder, **changes))


def test_the_older_place_of_rope_theta_is_read(folder: Path) -> None:
    changed_config(folder, rope_parameters=None, rope_theta=5000.0)
    assert load(folder, device=CPU, dtype=torch.float32).config.rope_theta == 5000.0


def test_quantised_weights_are_refused_by_name(folder: Path) -> None:
    changed_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelLoadError, match=r"config\.json: quantization_config .*fp8"):
        load_here(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\ufeff"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json: not (a )?JSON"):
        load_here(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_missing_from_a_folder_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelLoadError, match=r"config\.json|tokenizer\.json|\*\.safetensors"):
        load_here(folder)


def test_safetensors_cut_short_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: damaged or cut short"):
        load_here(folder)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ModelLoadError, match="is not a file of this folder"):
        load_here(folder)
    index.write_text("{}")
    with pytest.raises(ModelLoadError, match="no weight_map"):
        load_here(folder)


def test_a_shard_that_lacks_its_tensor_is_named(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    name = next(iter(tensors))
    del tensors[name]
    save_file(tensors, shard)
    with pytest.raises(ModelLoadError, match=f"00002.safetensors: tensor '{name}' cannot be read"):
        load_here(folder)


def test_a_head_stored_beside_a_tied_table_is_ignored(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, file)
    load_here(folder)
