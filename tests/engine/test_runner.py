"""Schedules through the model."""

from pathlib import Path

import pytest
import torch

from engine.models.exact import ExactShapes
from tests.kit.stage import Stage, make_stage, sequence
from tests.kit.tiny_model import TinyLlama

TOKENS = [(7 * i * i + 3 * i) % 260 for i in range(700)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder = TinyLlama().write(tmp_path_factory.mktemp("tiny"))
    return make_stage(folder, dtype=torch.float32)


def test_logits_come_in_the_order_of_the_spans_however_rows_are_arranged(stage: Stage) -> None:
    long, short = sequence(TOKENS[:300], range(10)), sequence(TOKENS[5:9], [20])
    apart = torch.cat([stage.forward((short, 0, 4)), stage.forward((long, 0, 300))])
    together = stage.forward((short, 0, 4), (long, 0, 300))
    swapped = stage.forward((long, 0, 300), (short, 0, 4))
    assert torch.equal(together, apart)
    assert torch.equal(swapped, apart.flip(0))


def test_spans_without_sample_give_no_logits_but_write_their_keys(stage: Stage) -> None:
    from engine.scheduler import Schedule, Span

    one = sequence(TOKENS[:70], range(30, 33))
    stage.cache.data.zero_()
    logits = stage.runner.forward(Schedule((Span(one, 0, 70, sample=False),)))
    assert logits.shape == (0, stage.loaded.config.vocab)
    assert stage.kept(one, 70).abs().amax(dim=(0, 2)).min() > 0


def test_adjoining_spans_of_one_token_are_computed_as_one_piece(stage: Stage) -> None:
    one, twin = sequence(TOKENS[:40], range(2)), sequence(TOKENS[:40], range(4, 6))
    every_row = stage.forward(*((one, at, at + 1) for at in range(40)))
    last_rows = torch.cat([stage.forward((twin, 0, stop)) for stop in (1, 17, 40)])
    assert every_row.shape == (40, stage.loaded.config.vocab)
    assert torch.equal(every_row[[0, 16, 39]], last_rows)


def test_a_sequence_writes_to_no_block_but_its_own(stage: Stage) -> None:
    stage.cache.data.fill_(7.0)
    one = sequence(TOKENS[:100], [9, 3, 40, 22])
    stage.prefill(one)
    others = [block for block in range(stage.cache.blocks) if block not in one.blocks]
    assert (stage.cache.data[:, others] == 7.0).all()
    assert (stage.cache.data[:, 22, 4:] == 7.0).all()  # token 100 would be the fifth of its block
    assert not (stage.cache.data[:, 22, :4] == 7.0).all()


def test_its_line_for_operators_says_which_tiles_it_runs_and_whether_they_are_exact(
    stage: Stage,
) -> None:
    counts = "/".join(map(str, stage.runner.shapes.row_counts))
    assert repr(stage.runner) == (
        f"Runner(tiles of {counts} rows, exact, KvCache(64 blocks x 32 tokens, 1 MiB, float32))"
    )


def test_rows_of_any_number_are_padded_to_counts_that_agree(stage: Stage) -> None:
    shapes: ExactShapes = stage.runner.shapes
    assert list(shapes.row_counts) == sorted(set(shapes.row_counts))
    assert shapes.row_counts[-1] == stage.runner.tile_tokens <= 128
    assert shapes.attention
    cost = stage.runner.row_cost
    assert [cost.of(rows) for rows in shapes.row_counts] == [32 + n for n in shapes.row_counts]


def test_a_model_without_tied_head_and_another_seed_answers_differently(tmp_path: Path) -> None:
    one = sequence(TOKENS[:20], [0])
    answers = []
    for name, tiny in {"tied": TinyLlama(), "own": TinyLlama(tied=False)}.items():
        answers.append(make_stage(tiny.write(tmp_path / name), dtype=torch.float32).prefill(one))
    assert not torch.allclose(answers[0], answers[1])
