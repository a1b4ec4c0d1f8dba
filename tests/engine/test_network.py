"""The network by itself; `tests/numerics` compares it with others."""

from pathlib import Path

import pytest
import torch

from engine.models.network import Network, Tile
from tests.kit.stage import Stage, make_stage, sequence
from tests.kit.tiny_model import TinyLlama


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(TinyLlama().write(tmp_path / "t"), dtype=torch.float32, blocks=4)


def test_padding_rows_write_nothing_and_give_rows_that_nobody_reads(stage: Stage) -> None:
    model: Network = stage.loaded.model
    stage.cache.data.fill_(3.0)
    empty = Tile(
        tokens=torch.zeros(8, dtype=torch.int64),
        positions=torch.zeros(8, dtype=torch.int64),
        slots=torch.empty(0, dtype=torch.int64),
        groups=(),
    )
    with torch.inference_mode():
        hidden = model.forward(empty, stage.cache)
    assert hidden.shape == (8, model.config.hidden)
    assert (stage.cache.data == 3.0).all()


def test_logits_are_fp32_in_every_dtype(tmp_path: Path) -> None:
    stage = make_stage(TinyLlama().write(tmp_path / "b"), dtype=torch.bfloat16, blocks=4)
    logits = stage.prefill(sequence([5, 6, 7], [0]))
    assert logits.dtype == torch.float32
    assert stage.loaded.model.dtype == torch.bfloat16
    assert stage.loaded.model.device.type == "cpu"


def test_the_order_of_tokens_matters(stage: Stage) -> None:
    one = stage.prefill(sequence([5, 6, 7], [0]))
    other = stage.prefill(sequence([6, 5, 7], [0]))
    assert not torch.allclose(one, other)
