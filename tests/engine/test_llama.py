"""Grouped attention by itself; `tests/numerics/test_llama_family_parity.py` compares it with others."""

from pathlib import Path

import torch

from engine.models.llama import GroupedAttention
from tests.kit.stage import make_stage, sequence
from tests.kit.tiny_model import TinyLlama


def test_without_norms_the_heads_are_turned_only(tmp_path: Path) -> None:
    stage = make_stage(TinyLlama().write(tmp_path / "t"), dtype=torch.float32)
    attention = stage.loaded.model.layers[0].attention
    assert isinstance(attention, GroupedAttention)
    stage.prefill(sequence([5, 6, 7], [0]))
    plain = stage.kept(sequence([5, 6, 7], [0]), 3)
    attention.query_norm = attention.key_norm = torch.full((16,), 2.0)
    stage.prefill(sequence([5, 6, 7], [0]))
    normed = stage.kept(sequence([5, 6, 7], [0]), 3)
    keys = normed[0, :, :32].view(3, 2, 16)
    torch.testing.assert_close(keys.square().mean(-1), torch.full((3, 2), 4.0), rtol=1e-3, atol=0)
    assert torch.equal(normed[0, :, 32:], plain[0, :, 32:]), "values have no norm"
