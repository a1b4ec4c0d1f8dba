"""Small random checkpoints written by transformers itself, and what it makes of a prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.kit.tiny_model import CHAT_TEMPLATE, byte_level_tokenizer

VOCAB = 300


@dataclass(frozen=True, slots=True)
class HfModel:
    """A model of transformers and the folder that its `save_pretrained` wrote."""

    folder: Path
    model: Any

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> Tensor:
        """Of every position (T, V), with nothing kept from before."""
        found: Tensor = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return found


def write_hf(config: PreTrainedConfig, folder: Path, *, seed: int = 0) -> HfModel:
    """Make a model with weights large enough to matter, and write it with a tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            _draw(name, weight)
    model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return HfModel(folder, model)


def _draw(name: str, weight: Tensor) -> None:
    if "inv_freq" in name:
        return
    if name.endswith("correction_bias"):
        nn.init.normal_(weight, std=0.2)
    elif name.endswith("norm.weight"):
        nn.init.normal_(weight, mean=1.0, std=0.1)
    elif weight.dim() == 1:
        nn.init.normal_(weight, std=0.3)
    else:
        nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)


def deepseek_v2(**changes: Any) -> PreTrainedConfig:
    """V2-Lite in small: no low rank for queries, greedy choice of experts, one dense layer."""
    from transformers import DeepseekV2Config

    numbers: dict[str, Any] = {
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "topk_method": "greedy",
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
    }
    return DeepseekV2Config(**_DEEPSEEK | numbers | changes)


def deepseek_v3(**changes: Any) -> PreTrainedConfig:
    """V3 in small: sigmoid scores with a correction, groups, one dense layer."""
    from transformers import DeepseekV3Config

    numbers: dict[str, Any] = {
        "q_lora_rank": 24,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
    }
    return DeepseekV3Config(**_DEEPSEEK | numbers | changes)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
_DEEPSEEK: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
}
