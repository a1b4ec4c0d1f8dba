"""Every tensor of a model and its shape, under Hugging Face's names. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from engine.models.config import LatentConfig, ModelConfig, MoeConfig

Named = tuple[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a checkpoint of this model has to hold."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, hidden)
    for number in range(config.layers):
        at = f"model.layers.{number}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        latent, moe = config.latent, config.moe
        attention = _grouped(config) if latent is None else _latent(config, latent)
        shapes |= {f"{at}self_attn.{name}": shape for name, shape in attention}
        dense = moe is None or number < moe.first_layer
        mlp = _mlp(hidden, config.intermediate) if moe is None or dense else _moe(hidden, moe)
        shapes |= {f"{at}mlp.{name}": shape for name, shape in mlp}
    return shapes


def _grouped(config: ModelConfig) -> Iterator[Named]:
    hidden, dim = config.hidden, config.head_dim
    for part, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
        yield f"{part}_proj.weight", (heads * dim, hidden)
        if config.qkv_bias:
            yield f"{part}_proj.bias", (heads * dim,)
    yield "o_proj.weight", (hidden, config.heads * dim)
    if config.out_bias:
        yield "o_proj.bias", (hidden,)
    if config.head_norms:
        yield "q_norm.weight", (dim,)
        yield "k_norm.weight", (dim,)


def _latent(config: ModelConfig, latent: LatentConfig) -> Iterator[Named]:
    hidden, heads = config.hidden, config.heads
    queries = heads * (latent.nope + latent.rope)
    if latent.query_rank is None:
        yield "q_proj.weight", (queries, hidden)
    else:
        yield "q_a_proj.weight", (latent.query_rank, hidden)
        yield "q_a_layernorm.weight", (latent.query_rank,)
        yield "q_b_proj.weight", (queries, latent.query_rank)
    yield "kv_a_proj_with_mqa.weight", (latent.latent + latent.rope, hidden)
    yield "kv_a_layernorm.weight", (latent.latent,)
    yield "kv_b_proj.weight", (heads * (latent.nope + latent.value), latent.latent)
    yield "o_proj.weight", (hidden, heads * latent.value)


def _mlp(hidden: int, intermediate: int) -> Iterator[Named]:
    yield "gate_proj.weight", (intermediate, hidden)
    yield "up_proj.weight", (intermediate, hidden)
    yield "down_proj.weight", (hidden, intermediate)


def _moe(hidden: int, moe: MoeConfig) -> Iterator[Named]:
    yield "gate.weight", (moe.experts, hidden)
    if moe.sigmoid:
        yield "gate.e_score_correction_bias", (moe.experts,)
    for number in range(moe.experts):
        for name, shape in _mlp(hidden, moe.intermediate):
            yield f"experts.{number}.{name}", shape
    if moe.shared:
        for name, shape in _mlp(hidden, moe.intermediate * moe.shared):
            yield f"shared_experts.{name}", shape
