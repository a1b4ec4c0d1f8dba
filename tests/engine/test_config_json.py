"""config.json of each family."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelLoadError
from engine.weights.config_json import read_config

V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256,
    "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "moe_layer_freq": 1, "hidden_act": "silu", "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "vocab_size": 129280,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip


def read(folder: Path, **changes: Any) -> Any:
    file = folder / "config.json"
    file.write_text(json.dumps({k: v for k, v in (V3 | changes).items() if v != "absent"}))
    return read_config(file)


def test_v3_as_it_was_published(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.latent is not None
    assert (config.latent.latent, config.latent.rope, config.latent.interleaved) == (512, 64, True)
    assert config.moe is not None
    assert (config.moe.groups, config.moe.top_groups, config.moe.sigmoid) == (8, 4, True)
    assert config.rope_scale == 1.0  # its mscale and mscale_all_dim are the same
    assert config.softmax_factor == pytest.approx(1.3689**2, abs=1e-3)
    assert config.softmax_scale == pytest.approx(192**-0.5 * 1.3689**2, abs=1e-4)
    assert config.mla_mode("auto") == "absorb"


def test_rope_settings_make_another_root(tmp_path: Path) -> None:
    plain = read(tmp_path).rope_words()
    for change in ({"factor": 20}, {"mscale": 0.5}, {"beta_slow": 2}):
        changed = read(tmp_path, rope_scaling=V3["rope_scaling"] | change)
        assert changed.rope_words() != plain, f"{change}"
    assert read(tmp_path, rope_theta=20000).rope_words() != plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not known here"),
        ({"model_type": ["x"]}, "is not known here"),
        ({"kv_lora_rank": 0}, "kv_lora_rank is 0"),
        ({"kv_lora_rank": "absent"}, "KeyError 'kv_lora_rank'"),
        ({"qk_rope_head_dim": 63}, "head dimension 63 is odd"),
        ({"topk_method": "random"}, "topk_method 'random' is not known here"),
        ({"scoring_func": "softmax"}, "scoring_func 'softmax' is not known here"),
        ({"moe_layer_freq": 2}, "moe_layer_freq 2 is not known here"),
        ({"attention_bias": True}, "attention_bias true is not known here"),
        ({"n_group": 7}, "256 experts of 2048 in 7 groups"),
        ({"num_experts_per_tok": 129}, "129 of 128 experts cannot be chosen"),
        ({"n_group": 256, "topk_group": 8}, "groups of one expert"),
        (
            {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax"},
            "norm_topk_prob true with softmax is not known",
        ),
    ],
)
def test_what_is_not_computed_here_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=rf"config\.json: .*{message}"):
        read(tmp_path, **changes)


@pytest.mark.parametrize(
    ("longest", "scaling", "reach"),
    [
        (32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (
            131072,
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            131072,
        ),
        (32768, {"type": "yarn", "factor": 4.0}, 131072),
        (32768, None, 32768),
    ],
)
def test_yarn_reaches_its_factor_times_the_length_before_it(
    tmp_path: Path, longest: int, scaling: dict[str, Any] | None, reach: int
) -> None:
    changes = {"max_position_embeddings": longest, "rope_scaling": scaling}
    qwen = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 1024}
    assert read(tmp_path, **changes, **qwen).context_tokens == reach
    assert read(tmp_path, **changes).context_tokens == reach


def test_yarn_without_words_takes_its_papers_numbers(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    config = read(tmp_path, rope_scaling=scaling)
    assert config.rope_scale == pytest.approx(1.1386, abs=1e-4)
    assert config.softmax_factor == 1.0
    given = read(tmp_path, rope_scaling=scaling | {"attention_factor": 1.5})
    assert given.rope_scale == 1.5
