"""The tiny checkpoint as a GGUF, the way llama.cpp's converter writes a Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

from tests.kit.tiny_model import CHAT_TEMPLATE, MERGES, SPECIALS, TinyLlama, byte_level_tokenizer

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of Hugging Face's."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[part]}.weight"


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of query and key rows (`LlamaModel.permute` of its converter)."""
    rows, inputs = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, inputs)
    return halves.swapaxes(1, 2).reshape(rows, inputs)


def write_gguf(
    tiny: TinyLlama,
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    leave_out: str = "",
    metadata: dict[str, Any] | None = None,
    architecture: str = "llama",
    extra: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write the model; matrices as `kind`, norms as F32. `metadata` adds or changes numbers."""
    writer = GGUFWriter(path, architecture)
    numbers: dict[str, Any] = {
        f"{architecture}.block_count": tiny.layers,
        f"{architecture}.context_length": tiny.context_tokens,
        f"{architecture}.embedding_length": tiny.hidden,
        f"{architecture}.feed_forward_length": tiny.intermediate,
        f"{architecture}.attention.head_count": tiny.heads,
        f"{architecture}.attention.head_count_kv": tiny.kv_heads,
    }
    for key, value in (numbers | (metadata or {})).items():
        writer.add_uint32(key, value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    _write_vocabulary(writer, tiny)
    for name, weight in (tiny.weights() | (extra or {})).items():
        if name == leave_out:
            continue
        values = _ordered(name, weight, tiny).numpy()
        own = name if name in (extra or {}) else gguf_name(name)
        if weight.ndim == 1 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(own, values)
        else:
            writer.add_tensor(own, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _ordered(name: str, weight: torch.Tensor, tiny: TinyLlama) -> torch.Tensor:
    if name.endswith("q_proj.weight"):
        return permuted(weight, tiny.heads)
    if name.endswith("k_proj.weight"):
        return permuted(weight, tiny.kv_heads)
    return weight


def _write_vocabulary(writer: GGUFWriter, tiny: TinyLlama) -> None:
    known = byte_level_tokenizer()
    texts = [known.id_to_token(i) or f"<unused{i}>" for i in range(tiny.vocab)]
    types = np.full(tiny.vocab, TokenType.NORMAL, dtype=np.int32)
    types[: len(SPECIALS)] = TokenType.CONTROL
    types[known.get_vocab_size() :] = TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(texts)
    writer.add_token_types(types.tolist())
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
