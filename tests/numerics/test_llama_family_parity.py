"""Qwen2, Qwen3, Mistral and Llama 3 in small: the shipped code against transformers, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from engine.errors import ModelLoadError
from engine.weights.load import load
from tests.kit.hf_model import VOCAB, YARN, HfModel, write_hf
from tests.kit.stage import CPU, Stage, make_stage, sequence

TOKENS = [(13 * i * i + 7 * i) % 260 for i in range(300)]
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=24),
    "qwen3 with yarn": Qwen3Config(**SMALL, head_dim=16, rope_parameters=dict(YARN)),
    "mistral": MistralConfig(**SMALL, sliding_window=None, head_dim=32),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True),
    "llama 3": LlamaConfig(**SMALL, rope_parameters=dict(LLAMA3)),
}


@pytest.fixture(scope="module", params=list(KINDS))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HfModel, Stage]:
    theirs = write_hf(KINDS[request.param], tmp_path_factory.mktemp("hf") / "model")
    return theirs, make_stage(theirs.folder, dtype=torch.float32)


def test_chunks_prefix_hits_and_decode_give_their_logits(both: tuple[HfModel, Stage]) -> None:
    theirs, stage = both
    wanted = theirs.logits(TOKENS)
    cold = sequence(TOKENS, range(10))
    rows = [stage.forward((cold, 0, 150)), stage.forward((cold, 150, 290))]
    rows += [stage.forward((cold, at, at + 1)) for at in range(290, 300)]
    ours = torch.cat(rows)
    torch.testing.assert_close(ours, wanted[[149, *range(289, 300)]], rtol=0, atol=1e-4)
    warm = sequence(TOKENS, [*range(5), *range(20, 25)])
    assert torch.equal(stage.prefill(warm, start=160), ours[-1:])
    assert torch.equal(ours.argmax(-1), wanted[[149, *range(289, 300)]].argmax(-1))


def test_every_kind_is_exact_on_this_machine(both: tuple[HfModel, Stage]) -> None:
    _, stage = both
    assert stage.runner.exact


def test_a_sliding_window_bounds_the_context_and_is_the_same_inside_it(tmp_path: Path) -> None:
    theirs = write_hf(MistralConfig(**SMALL, sliding_window=96), tmp_path / "window")
    stage = make_stage(theirs.folder, dtype=torch.float32)
    assert stage.loaded.config.context_tokens == 96
    ours = stage.prefill(sequence(TOKENS[:96], range(3)))
    torch.testing.assert_close(ours, theirs.logits(TOKENS[:96])[-1:], rtol=0, atol=1e-4)


def test_a_qwen_whose_window_is_off_has_none(tmp_path: Path) -> None:
    theirs = write_hf(Qwen2Config(**SMALL, sliding_window=64), tmp_path / "off")
    assert load(theirs.folder, device=CPU, dtype=torch.float32).config.context_tokens == 512


def test_a_bias_that_is_missing_is_named(tmp_path: Path) -> None:
    theirs = write_hf(LlamaConfig(**SMALL), tmp_path / "none")
    file = theirs.folder / "config.json"
    file.write_text(file.read_text().replace('"attention_bias": false', '"attention_bias": true'))
    with pytest.raises(ModelLoadError, match=r"layers\.0\.self_attn\.k_proj\.bias' is missing"):
        load(theirs.folder, device=CPU, dtype=torch.float32)
