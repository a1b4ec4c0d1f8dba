"""Every tensor of a model, against what transformers writes."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from engine.weights.config_json import read_config
from engine.weights.shapes import tensor_shapes
from tests.kit.hf_model import deepseek_v2, deepseek_v3, write_hf


@pytest.mark.parametrize("kind", [deepseek_v2, deepseek_v3], ids=["v2", "v3"])
def test_names_and_shapes_are_those_of_a_checkpoint(kind: object, tmp_path: Path) -> None:
    assert callable(kind)
    folder = write_hf(kind(), tmp_path / "model").folder
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 -- not a dict
    assert tensor_shapes(read_config(folder / "config.json")) == found


def test_layers_before_the_first_with_experts_are_dense(tmp_path: Path) -> None:
    folder = write_hf(deepseek_v3(), tmp_path / "model").folder
    file = folder / "config.json"
    numbers = json.loads(file.read_text()) | {"first_k_dense_replace": 2}
    file.write_text(json.dumps(numbers))
    shapes = tensor_shapes(read_config(file))
    assert "model.layers.1.mlp.gate_proj.weight" in shapes
    assert "model.layers.2.mlp.experts.7.gate_proj.weight" in shapes
