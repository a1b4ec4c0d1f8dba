"""A NaN of one request spoils no other: not in its step, not by the blocks it leaves behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import kernels
from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import make_service
from engine.native.library import Library
from engine.native.runner import NativeRunner
from engine.request import GenerationRequest, NonFiniteError, SamplingParams, TokenEvent
from engine.runner import Runner
from tests.kit.native import native_stage, poison, read_weights
from tests.kit.stage import sequence
from tests.kit.tiny_model import TinyLlama

P, BLOCKS, BAD = 32, 6, 200
GREEDY = SamplingParams(temperature=0.0, top_logprobs=0, ignore_eos=True, max_tokens=6)
Answer = list[tuple[int | None, float | None]]


def make(folder: Path, library: Library | None = None) -> Engine[Tensor]:
    """On torch in fp32, or on the native kernels."""
    wishes: dict[str, Any] = {"dtype": "float32"} if library is None else {"kernels": "native"}
    config = EngineConfig(
        model=str(folder),
        block_tokens=P,
        kv_memory=BLOCKS * P * 2 * 2 * 2 * 16 * (4 if library is None else 2),
        threads=1 if library is None else 2,
        **wishes,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: library)
        return make_service(config, wall_clock=lambda: 0.0, on_fatal=pytest.fail).engine


def ask(name: str, prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(id=name, prompt=tuple(prompt), sampling=GREEDY)


def run(engine: Engine[Tensor], *requests: GenerationRequest) -> dict[str, list[TokenEvent]]:
    for request in requests:
        engine.scheduler.add(request)
    heard: dict[str, list[TokenEvent]] = {request.id: [] for request in requests}
    while engine.scheduler.busy:
        for event in engine.step():
            heard[event.request_id].append(event)
        engine.scheduler.check_integrity()
    return heard


def answer(events: list[TokenEvent]) -> Answer:
    assert events[-1].finish == "length", events[-1]
    return [(event.token, event.logprob) for event in events]


POISONS = [float("nan"), float("inf")]
NATIVE = TinyLlama(heads=2, kv_heads=1, tied=False)


@pytest.mark.parametrize("value", POISONS)
def test_a_request_without_numbers_ends_alone_and_leaves_nothing(
    tmp_path: Path, value: float
) -> None:
    folder = TinyLlama(tied=False).write(tmp_path / "tiny")
    engine, fresh = make(folder), make(folder)
    runner = engine.runner
    assert isinstance(runner, Runner)
    rows = runner.model.embedding.clone()
    rows[BAD] = value
    runner.model.embedding = rows
    assert_it_ends_alone(engine, fresh)
    assert bool(runner.cache.data.isfinite().all())


@pytest.mark.parametrize("value", POISONS)
def test_on_native_kernels_too_it_ends_alone_and_leaves_nothing(
    native: Library, tmp_path: Path, value: float
) -> None:
    folder = NATIVE.write(tmp_path / "tiny")
    engine, fresh = make(folder, native), make(folder, native)
    runner = engine.runner
    assert isinstance(runner, NativeRunner)
    poison(native, runner.model._kept[0], BAD, value)
    assert_it_ends_alone(engine, fresh)
    numbers = torch.from_numpy(runner.cache.data.view(np.int16)).view(torch.bfloat16)
    assert bool(numbers.isfinite().all())


def assert_it_ends_alone(engine: Engine[Tensor], fresh: Engine[Tensor]) -> None:
    """`engine` computes no numbers for the token `BAD`, `fresh` does."""
    bad = ask("bad", [*range(1, 70), BAD, *range(70, 80)])
    beside = ask("beside", list(range(100, 140)))

    heard = run(engine, bad, beside)
    assert [event.finish for event in heard["bad"]] == ["error"]
    assert "finite" in (heard["bad"][0].error or "")
    assert answer(heard["beside"]) == answer(run(fresh, beside)["beside"])
    assert not engine.broken
    assert engine.scheduler.index.pool.held_blocks == 0

    for number in range(20):
        request = ask(str(number), [(number * 7 + i * i) % BAD for i in range(40 + 3 * number)])
        found, wanted = run(engine, request), run(fresh, request)
        assert answer(found[str(number)]) == answer(wanted[str(number)])
    assert engine.scheduler.index.pool.held_blocks == 0


def test_logits_without_numbers_fail_the_request_and_not_the_engine(tmp_path: Path) -> None:
    engine = make(TinyLlama(tied=True).write(tmp_path / "tiny"))
    runner = engine.runner
    assert isinstance(runner, Runner)
    final = runner.model.final_norm.clone()
    runner.model.final_norm = torch.full_like(final, float("nan"))
    for number in range(5):
        (event,) = run(engine, ask(str(number), [1, 2, 3]))[str(number)]
        assert event.finish == "error"
    assert not engine.broken
    runner.model.final_norm = final
    answer(run(engine, ask("after", [1, 2, 3]))["after"])


def test_native_logits_without_numbers_fail_the_request_and_not_the_engine(
    native: Library, tmp_path: Path
) -> None:
    engine = make(NATIVE.write(tmp_path / "tiny"), native)
    assert isinstance(engine.runner, NativeRunner)
    final = engine.runner.model._kept[0].final_norm
    kept = final.copy()
    final[:] = float("nan")
    for number in range(5):
        (event,) = run(engine, ask(str(number), [1, 2, 3]))[str(number)]
        assert event.finish == "error"
    assert not engine.broken
    final[:] = kept
    answer(run(engine, ask("after", [1, 2, 3]))["after"])


@pytest.mark.parametrize("value", POISONS)
@pytest.mark.parametrize("rows", [(1, 1), (70, 40), (70, 600)])
def test_native_rows_beside_it_have_exactly_their_bits_and_its_slots_are_zeros(
    native: Library, tmp_path: Path, value: float, rows: tuple[int, int]
) -> None:
    weights = read_weights(native, NATIVE.write(tmp_path / "tiny"))
    poison(native, weights, BAD, value)
    stage = native_stage(native, weights, threads=2)
    bad = sequence([*range(1, 70), BAD], [9, 2, 4])
    beside = sequence([(7 * i) % 199 for i in range(600)], range(20, 39))
    start, stop = 70 - rows[0], rows[1]
    stage.in_steps(sequence(bad.tokens[:69], bad.blocks))
    wanted = stage.in_steps(beside)
    kept = stage.kept(beside, 600)
    for block in beside.blocks:
        stage.cache.data[block] = 0
    with pytest.raises(NonFiniteError) as raised:
        stage.forward((beside, 0, stop), (bad, start, 70))
    assert raised.value.sequences == (bad,)
    assert np.array_equal(stage.kept(beside, stop), kept[:, :, :, :stop])
    assert not stage.kept(bad, 70)[:, :, :, 69].any()
    assert stage.kept(bad, 70)[:, :, :, :69].any(axis=(0, 1, 2, 4)).all()
    assert torch.equal(stage.forward((beside, stop - 1, stop)), wanted[stop - 1 : stop])
