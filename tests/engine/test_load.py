"""From files to a model in memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import ModelLoadError
from engine.weights.load import choose_device, choose_dtype, load
from tests.kit.stage import CPU, make_stage, sequence
from tests.kit.tiny_gguf import write_gguf
from tests.kit.tiny_model import TinyLlama

TOKENS = [(5 * i * i + i) % 260 for i in range(60)]


def load_here(path: Path) -> None:
    load(path, device=CPU, dtype=torch.float32)


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
