"""A DeepSeek-V3 in small with random weights, for timing: its shapes in proportion, nothing to say.

16 heads of 32 + 16, a latent of 128, 16 experts of which 4 are chosen, YaRN to 16384 tokens.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from engine.weights.config_json import read_config
from engine.weights.shapes import tensor_shapes
from tests.kit.tiny_model import CHAT_TEMPLATE, byte_level_tokenizer

CONFIG: Final[dict[str, Any]] = {
    "model_type": "deepseek_v3", "vocab_size": 1024, "hidden_size": 512,
    "intermediate_size": 1024, "moe_intermediate_size": 256, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 16, "n_shared_experts": 1,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "kv_lora_rank": 128,
    "q_lora_rank": 192, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "max_position_embeddings": 16384, "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
    },
}  # fmt: skip


def write(folder: Path) -> Path:
    """Write the checkpoint into ``folder``, the same each time, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    dice = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in tensor_shapes(read_config(folder / "config.json")).items():
        drawn = torch.randn(shape, generator=dice)
        weights[name] = 1 + drawn / 10 if len(shape) == 1 else drawn / math.sqrt(shape[-1])
    save_file(weights, folder / "model.safetensors")
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    words = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder
