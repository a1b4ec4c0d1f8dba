"""DeepSeek-V2 and V3 in small, in both cache modes: the shipped code against transformers, in fp32.

The checkpoints are written by transformers' own `save_pretrained`, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from tests.kit.hf_model import YARN, HfModel, deepseek_v2, deepseek_v3, write_hf
from tests.kit.stage import Stage, make_stage, sequence

TOKENS = [(17 * i * i + 3 * i) % 260 for i in range(700)]
BLOCK = 32
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "v2 lite": deepseek_v2,
    "v2": lambda: deepseek_v2(q_lora_rank=24, **GROUPED, routed_scaling_factor=16.0),
    "v2 with yarn": lambda: deepseek_v2(rope_parameters=dict(YARN)),
    "v3": deepseek_v3,
    "v3 with yarn": lambda: deepseek_v3(rope_parameters=YARN | {"mscale": 1.0}),
    "v3 of other sizes": lambda: deepseek_v3(
        num_attention_heads=6, num_key_value_heads=6, kv_lora_rank=48, qk_nope_head_dim=24,
        qk_rope_head_dim=16, v_head_dim=24, q_lora_rank=None, n_group=1, topk_group=1,
        num_experts_per_tok=2, norm_topk_prob=False, n_shared_experts=2, rope_interleave=False,
    ),
    "v3 without experts": lambda: deepseek_v3(first_k_dense_replace=3),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfModel:
    return write_hf(KINDS[request.param](), tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module", params=["naive", "absorb"])
def stage(request: pytest.FixtureRequest, theirs: HfModel) -> Stage:
    return make_stage(theirs.folder, dtype=torch.float32, mla=request.param, blocks=96)


def close(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 127, 128, 129, 300])
def test_prompts_of_any_length_give_their_logits(
    theirs: HfModel, stage: Stage, length: int
) -> None:
    ours = stage.prefill(sequence(TOKENS[:length], range(10)))
    close(ours, theirs.logits(TOKENS[:length])[-1:])


def test_chunks_and_decode_give_their_logits(theirs: HfModel, stage: Stage) -> None:
    one = sequence(TOKENS[:300], range(10))
    rows = [stage.forward((one, 0, 77)), stage.forward((one, 77, 250))]
    rows += [stage.forward((one, at, at + 1)) for at in range(250, 300)]
    close(torch.cat(rows), theirs.logits(TOKENS[:300])[[76, *range(249, 300)]])


def test_a_prefix_hit_gives_the_bits_of_the_cold_prompt(theirs: HfModel, stage: Stage) -> None:
    cold = sequence(TOKENS[:300], range(10))
    logits = stage.prefill(cold)
    close(logits, theirs.logits(TOKENS[:300])[-1:])
    for shared in (1, 4, 7, 9):
        own = range(20, 30 - shared)
        warm = sequence(TOKENS[:300], [*cold.blocks[:shared], *own])
        assert torch.equal(stage.prefill(warm, start=shared * BLOCK), logits), f"{shared} blocks"
        assert torch.equal(stage.kept(warm, 300), stage.kept(cold, 300))


def test_a_batch_of_unequal_lengths_gives_their_logits(theirs: HfModel, stage: Stage) -> None:
    lengths = [1, 5, 40, 128, 150, 300]
    ones = [sequence(TOKENS[i : i + n], range(10 * i, 10 * i + 10)) for i, n in enumerate(lengths)]
    together = stage.forward(*((one, 0, len(one.tokens)) for one in ones))
    close(together, torch.cat([theirs.logits(one.tokens)[-1:] for one in ones]))
    alone = torch.cat([stage.prefill(one) for one in ones])
    assert torch.equal(alone, together)
    longer = [sequence([*one.tokens, 7], one.blocks) for one in ones[:-1]]
    decoded = stage.forward(*((one, len(one.tokens) - 1, len(one.tokens)) for one in longer))
    close(decoded, torch.cat([theirs.logits(one.tokens)[-1:] for one in longer]))


def test_it_is_exact_and_keeps_what_its_mode_says(theirs: HfModel, stage: Stage) -> None:
    assert stage.runner.exact
    config: Any = theirs.model.config
    heads, latent = config.num_attention_heads, config.kv_lora_rank + config.qk_rope_head_dim
    by_head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    numbers = latent if stage.loaded.model.mla == "absorb" else heads * by_head
    assert stage.cache.layout.token_bytes == 3 * numbers * 4


@pytest.mark.parametrize("mla", ["naive", "absorb"])
def test_yarn_holds_far_past_the_original_length(
    tmp_path_factory: pytest.TempPathFactory, mla: str
) -> None:
    rope = YARN | {"mscale": 1.0, "mscale_all_dim": 0.6, "beta_fast": 16, "beta_slow": 2}
    theirs = write_hf(deepseek_v3(rope_parameters=rope), tmp_path_factory.mktemp("yarn") / "model")
    stage = make_stage(theirs.folder, dtype=torch.float32, mla=mla)
    wanted = theirs.logits(TOKENS)  # 700 tokens where 64 were trained
    one = sequence(TOKENS, range(22))
    rows = [stage.forward((one, start, start + 100)) for start in range(0, 700, 100)]
    close(torch.cat(rows), wanted[99::100])
    plain = make_stage(
        write_hf(deepseek_v3(), tmp_path_factory.mktemp("plain") / "model").folder,
        dtype=torch.float32,
        mla=mla,
    )
    assert not torch.allclose(plain.prefill(one), wanted[-1:], atol=1e-2), "the rule matters"


@pytest.mark.parametrize("mla", ["naive", "absorb"])
def test_in_bfloat16_hits_batches_and_decode_keep_their_bits(
    tmp_path_factory: pytest.TempPathFactory, mla: str
) -> None:
    theirs = write_hf(deepseek_v3(), tmp_path_factory.mktemp("bf16") / "model")
    stage = make_stage(theirs.folder, dtype=torch.bfloat16, mla=mla)
    assert stage.runner.exact
    cold, other = sequence(TOKENS[:290], range(10)), sequence(TOKENS[5:95], range(40, 43))
    logits = stage.prefill(cold)
    assert (logits - theirs.logits(TOKENS[:290])[-1:]).abs().mean() < 0.2
    warm = sequence(TOKENS[:290], [0, 1, 2, *range(20, 27)])
    hit = stage.forward((other, 0, 90), (warm, 96, 280))
    assert torch.equal(hit[0], stage.prefill(other)[0])
    for at in range(280, 290):
        hit = stage.forward((warm, at, at + 1))
    assert torch.equal(hit, logits)
    assert torch.equal(stage.kept(warm, 290), stage.kept(cold, 290))
