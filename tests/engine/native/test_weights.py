"""Which numbers of a file the native model has: those of its blocks, and of others the nearest 8 bits."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.native.library import Library
from engine.native.model import Weights
from engine.native.plain import BLOCK_BYTES, dequantised, quantised_blocks
from engine.native.weights import Arena, Packer
from engine.weights.gguf import GgufFile
from engine.weights.load import load
from engine.weights.safetensors import SafetensorsFolder
from tests.kit.native import read_weights
from tests.kit.stage import CPU
from tests.kit.tiny_gguf import write_gguf
from tests.kit.tiny_model import TinyLlama

TINY = TinyLlama(heads=2, kv_heads=1, tied=False)
QUERY, GATE = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.gate_proj"


def held(library: Library, packer: Packer, *names: str) -> NDArray[np.float32]:
    """What a packed matrix multiplies with (outputs, inputs): its products with unit vectors.

    A unit vector is 127 * (1/127) in 8 bits, so the last digit is not the matrix's own.
    """
    blocks, bits = packer.blocks(*names)
    arena = Arena(packer.size_bytes(blocks, bits))  # held: the matrix is a pointer into it
    matrix = packer.pack(arena, blocks, bits)
    return library.linear(matrix, np.eye(matrix.inputs, dtype=np.float32)).T


def assert_near(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=3e-7 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_blocks_of_a_file_are_taken_as_they_are(
    native: Library, tmp_path: Path, kind: Kind
) -> None:
    file = GgufFile(write_gguf(TINY, tmp_path / "tiny.gguf", kind=kind))
    packer = Packer(native, file)
    for name in (QUERY, GATE, "lm_head"):
        wanted = file.tensor(f"{name}.weight").numpy()
        blocks, bits = packer.blocks(name)
        assert bits == (8 if kind == Kind.Q8_0 else 4)
        np.testing.assert_array_equal(dequantised(blocks, bits), wanted)
        assert_near(held(native, packer, name), wanted)


def test_matrices_of_one_layer_lie_one_under_the_other(native: Library, tmp_path: Path) -> None:
    file = GgufFile(write_gguf(TINY, tmp_path / "tiny.gguf", kind=Kind.Q4_1))
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    wanted = np.concatenate([file.tensor(f"{name}.weight").numpy() for name in names])
    assert_near(held(native, Packer(native, file), *names), wanted)


class Mixed:
    """A file in which one matrix is kept in other bits than its neighbours."""

    def __init__(self, few: GgufFile, many: GgufFile, name: str) -> None:
        self.path, self.config, self.names = few.path, few.config, few.names
        self._few, self._many, self._name = few, many, name

    def _of(self, name: str) -> GgufFile:
        return self._many if name == self._name else self._few

    def tensor(self, name: str) -> torch.Tensor:
        return self._of(name).tensor(name)

    def stored(self, name: str) -> tuple[int, NDArray[np.uint8]] | None:
        return self._of(name).stored(name)


@pytest.mark.parametrize("other", [Kind.Q8_0, Kind.F32])
def test_neighbours_of_other_bits_are_all_brought_into_8(
    native: Library, tmp_path: Path, other: Kind
) -> None:
    few = GgufFile(write_gguf(TINY, tmp_path / "few.gguf", kind=Kind.Q4_1))
    many = GgufFile(write_gguf(TINY, tmp_path / "many.gguf", kind=other))
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    mixed = Mixed(few, many, f"{names[2]}.weight")
    blocks, bits = Packer(native, mixed).blocks(*names)
    assert bits == 8
    wanted = np.concatenate([mixed.tensor(f"{name}.weight").numpy() for name in names])
    np.testing.assert_array_equal(
        dequantised(blocks, 8), dequantised(quantised_blocks(wanted, 8), 8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_become_the_nearest_8_bits(
    native: Library, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = TINY.write(tmp_path / "tiny")
    file = folder / "model.safetensors"
    save_file({name: one.to(dtype) for name, one in load_file(file).items()}, file)
    source = SafetensorsFolder(folder)
    packer = Packer(native, source)
    wanted = source.tensor(f"{GATE}.weight").float().numpy()
    found = held(native, packer, GATE)
    assert_near(found, quants.dequantize(quants.quantize(wanted, Kind.Q8_0), Kind.Q8_0))
    steps = np.abs(wanted.reshape(-1, 32)).max(axis=1) / 127
    most = 0.57 * steps[:, None]  # half a step, and 127 times the last digit of a scale in 16 bits
    assert (np.abs(found - wanted).reshape(-1, 32) <= most).all()
    vector = packer.vector("model.norm.weight")
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, source.tensor("model.norm.weight").float().numpy())


def test_an_arena_hands_out_zeros_on_lines_of_their_own() -> None:
    arena = Arena(1000)
    one, two = arena.take(100), arena.take(800)
    assert not one.any()
    assert not two.any()
    assert one.ctypes.data % 64 == two.ctypes.data % 64 == 0
    one[:], two[:] = 1, 2
    assert one.sum() == 100


# -- what is refused --------------------------------------------------------------------------------


def changed(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """A checkpoint with some tensors (dots as __) exchanged, added or gone."""
    file = TINY.write(folder) / "model.safetensors"
    found = load_file(file)
    for name, tensor in tensors.items():
        found.pop(name.replace("__", "."), None)
        if tensor is not None:
            found[name.replace("__", ".")] = tensor
    save_file(found, file)
    return folder


NORM = "model__layers__1__input_layernorm__weight"
DOWN = "model__layers__1__mlp__down_proj__weight"


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({DOWN: None}, r"tensor 'model\.layers\.1\.mlp\.down_proj\.weight' is missing"),
        ({NORM: None}, r"tensor 'model\.layers\.1\.input_layernorm\.weight' is missing"),
        ({"model__strange": torch.zeros(3)}, r"tensor 'model\.strange' is not part of a llama model"),
        ({DOWN: torch.zeros(64, 96)}, r"down_proj\.weight' has shape \(64, 96\), not \(64, 128\)"),
        ({NORM: torch.zeros(32)}, r"input_layernorm\.weight' has shape \(32,\), not \(64,\)"),
    ],
)  # fmt: skip
def test_missing_surplus_and_misshaped_tensors_are_named_in_torchs_words(
    native: Library, tmp_path: Path, tensors: dict[str, Any], complaint: str
) -> None:
    folder = changed(tmp_path / "bad", **tensors)
    with pytest.raises(ModelLoadError, match=complaint) as here:
        read_weights(native, folder)
    with pytest.raises(ModelLoadError) as there:
        load(folder, device=CPU, dtype=torch.float32)
    assert str(here.value) == str(there.value)
    assert str(here.value).startswith(str(tmp_path))


def test_a_matrix_of_blocks_with_another_width_is_named(native: Library, tmp_path: Path) -> None:
    narrow = TinyLlama(heads=2, kv_heads=1, tied=False, intermediate=96)
    path = write_gguf(
        narrow, tmp_path / "bad.gguf", kind=Kind.Q4_1, metadata={"llama.feed_forward_length": 128}
    )
    with pytest.raises(ModelLoadError, match=r"bad\.gguf: tensor '.*gate_proj\.weight' has shape"):
        read_weights(native, path)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [NORM, DOWN, "model__embed_tokens__weight"])
def test_numbers_that_are_not_finite_are_refused(
    native: Library, tmp_path: Path, name: str, poison: float
) -> None:
    whole = TINY.weights()[name.replace("__", ".")].clone()
    whole.view(-1)[7] = poison
    folder = changed(tmp_path / "bad", **{name: whole})
    with pytest.raises(
        ModelLoadError, match=rf"{name.replace('__', '.')}' holds numbers that are not"
    ):
        read_weights(native, folder)


@pytest.mark.parametrize(("kind", "bits"), [(Kind.Q4_0, 4), (Kind.Q4_1, 4), (Kind.Q8_0, 8)])
def test_scales_that_are_no_numbers_are_refused(
    native: Library, tmp_path: Path, kind: Kind, bits: int
) -> None:
    path = write_gguf(TINY, tmp_path / "tiny.gguf", kind=kind)
    blocks = GgufFile(path).stored(f"{GATE}.weight")
    assert blocks is not None
    data = path.read_bytes()
    whole = blocks[1].tobytes()
    assert data.count(whole) == 1
    at = data.index(whole) + (18 if kind == Kind.Q4_0 else BLOCK_BYTES[bits])
    path.write_bytes(data[:at] + np.float16("nan").tobytes() + data[at + 2 :])
    with pytest.raises(ModelLoadError, match=rf"{GATE}\.weight' holds numbers that are not finite"):
        read_weights(native, path)


def test_a_number_too_large_for_a_scale_is_refused(native: Library, tmp_path: Path) -> None:
    folder = changed(tmp_path / "bad", **{DOWN: torch.full((64, 128), 1e30)})
    with pytest.raises(ModelLoadError, match="not finite"):
        read_weights(native, folder)


def test_what_the_model_is_made_of_says_its_shapes(native: Library, tmp_path: Path) -> None:
    weights: Weights = read_weights(native, TINY.write(tmp_path / "tiny"))
    layer = weights.layers[1]
    shapes = {name: (getattr(layer, name).outputs, getattr(layer, name).inputs) for name in ("qkv", "out", "gate", "up", "down")}  # fmt: skip
    assert shapes == {"qkv": (128, 64), "out": (64, 64), "gate": (128, 64), "up": (128, 64), "down": (64, 128)}  # fmt: skip
    assert (weights.embedding.outputs, weights.head.outputs) == (320, 320)
    assert weights.cosine.shape == weights.sine.shape == (2048, 16)
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["head_dim"] == 32


def test_a_system_without_large_pages_has_an_arena_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # no such advice: refused as it is there
    taken = Arena(1000).take(1000)
    assert not taken.any()
    taken[:] = 1
