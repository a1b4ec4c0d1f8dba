"""Loading a model from a GGUF or a folder, and what is said of files that are none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.weights.gguf import GgufFile
from engine.weights.load import choose_device, choose_dtype, load
from engine.weights.names import from_gguf
from tests.kit.stage import CPU, make_stage, sequence
from tests.kit.tiny_gguf import gguf_name, write_gguf
from tests.kit.tiny_model import TinyLlama

TOKENS = [(5 * i * i + i) % 260 for i in range(60)]


def load_here(path: Path) -> None:
    load(path, device=CPU, dtype=torch.float32)


def changed_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return TinyLlama().write(tmp_path / "tiny")


def test_a_gguf_holds_the_same_model_as_the_folder_it_was_made_from(
    folder: Path, tmp_path: Path
) -> None:
    file = write_gguf(TinyLlama(), tmp_path / "tiny.gguf")
    one = sequence(TOKENS, [0, 1])
    from_folder = make_stage(folder, dtype=torch.float32)
    from_file = make_stage(file, dtype=torch.float32)
    assert torch.equal(from_folder.prefill(one), from_file.prefill(one))
    numbers = from_folder.loaded.config
    assert replace(from_file.loaded.config, rms_eps=numbers.rms_eps) == numbers  # fp32 in a GGUF
    text = "the inner <|im_end|> other ü"
    assert from_folder.loaded.tokenizer.encode(
        text, add_bos=False
    ) == from_file.loaded.tokenizer.encode(text, add_bos=False)


def test_a_gguf_with_its_own_head_is_not_tied(tmp_path: Path) -> None:
    file = write_gguf(TinyLlama(tied=False), tmp_path / "own.gguf")
    loaded = load(file, device=CPU, dtype=torch.float32)
    assert not loaded.config.tied


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


def test_shards_are_one_model(tmp_path: Path) -> None:
    one = sequence(TOKENS, [0, 1])
    whole = make_stage(TinyLlama().write(tmp_path / "one"), dtype=torch.float32)
    shards = make_stage(TinyLlama().write(tmp_path / "three", shards=3), dtype=torch.float32)
    assert torch.equal(whole.prefill(one), shards.prefill(one))


def test_the_fingerprint_knows_the_weights_and_the_dtype(tmp_path: Path, folder: Path) -> None:
    other = TinyLlama(seed=9).write(tmp_path / "other")
    same = TinyLlama().write(tmp_path / "same")
    prints = [
        load(path, device=CPU, dtype=dtype).fingerprint
        for path, dtype in (
            (folder, torch.float32),
            (same, torch.float32),
            (other, torch.float32),
            (folder, torch.bfloat16),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing\.gguf: no such file or folder"):
        load_here(tmp_path / "nothing.gguf")


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
        ({"llama.block_count": 1}, r"'model\.layers\.1\..*' is not part of a Llama"),
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


def test_every_gguf_name_is_known_and_no_other() -> None:
    for name in TinyLlama(tied=False).weights():
        assert from_gguf(gguf_name(name)) == name
    for name in ("blk.x.attn_q.weight", "blk.0.attn_q.bias", "blk.0.ssm_a", "cls.weight"):
        with pytest.raises(ModelLoadError, match=name):
            from_gguf(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not known here"),
        ({"attention_bias": True}, "attention_bias True is not known here"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not known here"),
        ({"num_hidden_layers": None}, "config.json: TypeError"),
        ({"num_attention_heads": 0}, "config.json: heads is 0"),
        ({"head_dim": 15}, "head dimension 15 is odd"),
        ({"hidden_size": 128, "head_dim": 16}, r"tensor '.*' has shape"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not known here"),
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


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path: Path) -> None:
    folder = TinyLlama(vocab=260).write(tmp_path / "small")
    with pytest.raises(ModelLoadError, match="266 tokens, the model 260"):
        load_here(folder)


def test_the_device_and_dtype_of_this_machine_are_chosen() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda"}
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert choose_dtype("auto", CPU) in {torch.float32, torch.bfloat16}


@pytest.mark.model
def test_the_real_gguf_loads_with_the_numbers_of_smollm2(smollm_path: Path) -> None:
    loaded = load(smollm_path, device=CPU, dtype=torch.bfloat16)
    config = loaded.config
    assert (config.layers, config.hidden, config.heads, config.kv_heads) == (30, 576, 9, 3)
    assert (config.head_dim, config.vocab, config.context_tokens) == (64, 49152, 8192)
    assert config.tied
    assert loaded.tokenizer.end_tokens == {0, 2}
