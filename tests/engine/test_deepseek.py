"""Latent attention by itself; `tests/numerics/test_deepseek_parity.py` compares it with others."""

from pathlib import Path

import pytest
import torch

from engine.models.deepseek import AbsorbedAttention, NaiveAttention
from tests.kit.hf_model import deepseek_v2, write_hf
from tests.kit.stage import Stage, make_stage, sequence

TOKENS = [(7 * i * i + i) % 260 for i in range(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(deepseek_v2(), tmp_path_factory.mktemp("v2") / "model").folder


def stage(folder: Path, mla: str) -> Stage:
    return make_stage(folder, dtype=torch.float32, mla=mla)


def test_both_modes_say_the_same_and_keep_different_amounts(folder: Path) -> None:
    naive, absorb = stage(folder, "naive"), stage(folder, "absorb")
    one = sequence(TOKENS, range(3))
    torch.testing.assert_close(naive.prefill(one), absorb.prefill(one), rtol=0, atol=1e-4)
    assert naive.cache.layout.token_bytes == 3 * 4 * (16 + 8 + 12) * 4
    assert absorb.cache.layout.token_bytes == 3 * (32 + 8) * 4


def test_auto_is_absorb(folder: Path) -> None:
    assert isinstance(stage(folder, "auto").loaded.model.layers[0].attention, AbsorbedAttention)
    assert isinstance(stage(folder, "naive").loaded.model.layers[0].attention, NaiveAttention)


def test_the_shared_rotated_key_is_kept_once_and_the_latent_is_normed(folder: Path) -> None:
    absorb = stage(folder, "absorb")
    one = sequence(TOKENS, range(3))
    absorb.prefill(one)
    kept = absorb.kept(one, len(TOKENS))  # (L, tokens, C + R)
    assert kept.shape == (3, 90, 32 + 8)
    attention = absorb.loaded.model.layers[0].attention
    assert isinstance(attention, AbsorbedAttention)
    unweighted = kept[0, :, :32] / attention.latents.norm
    torch.testing.assert_close(unweighted.square().mean(-1), torch.ones(90), rtol=1e-3, atol=1e-3)
