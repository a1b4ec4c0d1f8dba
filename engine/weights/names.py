"""One set of tensor names, Hugging Face's, and how GGUF's names map to it. Torch-free."""

from __future__ import annotations

from engine.errors import ModelLoadError

_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def from_gguf(name: str) -> str:
    """Hugging Face's name of a GGUF tensor. Raises `ModelLoadError` for one a Llama does not have."""
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match name.split("."):
        case ["blk", number, part, "weight"] if part in _GGUF_LAYER and number.isdigit():
            return f"model.layers.{int(number)}.{_GGUF_LAYER[part]}.weight"
        case _:
            raise ModelLoadError(f"tensor {name!r} is not part of a Llama-family model")
