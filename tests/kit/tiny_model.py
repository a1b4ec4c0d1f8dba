"""A whole Llama checkpoint of a few hundred kilobytes with seeded random weights, for engine tests.

Files as Hugging Face writes them: config.json, model.safetensors (or two shards with an index),
tokenizer.json (bytes and a few merges), tokenizer_config.json with a chat template in ChatML.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("Ġ", "the"), ("Ġ", "a"), ("o", "n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLlama:
    """The numbers of a tiny model; every default can be changed."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vocab: int = 320
    context_tokens: int = 2048
    tied: bool = True
    seed: int = 0
    rope: dict[str, object] | None = None

    def config(self) -> dict[str, object]:
        """config.json as transformers 5 writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "max_position_embeddings": self.context_tokens,
            "rms_norm_eps": 1e-5,
            "rope_parameters": self.rope or {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Random tensors under Hugging Face's names, the same for the same seed."""
        dice = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=dice) / math.sqrt(shape[-1])

        head_dim = self.hidden // self.heads
        found = {"model.embed_tokens.weight": draw(self.vocab, self.hidden)}
        for layer in range(self.layers):
            for name, shape in {
                "self_attn.q_proj": (self.heads * head_dim, self.hidden),
                "self_attn.k_proj": (self.kv_heads * head_dim, self.hidden),
                "self_attn.v_proj": (self.kv_heads * head_dim, self.hidden),
                "self_attn.o_proj": (self.hidden, self.heads * head_dim),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "mlp.down_proj": (self.hidden, self.intermediate),
            }.items():
                found[f"model.layers.{layer}.{name}.weight"] = 2 * draw(*shape)
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = 1 + 0.1 * torch.randn(self.hidden, generator=dice)
                found[f"model.layers.{layer}.{name}.weight"] = norm
        found["model.norm.weight"] = 1 + 0.1 * torch.randn(self.hidden, generator=dice)
        if not self.tied:
            found["lm_head.weight"] = draw(self.vocab, self.hidden)
        return found

    def write(self, folder: Path, *, shards: int = 1) -> Path:
        """Write the checkpoint into `folder` (made if need be) and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config()))
        weights = self.weights()
        names = sorted(weights)
        by_name: dict[str, str] = {}
        for shard in range(shards):
            file = "model.safetensors"
            if shards > 1:
                file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard::shards]
            save_file({name: weights[name] for name in part}, folder / file)
            by_name |= dict.fromkeys(part, file)
        if shards > 1:
            index = {"metadata": {}, "weight_map": by_name}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        byte_level_tokenizer().save(str(folder / "tokenizer.json"))
        settings = {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder


def byte_level_tokenizer() -> Tokenizer:
    """Every byte, a few merges and three special tokens: 266 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [*SPECIALS, *letters, *("".join(pair) for pair in MERGES)]
    made = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, list(MERGES)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return made
