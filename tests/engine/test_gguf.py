"""What a GGUF holds, and what is said of files that are none."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants

from engine.errors import ModelLoadError
from engine.weights.gguf import GgufFile
from engine.weights.load import load
from tests.kit.stage import CPU
from tests.kit.tiny_gguf import gguf_name, write_gguf
from tests.kit.tiny_model import TinyLlama


def load_here(path: Path) -> None:
    load(path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16])
def test_quantised_tensors_are_those_of_the_gguf_library(
    tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    file = GgufFile(write_gguf(TinyLlama(), tmp_path / "tiny.gguf", kind=kind))
    name = "model.layers.1.mlp.down_proj.weight"
    reader = GGUFReader(tmp_path / "tiny.gguf")
    theirs = next(t for t in reader.tensors if t.name == gguf_name(name))
    assert theirs.tensor_type == kind
    expected = torch.from_numpy(quants.dequantize(theirs.data, kind).copy())
    assert torch.equal(file.tensor(name), expected)


def test_our_way_of_reading_arrays_finds_what_the_librarys_reader_finds(tmp_path: Path) -> None:
    path = write_gguf(TinyLlama(), tmp_path / "tiny.gguf")
    theirs = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    assert GgufFile(path).metadata == theirs


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip", b"GGUF", b"GGUF\x03\0\0\0"])
def test_what_is_no_gguf_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.gguf: (not a GGUF|damaged or cut short)"):
        load_here(tmp_path / "model.gguf")


@pytest.mark.parametrize("part", [0.001, 0.01, 0.02, 0.05, 0.5, 0.99])
def test_a_gguf_cut_short_is_said_to_be_damaged(tmp_path: Path, part: float) -> None:
    whole = write_gguf(TinyLlama(), tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf: damaged or cut short"):
        load_here(tmp_path / "cut.gguf")


def test_metadata_that_is_no_text_is_said_to_be_damaged(tmp_path: Path) -> None:
    content = write_gguf(TinyLlama(), tmp_path / "whole.gguf").read_bytes()
    at = content.index(b"llama", content.index(b"general.architecture"))
    (tmp_path / "bad.gguf").write_bytes(content[:at] + b"\xff\xfe" + content[at + 2 :])
    with pytest.raises(ModelLoadError, match=r"bad\.gguf: metadata general\.arch.* is damaged"):
        load_here(tmp_path / "bad.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf", leave_out=name)
    with pytest.raises(ModelLoadError, match=f"tiny.gguf: tensor '{name}' is missing"):
        load_here(file)


def test_a_gguf_without_embedding_is_refused(tmp_path: Path) -> None:
    file = write_gguf(TinyLlama(), tmp_path / "t.gguf", leave_out="model.embed_tokens.weight")
    with pytest.raises(ModelLoadError, match=r"tensor 'token_embd\.weight' is missing"):
        load_here(file)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf", architecture="qwen2")
    with pytest.raises(ModelLoadError, match="architecture 'qwen2' is not known here"):
        load_here(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.attention.head_count_kv": 3}, "4 attention heads do not divide into 3 groups"),
        ({"llama.attention.head_count": 8}, r"tensor '.*k_proj.weight' has shape \(32, 64\)"),
        ({"llama.rope.dimension_count": 8}, "8 of 16 rotary dimensions"),
        ({"llama.block_count": 3}, r"'model\.layers\.2\..*' is missing"),
        ({"llama.block_count": 1}, r"'model\.layers\.1\..*' is not part of a llama model"),
        ({"llama.block_count": 0}, "layers is 0"),
    ],
)
def test_numbers_that_do_not_fit_the_tensors_are_refused(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf", metadata=changes)
    with pytest.raises(ModelLoadError, match=message):
        load_here(file)


def test_a_tensor_that_no_llama_has_is_named(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": torch.zeros(64)}
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf", extra=bias)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf: tensor 'blk\.0\.attn_q\.bias' is not"):
        load_here(file)


def test_rotary_factors_of_a_gguf_are_read(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": torch.linspace(1, 8, 8)}
    loaded = load(
        write_gguf(TinyLlama(), tmp_path / "t.gguf", extra=factors), device=CPU, dtype=torch.float32
    )
    assert loaded.config.rope_factors == tuple(torch.linspace(1, 8, 8).tolist())


def test_rotary_factors_of_another_length_are_refused(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": torch.ones(5)}
    file = write_gguf(TinyLlama(), tmp_path / "t.gguf", extra=factors)
    with pytest.raises(ModelLoadError, match="5 rotary factors for 8 pairs"):
        load_here(file)
