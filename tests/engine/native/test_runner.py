"""Schedules through the native model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine import kernels
from engine.config import EngineConfig
from engine.loading import make_service
from engine.native.library import Library
from engine.native.model import MOST_ROWS, Weights
from engine.native.runner import NativeRunner, _calls
from engine.scheduler import Schedule, Span
from tests.kit.native import NativeStage, native_stage, read_weights
from tests.kit.stage import sequence
from tests.kit.tiny_model import TinyLlama

TOKENS = [(7 * i * i + 3 * i) % 260 for i in range(1200)]
TINY = TinyLlama(heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def weights(native: Library, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return read_weights(native, TINY.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def stage(native: Library, weights: Weights) -> NativeStage:
    return native_stage(native, weights)


def test_logits_come_in_the_order_of_the_spans(stage: NativeStage) -> None:
    long, short = sequence(TOKENS[:300], range(10)), sequence(TOKENS[5:9], [20])
    apart = torch.cat([stage.forward((short, 0, 4)), stage.forward((long, 0, 300))])
    assert apart.dtype == torch.float32
    assert torch.equal(stage.forward((short, 0, 4), (long, 0, 300)), apart)
    assert torch.equal(stage.forward((long, 0, 300), (short, 0, 4)), apart.flip(0))


def test_spans_without_sample_give_no_logits_but_write_their_keys(stage: NativeStage) -> None:
    one = sequence(TOKENS[:70], range(30, 33))
    logits = stage.runner.forward(Schedule((Span(one, 0, 70, sample=False),)))
    assert logits.shape == (0, TINY.vocab)
    assert (stage.kept(one, 70) != 0).any(axis=(0, 1, 2, 4)).all()


def test_a_sequence_writes_to_no_block_but_its_own(stage: NativeStage) -> None:
    stage.cache.data[:] = 0x4040  # 3.0
    one = sequence(TOKENS[:100], [9, 3, 40, 22])
    stage.in_steps(one)
    others = [block for block in range(stage.cache.blocks) if block not in one.blocks]
    assert (stage.cache.data[others] == 0x4040).all()
    kept = stage.kept(one, 128)
    assert (kept[:, :, :, 100:] == 0x4040).all(), "behind the last token"
    assert (kept[:, :, :, :100] != 0x4040).any(axis=(0, 1, 2, 4)).all()


def test_what_lies_in_a_block_behind_the_last_token_is_not_heard(stage: NativeStage) -> None:
    one = sequence(TOKENS[:40], [3, 4])
    wanted = stage.in_steps(one)
    for left in (0x7F7F, 0xFF7F, 0x0000):  # the largest numbers of a bfloat16
        stage.cache.data[:] = left
        assert torch.equal(stage.in_steps(one, cuts=(17, 39)), wanted)


def test_many_rows_are_several_calls_and_a_sequences_earlier_rows_come_first() -> None:
    one, two = sequence(TOKENS[:900], range(29)), sequence(TOKENS[:200], range(30, 37))
    spans = (Span(one, 0, 900, sample=True), Span(two, 100, 200, sample=True))
    calls = list(_calls(Schedule(spans)))
    assert [sum(piece.stop - piece.start for piece in call) for call in calls] == [MOST_ROWS, 488]
    parts = [(p.sequence is one, p.start, p.stop) for call in calls for p in call]
    assert parts == [(True, 0, 512), (True, 512, 900), (False, 100, 200)]
    assert list(_calls(Schedule(()))) == []
    exact = Schedule((Span(one, 0, MOST_ROWS, sample=True),))
    assert len(list(_calls(exact))) == 1


def test_how_long_the_first_thread_waited_is_told_to_the_crowd(
    native: Library, weights: Weights
) -> None:
    stage = native_stage(native, weights, threads=2)
    crowd = stage.runner.crowd
    assert (crowd.threads, crowd.active) == (2, 2)
    learned: list[tuple[int, int]] = []

    class Ears:
        def next(self, rows: int) -> int:
            return min(2, rows)

        def learn(self, rows: int, *, waited_ns: int, took_ns: int) -> None:
            learned.append((waited_ns, took_ns))

    stage.runner.crowd = Ears()  # type: ignore[assignment]  # all that is used of it
    stage.in_steps(sequence(TOKENS[: MOST_ROWS + 1], range(20)))
    assert len(learned) == 2, "once a call"
    assert all(0 <= waited <= took for waited, took in learned)


def test_its_line_for_operators_says_how_many_threads_it_has(stage: NativeStage) -> None:
    assert repr(stage.runner) == (
        "NativeRunner(1 threads, exact, NativeCache(64 blocks x 32 tokens, 0 MiB))"
    )
    assert stage.runner.exact
    assert stage.runner.tile_tokens == 128
    assert stage.runner.row_cost.of(1) < stage.runner.row_cost.of(2)


def test_the_pool_alone_is_what_a_sequence_remembers(native: Library, weights: Weights) -> None:
    one, other = (native_stage(native, weights) for _ in range(2))
    first, moved = sequence(TOKENS[:100], [5, 6, 7, 8]), sequence(TOKENS[:100], [60, 2, 33, 1])
    wanted = one.in_steps(first)
    for here, there in zip(first.blocks[:3], moved.blocks, strict=False):
        other.cache.import_block(there, one.cache.export_block(here))
    assert torch.equal(other.in_steps(moved, start=96), wanted[96:])
    assert np.array_equal(other.kept(moved, 100), one.kept(first, 100))


def test_closing_the_engine_ends_its_threads(
    native: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "library", lambda: native)
    folder = TINY.write(tmp_path / "tiny")
    config = EngineConfig(model=str(folder), kernels="native", kv_memory=1 << 20, threads=3)
    service = make_service(config, wall_clock=lambda: 0.0, on_fatal=pytest.fail)
    runner = service.engine.runner
    assert isinstance(runner, NativeRunner)
    ended: list[int] = []
    free = native.free

    def noted(handle: int) -> None:
        ended.append(handle)
        free(handle)

    monkeypatch.setattr(native, "free", noted)
    handle = runner.model._handle
    service.engine.close()
    assert ended == [handle]
    service.engine.close()
    assert ended == [handle]
