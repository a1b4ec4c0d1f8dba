"""Keys and values in eight bits: the same bits for whoever reads them, and an answer near the exact one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kit.hf_model import deepseek_v3, write_hf
from tests.kit.stage import Stage, make_stage, sequence
from tests.kit.tiny_model import TinyLlama

TOKENS = [(11 * i * i + 5 * i) % 260 for i in range(400)]
BLOCK = 32
PROSE = """The sea was calm that morning, and the boats lay still in the harbour. An old man sat on the
wall with his net across his knees and looked for holes in it. He had done so every day for forty years.
When the sun came over the hill, the children ran down to the water, and he told them, as he always did,
how deep it was behind the second buoy. They knew it, and they asked again. In the afternoon the wind
came up from the south, the flags began to beat against their poles, and one boat after the other left."""
KINDS = {"llama": "auto", "latents": "absorb", "heads": "naive"}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fp8")
    if request.param == "llama":
        return TinyLlama().write(made / "auto")
    return write_hf(deepseek_v3(), made / KINDS[request.param]).folder


def stage_of(folder: Path, kv_dtype: str, dtype: torch.dtype = torch.float32) -> Stage:
    return make_stage(folder, dtype=dtype, mla=folder.name, kv_dtype=kv_dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_reused_block_is_the_same_bits_and_gives_the_same_answer(
    folder: Path, dtype: torch.dtype
) -> None:
    stage = stage_of(folder, "fp8", dtype)
    assert stage.runner.exact
    assert stage.cache.data.dtype == torch.uint8
    cold = sequence(TOKENS[:300], range(10))
    logits, kept = stage.prefill(cold), stage.kept(cold, 300)
    for shared in (1, 4, 9):
        warm = sequence(TOKENS[:300], [*range(shared), *range(20, 30 - shared)])
        assert torch.equal(stage.prefill(warm, start=shared * BLOCK), logits)
        assert torch.equal(stage.kept(warm, 300), kept)
    chunked = sequence(TOKENS[:300], range(40, 50))
    stage.prefill(chunked, [7, 150, 280])
    answered = sequence(TOKENS[:300], range(50, 60))
    stage.forward((answered, 0, 250))
    for at in range(250, 300):
        stage.forward((answered, at, at + 1))
    assert torch.equal(stage.kept(chunked, 300), kept)
    assert torch.equal(stage.kept(answered, 300), kept), "decode writes what prefill writes"


def test_it_stays_near_the_answer_without_quantising(folder: Path) -> None:
    one = sequence(TOKENS[:300], range(10))
    rows = [(one, at, at + 1) for at in range(300)]
    exact = stage_of(folder, "auto").forward(*rows).log_softmax(-1)
    apart = (stage_of(folder, "fp8").forward(*rows).log_softmax(-1) - exact).abs()
    assert 0 < apart.mean() < 0.25, f"{apart.mean()}"


def test_bf16_beside_an_fp32_model_halves_the_memory_alone(folder: Path) -> None:
    exact, half = stage_of(folder, "auto"), stage_of(folder, "bf16")
    assert half.cache.layout.token_bytes * 2 == exact.cache.layout.token_bytes
    one = sequence(TOKENS[:200], range(7))
    apart = (half.prefill(one).log_softmax(-1) - exact.prefill(one).log_softmax(-1)).abs()
    assert 0 < apart.mean() < 0.05


def test_slots_without_numbers_are_found_and_cleared_in_eight_bits(folder: Path) -> None:
    cache = stage_of(folder, "fp8").cache
    rows = torch.randn(4, cache.layout.shape.elements)
    rows[1, 0] = float("nan")
    rows[2, -1] = float("inf")
    slots = torch.tensor([33, 34, 35, 36])
    for layer in range(cache.layout.layers):
        cache.write(layer, slots, rows if layer == 1 else rows.nan_to_num(0.0, 0.0, 0.0))
    assert cache.finite(slots).tolist() == [True, False, False, True]
    cache.clear(slots[1:3])
    assert cache.finite(slots).all()


@pytest.mark.model
def test_the_real_model_in_eight_bits_takes_at_most_53_hundredths_and_is_as_sure(
    smollm_path: Path,
) -> None:
    exact = make_stage(smollm_path, dtype=torch.bfloat16, blocks=32)
    stage = make_stage(smollm_path, dtype=torch.bfloat16, kv_dtype="fp8", blocks=32)
    assert stage.cache.layout.token_bytes <= 0.53 * exact.cache.layout.token_bytes
    assert stage.runner.exact
    tokens = stage.loaded.tokenizer.encode(PROSE, add_bos=False)
    found = [perplexity(one, tokens) for one in (exact, stage)]
    assert found[1] / found[0] - 1 < 0.03, f"{found}"


def perplexity(stage: Stage, tokens: list[int]) -> float:
    one = sequence(tokens, range(16))
    rows = stage.forward(*((one, at, at + 1) for at in range(len(tokens) - 1)))
    said = rows.log_softmax(-1).gather(1, torch.tensor(tokens[1:]).unsqueeze(1))
    return float((-said.mean()).exp())
