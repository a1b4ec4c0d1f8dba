"""The tiny checkpoint."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.kit.tiny_model import TinyLlama


def test_the_same_seed_writes_the_same_weights_and_another_seed_does_not() -> None:
    first, again, other = TinyLlama().weights(), TinyLlama().weights(), TinyLlama(seed=1).weights()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.norm.weight"], other["model.norm.weight"])


def test_transformers_loads_it_and_its_answers_vary(tmp_path: Path) -> None:
    folder = TinyLlama().write(tmp_path / "tiny", shards=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer("the inner other", return_tensors="pt").input_ids
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )
    assert len(set(out[0, ids.shape[1] :].tolist())) > 4
