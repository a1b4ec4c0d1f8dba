"""A NaN of one request spoils no other: not in its step, not by the blocks it leaves behind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.runner import Runner
from tests.kit.tiny_model import TinyLlama

P, BLOCKS, BAD = 32, 6, 200
GREEDY = SamplingParams(temperature=0.0, top_logprobs=0, ignore_eos=True, max_tokens=6)
Answer = list[tuple[int | None, float | None]]


def make(folder: Path) -> Engine[Tensor]:
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        block_tokens=P,
        kv_memory=BLOCKS * P * 2 * 2 * 2 * 16 * 4,
        threads=1,
    )
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


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_request_without_numbers_ends_alone_and_leaves_nothing(
    tmp_path: Path, poison: float
) -> None:
    folder = TinyLlama(tied=False).write(tmp_path / "tiny")
    engine, fresh = make(folder), make(folder)
    runner = engine.runner
    assert isinstance(runner, Runner)
    rows = runner.model.embedding.clone()
    rows[BAD] = poison
    runner.model.embedding = rows
    bad = ask("bad", [*range(1, 70), BAD, *range(70, 80)])
    beside = ask("beside", list(range(100, 140)))

    heard = run(engine, bad, beside)
    assert [event.finish for event in heard["bad"]] == ["error"]
    assert "finite" in (heard["bad"][0].error or "")
    assert answer(heard["beside"]) == answer(run(fresh, beside)["beside"])
    assert not engine.broken
    assert engine.scheduler.index.pool.held_blocks == 0
    assert bool(runner.cache.data.isfinite().all())

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
