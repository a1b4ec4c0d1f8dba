"""The request members of other servers that this engine does not implement: refused, or harmless.

A client that sends a constraint relies on it, so an ignored constraint is a wrong answer. The engine
refuses such a member unless its value asks for nothing. A hint changes speed, routing, bookkeeping or
extra output, never which answer is right, so the engine ignores it. It ignores names in neither table
too, so that newer clients work.

Sources (2026-08): OpenAI's API reference for chat and completions; the protocol classes of vLLM and
SGLang; the README of llama.cpp's server; the parameter lists of OpenRouter, DeepSeek, Qwen and Mistral.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.fields import Fields

_OFF: Final[tuple[Any, ...]] = (False, "", [], {})  # these ask for nothing; so does null
_NEVER: Final[tuple[Any, ...]] = (False, "")  # here an empty object asks: any JSON, any web page

# member -> the values that ask for nothing
REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    # a form of the answer
    **dict.fromkeys(("json_schema", "guided_json"), _NEVER),
    **dict.fromkeys(
        (
            "ebnf", "grammar", "grammar_lazy", "grammar_triggers", "guided_choice", "guided_decoding",
            "guided_grammar", "guided_regex", "regex", "stop_regex", "structural_tag",
            "structured_outputs",
        ),
        _OFF,
    ),
    # calls, media, the web, documents
    "function_call": (*_OFF, "none", "auto"),
    "functions": _OFF,
    "modalities": (*_OFF, ["text"]),
    "web_search_options": _NEVER,
    **dict.fromkeys(
        (
            "audio", "data_sources", "documents", "enable_search", "image_data", "input_extra",
            "input_ids", "lora", "lora_path", "multimodal_data", "plugins", "prompt_embeds",
            "search_parameters", "session_params", "suffix",
        ),
        _OFF,
    ),
    # which tokens may come, and when the answer ends
    **dict.fromkeys(
        (
            "allowed_token_ids", "bad_words", "custom_logit_processor", "custom_params",
            "include_stop_str_in_output", "logits_processors", "no_stop_trim",
            "repetition_detection", "samplers", "stop_token_ids", "use_beam_search", "vllm_xargs",
            "watermark",
        ),
        _OFF,
    ),
    **dict.fromkeys(("max_new_tokens", "n_predict", "random_seed", "sampling_seed"), (*_OFF, -1)),
    **dict.fromkeys(
        (
            "dry_multiplier", "dynatemp_range", "min_keep", "min_tokens", "mirostat", "n_indent",
            "no_repeat_ngram_size", "t_max_predict_ms", "top_a", "xtc_probability",
        ),
        (*_OFF, 0),
    ),
    **dict.fromkeys(
        (
            "n_cmpl", "num_beams", "repeat_penalty", "repetition_penalty", "tfs_z", "typical",
            "typical_p",
        ),
        (*_OFF, 1),
    ),
    **dict.fromkeys(("adaptive_target", "top_n_sigma"), (*_OFF, -1)),
    # how the prompt is made
    "add_generation_prompt": (True,),
    **dict.fromkeys(
        (
            "chat_template", "chat_template_kwargs", "continue_final_message", "safe_prompt",
            "tool_prompt", "truncate_prompt_tokens",
        ),
        _OFF,
    ),
    # what the answer holds beside its text
    "n_probs": (*_OFF, 0),
    "skip_special_tokens": (True,),
    **dict.fromkeys(
        (
            "kv_transfer_params", "post_sampling_probs", "prompt_logprobs", "response_fields",
            "return_full_text", "return_hidden_states", "return_meta_info", "return_prompt_token_ids",
            "return_routed_experts", "return_text_in_logprobs", "return_token_ids", "return_tokens",
            "return_tokens_as_token_ids", "top_logprobs_num", "token_ids_logprob",
        ),
        _OFF,
    ),
}  # fmt: skip
REFUSED_IN_CHAT: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_special_tokens": _OFF,
    "best_of": (*_OFF, 1),
    "echo": _OFF,
}
REFUSED_IN_COMPLETIONS: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_special_tokens": (True,),
    "tool_choice": (*_OFF, "none", "auto"),
    "tools": _OFF,
    "top_logprobs": (*_OFF, 0),
}
REFUSED_IN_MESSAGES: Final = dict.fromkeys(("audio", "partial", "prefix"), _OFF)
REFUSED_IN_STREAM_OPTIONS: Final = {"continuous_usage_stats": _OFF}
HINTS: Final = frozenset(
    (
        "adaptive_decay", "bootstrap_host", "bootstrap_port", "bootstrap_room",
        "cache_prompt", "cache_salt", "data_parallel_rank", "dry_allowed_length", "dry_base",
        "dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent", "enable_thinking",
        "extra_key", "guided_decoding_backend", "guided_whitespace_pattern", "id_slot",
        "include_reasoning", "length_penalty", "metadata", "mirostat_eta", "mirostat_tau",
        "mm_processor_kwargs", "models", "n_cache_reuse", "n_keep", "parallel_tool_calls",
        "parse_tool_calls", "prediction", "preserved_tokens", "priority", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "provider", "reasoning",
        "reasoning_budget", "reasoning_effort", "reasoning_format", "repeat_last_n",
        "request_id", "return_progress", "rid", "route", "safety_identifier",
        "separate_reasoning", "service_tier", "spaces_between_special_tokens", "store",
        "stream_reasoning", "thinking", "thinking_budget", "thinking_token_budget",
        "timings_per_token", "transforms", "usage", "user", "verbosity", "xtc_threshold",
    )
)  # fmt: skip


def refuse_ignored(fields: Fields, *tables: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises `RequestError` 400 `unsupported_value` for the first member that asks for something."""
    for table in tables:
        for name in fields.names() & table.keys():
            value = fields.raw(name)
            if value is not None and not any(_equal(value, nothing) for nothing in table[name]):
                fields.fail(name, "is not supported by this engine", "unsupported_value")


def _equal(value: object, nothing: object) -> bool:
    """JSON's equality: true is not 1."""
    return isinstance(value, bool) == isinstance(nothing, bool) and value == nothing
