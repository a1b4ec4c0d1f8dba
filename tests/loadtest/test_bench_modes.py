"""The arithmetic of the engine's own benchmark, and its tiny model."""

from pathlib import Path

import pytest
import torch

from engine.weights.load import load
from loadtest.bench_modes import Talk, judged
from loadtest.tiny_deepseek import write
from tests.kit.stage import CPU


def test_latency_that_falls_to_a_quarter_is_lower_by_three_quarters() -> None:
    assert Talk("x", on_s=1.0, off_s=4.0, reused=0.9).saved == pytest.approx(0.75)


def test_quality_is_perplexity_and_the_share_of_other_greedy_tokens() -> None:
    exact = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]).log()
    plain = judged("auto", 10, said=exact, exact=exact, tokens=[0, 1, 0], before=[])
    assert plain.perplexity == pytest.approx((0.5 * 0.9) ** -0.5)
    assert (plain.change, plain.greedy_changed) == (0.0, 0.0)
    said = torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.2, 0.8]]).log()
    other = judged("fp8", 5, said=said, exact=exact, tokens=[0, 1, 0], before=[plain])
    assert other.greedy_changed == pytest.approx(1 / 3)
    assert other.change == pytest.approx((0.2 / 0.45) ** -0.5 - 1)


def test_the_tiny_deepseek_is_a_whole_checkpoint_with_both_modes(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    config = load(folder, device=CPU, dtype=torch.bfloat16).config
    naive, absorb = (config.kv_shape(config.mla_mode(word)).elements for word in ("naive", "auto"))
    assert (naive, absorb) == (16 * (48 + 32), 128 + 16)
