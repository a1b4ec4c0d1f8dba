"""DeepSeek through the whole engine: scheduler, prefix index and sampler are those of every model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams, TokenEvent
from engine.service import Service
from tests.kit.hf_model import YARN, HfModel, deepseek_v3, write_hf

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPT = tuple((13 * n * n + n) % 260 for n in range(150))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> HfModel:
    config = deepseek_v3(rope_parameters=dict(YARN))
    return write_hf(config, tmp_path_factory.mktemp("hf") / "v3")


def made(folder: Path, **options: object) -> Service:
    options = {"dtype": "float32", "kv_memory": 4 << 20, "threads": 1, **options}
    config = EngineConfig(model=str(folder), **options)  # type: ignore[arg-type]  # by name
    return make_service(config, wall_clock=lambda: 0.0, on_fatal=pytest.fail)


def asked(service: Service, *requests: GenerationRequest) -> dict[str, list[TokenEvent]]:
    heard: dict[str, list[TokenEvent]] = {one.id: [] for one in requests}
    for one in requests:
        service.engine.scheduler.add(one)
    while service.engine.scheduler.busy:
        for event in service.engine.step():
            heard[event.request_id].append(event)
        service.engine.scheduler.check_integrity()
    return heard


def ask(name: str, prompt: tuple[int, ...]) -> GenerationRequest:
    return GenerationRequest(id=name, prompt=prompt, sampling=GREEDY)


def greedy(theirs: HfModel, prompt: tuple[int, ...]) -> list[int]:
    tokens = list(prompt)
    for _ in range(GREEDY.max_tokens):
        tokens.append(int(theirs.logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("mla", ["naive", "absorb"])
def test_greedy_answers_are_theirs_cold_in_a_batch_and_after_a_hit(
    theirs: HfModel, mla: str
) -> None:
    service = made(theirs.folder, mla=mla)
    prompts = {"long": PROMPT, "short": PROMPT[5:40], "other": PROMPT[70:]}
    heard = asked(service, *(ask(name, prompt) for name, prompt in prompts.items()))
    for name, prompt in prompts.items():
        assert [event.token for event in heard[name]] == greedy(theirs, prompt), name
    again = asked(service, ask("again", PROMPT))["again"]
    assert [event.token for event in again] == [event.token for event in heard["long"]]
    assert again[-1].hit_tokens == 128
    assert service.stats()["mla"] == mla
    assert service.stats()["exact_decode"]


def test_a_pool_that_is_too_small_for_all_serves_everybody(theirs: HfModel) -> None:
    block_bytes = made(theirs.folder).stats()["kv_token_bytes"] * 32
    service = made(theirs.folder, kv_memory=8 * block_bytes)
    requests = [ask(f"r{n}", tuple((t + n) % 260 for t in PROMPT)) for n in range(6)]
    requests.append(replace(requests[0], id="again"))
    heard = asked(service, *requests)
    assert all(events[-1].finish == "length" for events in heard.values())
    assert [event.token for event in heard["again"]] == [event.token for event in heard["r0"]]
    assert service.stats()["evictions"] > 0


def test_modes_and_kv_dtypes_never_share_a_block(theirs: HfModel) -> None:
    kinds: tuple[dict[str, str], ...] = (
        {},
        {"mla": "naive"},
        {"kv_dtype": "fp8"},
        {"kv_dtype": "bf16"},
    )
    roots = {made(theirs.folder, **kind).engine.scheduler.index.root("") for kind in kinds}
    assert len(roots) == len(kinds)


def test_another_rope_setting_is_another_root(theirs: HfModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = deepseek_v3(rope_parameters=YARN | {"factor": 4.0})
    other = write_hf(config, tmp_path / "v3")  # the same weights
    one, two = (made(model.folder).engine.scheduler.index.root("") for model in (theirs, other))
    assert one != two
