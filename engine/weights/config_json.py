"""Reads config.json as Hugging Face's libraries write it, for each family known here. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelLoadError
from engine.models.config import LatentConfig, ModelConfig, MoeConfig
from engine.models.rope import llama3_factors, yarn_factors, yarn_mscale

Raw = Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ModelLoadError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelLoadError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: not a JSON object")
    return value


def read_config(path: Path) -> ModelConfig:
    """The numbers of a model of a known family, of transformers 4 or 5. Raises `ModelLoadError`.

    How weights are quantised is not among them: whoever reads weights asks `refuse_quantised`.
    """
    raw = read_json(path)
    kind = raw.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(_FAMILIES)
        raise ModelLoadError(f"{path}: model_type {kind!r} is not known here (known: {known})")
    for key, plain in (("mlp_bias", False), ("hidden_act", "silu")):
        if raw.get(key, plain) != plain:
            raise ModelLoadError(f"{path}: {key} {raw[key]!r} is not known here")
    try:
        config = ModelConfig(**_shared(raw), **family(raw))
    except _UnknownHereError as error:
        raise ModelLoadError(f"{path}: {error} is not known here") from None
    except (
        KeyError, TypeError, ValueError, ArithmeticError, AttributeError,
    ) as error:  # fmt: skip
        raise ModelLoadError(f"{path}: {type(error).__name__} {error}") from error
    config.check(str(path))
    return config


def refuse_quantised(path: Path) -> None:
    """Raises `ModelLoadError` when config.json says that its weights are quantised."""
    how = read_json(path).get("quantization_config")
    if how is not None:
        raise ModelLoadError(f"{path}: quantization_config {how!r} is not known here")


class _UnknownHereError(Exception):
    """A word of config.json that asks for something this engine does not compute."""


def _shared(raw: Raw) -> dict[str, Any]:
    heads = int(raw["num_attention_heads"])
    return {
        "architecture": raw["model_type"],
        "layers": int(raw["num_hidden_layers"]),
        "hidden": int(raw["hidden_size"]),
        "heads": heads,
        "intermediate": int(raw["intermediate_size"]),
        "vocab": int(raw["vocab_size"]),
        "rms_eps": float(raw["rms_norm_eps"]),
        "tied": bool(raw.get("tie_word_embeddings", False)),
    }


# -- the Llama family ----------------------------------------------------------------------------


def _grouped(raw: Raw) -> dict[str, Any]:
    """What all with grouped-query attention share."""
    heads = int(raw["num_attention_heads"])
    head_dim = int(raw.get("head_dim") or int(raw["hidden_size"]) // heads)
    return {
        "kv_heads": int(raw.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "context_tokens": _context(raw),
        **_rope(raw, head_dim),
    }


def _context(raw: Raw) -> int:
    """The longest context; a model with a sliding window is the same as one without up to its size."""
    longest = _reach(raw)
    window = raw.get("sliding_window")
    if window is None or raw.get("use_sliding_window") is False:
        return longest
    return min(longest, int(window))


def _reach(raw: Raw) -> int:
    """As far as positions go. With yarn some files give the length before it, some that behind it."""
    longest = int(raw["max_position_embeddings"])
    words = _rope_words(raw)
    if _rope_kind(words) != "yarn":
        return longest
    original, factor = _yarn_stretch(raw, words)
    return max(longest, int(original * factor))


def _llama(raw: Raw) -> dict[str, Any]:
    bias = bool(raw.get("attention_bias", False))
    return {"qkv_bias": bias, "out_bias": bias, **_grouped(raw)}


def _mistral(raw: Raw) -> dict[str, Any]:
    return _grouped(raw)


def _qwen2(raw: Raw) -> dict[str, Any]:
    # its library takes a missing word for "no window"
    return {"qkv_bias": True, **_grouped({"use_sliding_window": False, **raw})}


def _qwen3(raw: Raw) -> dict[str, Any]:
    return {"head_norms": True, **_llama({"use_sliding_window": False, **raw})}


# -- the DeepSeek family -------------------------------------------------------------------------


def _deepseek(raw: Raw) -> dict[str, Any]:
    """Latent attention and experts, as V2 and V3 have them."""
    if raw.get("attention_bias"):
        raise _UnknownHereError("attention_bias true")
    rank = raw.get("q_lora_rank")
    latent = LatentConfig(
        query_rank=None if rank is None else int(rank),
        latent=int(raw["kv_lora_rank"]),
        nope=int(raw["qk_nope_head_dim"]),
        rope=int(raw["qk_rope_head_dim"]),
        value=int(raw["v_head_dim"]),
        interleaved=bool(raw.get("rope_interleave", True)),
    )
    rope = _rope(raw, latent.rope)
    spelled = _rope_words(raw)
    weight = float(spelled.get("mscale_all_dim") or 0.0)
    if _rope_kind(spelled) != "default" and weight:
        rope["softmax_factor"] = yarn_mscale(float(spelled["factor"]), weight) ** 2
    return {
        "kv_heads": int(raw["num_attention_heads"]),
        "head_dim": latent.nope + latent.rope,
        "context_tokens": _reach(raw),
        "latent": latent,
        "moe": _moe(raw),
        **rope,
    }


def _moe(raw: Raw) -> MoeConfig | None:
    experts = int(raw.get("n_routed_experts") or 0)
    first = int(raw.get("first_k_dense_replace") or 0)
    if not experts or first >= int(raw["num_hidden_layers"]):
        return None
    if raw.get("moe_layer_freq", 1) != 1:
        raise _UnknownHereError(f"moe_layer_freq {raw['moe_layer_freq']!r}")
    third = raw["model_type"] == "deepseek_v3"
    method = raw.get("topk_method") or ("noaux_tc" if third else "greedy")
    if method not in (("noaux_tc",) if third else ("greedy", "group_limited_greedy")):
        raise _UnknownHereError(f"topk_method {method!r}")
    scoring = "sigmoid" if third else "softmax"
    if raw.get("scoring_func", scoring) != scoring:
        raise _UnknownHereError(f"scoring_func {raw['scoring_func']!r}")
    normalised = bool(raw.get("norm_topk_prob", third))
    if normalised and not third:
        raise _UnknownHereError("norm_topk_prob true with softmax")
    grouped = method != "greedy"
    return MoeConfig(
        experts=experts,
        chosen=int(raw["num_experts_per_tok"]),
        intermediate=int(raw["moe_intermediate_size"]),
        shared=int(raw.get("n_shared_experts") or 0),
        first_layer=first,
        scaling=float(raw.get("routed_scaling_factor", 1.0)),
        sigmoid=third,
        groups=int(raw.get("n_group") or 1) if grouped else 1,
        top_groups=int(raw.get("topk_group") or 1) if grouped else 1,
        normalised=normalised,
    )


_FAMILIES: Mapping[str, Callable[[Raw], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


# -- positions -----------------------------------------------------------------------------------


def _rope_words(raw: Raw) -> Raw:
    words: Raw = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return words


def _rope_kind(words: Raw) -> str:
    return str(words.get("rope_type") or words.get("type") or "default")


def _rope(raw: Raw, dim: int) -> dict[str, Any]:
    """`ModelConfig`'s fields about positions; `dim` is the rotated part of a head."""
    words = _rope_words(raw)
    theta = float(words.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = _rope_kind(words)
    found: dict[str, Any] = {"rope_theta": theta}
    if kind == "llama3":
        found["rope_factors"] = llama3_factors(
            theta=theta,
            dim=dim,
            factor=float(words["factor"]),
            low=float(words["low_freq_factor"]),
            high=float(words["high_freq_factor"]),
            original=float(words["original_max_position_embeddings"]),
        )
    elif kind == "yarn":
        found |= _yarn(raw, words, theta, dim)
    elif kind != "default":
        raise _UnknownHereError(f"rope scaling {kind!r}")
    return found


def _yarn_stretch(raw: Raw, words: Raw) -> tuple[float, float]:
    """The length before yarn in tokens, and how many times that it reaches."""
    longest = float(raw["max_position_embeddings"])
    original = float(words.get("original_max_position_embeddings") or longest)
    return original, float(words.get("factor") or longest / original)


def _yarn(raw: Raw, words: Raw, theta: float, dim: int) -> dict[str, Any]:
    original, factor = _yarn_stretch(raw, words)
    scale = words.get("attention_factor")
    if scale is None:
        one, all_dims = words.get("mscale"), words.get("mscale_all_dim")
        scale = yarn_mscale(factor)
        if one and all_dims:
            scale = yarn_mscale(factor, float(one)) / yarn_mscale(factor, float(all_dims))
    return {
        "rope_scale": float(scale),
        "rope_factors": yarn_factors(
            theta=theta,
            dim=dim,
            factor=factor,
            original=original,
            beta_fast=float(words.get("beta_fast") or 32),
            beta_slow=float(words.get("beta_slow") or 1),
            truncate=bool(words.get("truncate", True)),
        ),
    }
