"""The shipped runner against a dense twin that has neither pages nor tiles nor a cache."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kit.stage import make_stage, sequence
from tests.kit.tiny_model import TinyLlama
from tests.numerics.dense_llama import dense_logits

TOKENS = [(13 * i * i + i) % 260 for i in range(400)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "tiny",
    [
        TinyLlama(),
        TinyLlama(tied=False, seed=3),
        TinyLlama(heads=4, kv_heads=1),
        TinyLlama(heads=8, kv_heads=8, hidden=128, layers=3),
        TinyLlama(rope=dict(LLAMA3)),
    ],
    ids=["tied", "own head", "one kv head", "no groups", "llama3 rope"],
)
def test_chunks_and_decode_over_pages_give_the_dense_models_logits(
    tiny: TinyLlama, tmp_path: Path
) -> None:
    folder = tiny.write(tmp_path / "model")
    stage = make_stage(folder, dtype=torch.float32)
    dense = dense_logits(stage.loaded.config, load_file(folder / "model.safetensors"), TOKENS)
    one = sequence(TOKENS, range(40, 53))
    rows = [stage.forward((one, 0, 150)), stage.forward((one, 150, 300))]
    rows += [stage.forward((one, at, at + 1)) for at in range(300, 400)]
    torch.testing.assert_close(
        torch.cat(rows), dense[[149, 299, *range(300, 400)]], rtol=1e-4, atol=2e-4
    )


def test_bfloat16_stays_near_the_dense_model(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "model")
    stage = make_stage(folder, dtype=torch.bfloat16)
    dense = dense_logits(stage.loaded.config, load_file(folder / "model.safetensors"), TOKENS)
    ours = stage.forward(*((sequence(TOKENS, range(13)), at, at + 1) for at in range(400)))
    apart = (ours.log_softmax(-1) - dense.log_softmax(-1)).abs()
    assert apart.mean() < 0.05, f"{apart.mean()}"
