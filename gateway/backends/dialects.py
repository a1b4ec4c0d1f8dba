"""A plan in each make's own words; pure.

What a client may say about an upstream's cache is its plan, and nothing else: names of isolation
that a make understands (a salt, a user id) are derived here from the plan's scope and put in place of
whatever the client sent under that name. Everything a make does not define passes untouched.

=========  ==========================================================================================
dialect    what the plan becomes
=========  ==========================================================================================
kvgate     ``kv``: salts, priority, seconds, lane, reuse, floor, conversation, quota
openai     ``prompt_cache_key`` (scope and cache key, hashed); for models that know them (from GPT-5.6
           on) ``prompt_cache_options`` and a breakpoint behind the leading instructions
deepseek   ``user_id``: its KV cache is apart for each
vllm       ``cache_salt``
sglang     ``cache_salt``
llamacpp   ``cache_prompt``; it has no salt, so it is off where several tenants ask
generic    nothing
=========  ==========================================================================================

Sources: api-docs.deepseek.com on ``user_id``; OpenAI's guide to prompt caching and its OpenAPI document
(2026-08); vLLM's and SGLang's OpenAI-compatible servers; llama.cpp's ``tools/server``.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, assert_never

from gateway.backends.kv_words import kv_member
from policies.call import DEFAULT_MODEL, Call, verbatim
from policies.outcome import Usage
from policies.plan import Plan

Json = dict[str, Any]
Dialect = Literal["generic", "kvgate", "openai", "deepseek", "vllm", "sglang", "llamacpp"]
DIALECTS: Final[tuple[Dialect, ...]] = (
    "generic", "kvgate", "openai", "deepseek", "vllm", "sglang", "llamacpp",
)  # fmt: skip
HEALTH_ROUTES: Final[Mapping[Dialect, str]] = {
    "kvgate": "/healthz", "vllm": "/health", "sglang": "/health", "llamacpp": "/health",
}  # fmt: skip
"""Where a make says whether it can compute: at its root, not under /v1."""

_VERSION: Final = re.compile(r"gpt-(\d)(?!\d)(?:\.(\d+))?")
_ISOLATES: Final[Mapping[Dialect, tuple[str, ...]]] = {
    "kvgate": ("kv",), "deepseek": ("user_id",), "vllm": ("cache_salt",), "sglang": ("cache_salt",),
}  # fmt: skip
ASKS_USAGE: Final = {"include_usage": True}
# Of a plan that may store: the same for all plans of one key, or (kv) nothing that our engine refuses.
_OF_THE_KEY: Final[Mapping[Dialect, tuple[str, ...]]] = {
    "kvgate": ("kv", "stream", "stream_options"),
    "openai": ("prompt_cache_options",),
    "deepseek": ("user_id",),
    "vllm": ("cache_salt",),
    "sglang": ("cache_salt",),
    "llamacpp": ("cache_prompt",),
}
_EXPLICIT_FROM: Final = (5, 6)
_LONGEST_TTL: Final = "30m"  # the only one there is
_INSTRUCTIONS: Final = ("system", "developer")
_BREAKPOINT: Final = {"mode": "explicit"}


def spoken(
    dialect: Dialect, call: Call, plan: Plan, *, alone: bool, takes_usage: bool = True
) -> Json:
    """The request's body for a server of this make; ``alone``: no other tenant asks it.

    ``takes_usage``: a stream may be asked for its usage, as far as the gateway knows.
    """
    body = dict(call.body)
    if call.names_model or plan.model != DEFAULT_MODEL:
        body["model"] = plan.model
    has_no_prompt_cache = call.endpoint == "embeddings"
    if has_no_prompt_cache or (dialect == "kvgate" and call.endpoint == "responses"):
        for name in _ISOLATES.get(dialect, ()):
            body.pop(name, None)
        return body
    in_chunks = call.stream and call.endpoint != "responses"
    if not takes_usage:
        if body.get("stream_options") == ASKS_USAGE:
            del body["stream_options"]
    elif dialect != "kvgate" and in_chunks and plan.may_store:
        # A stored answer must serve plain readers too, and they are owed the usage.
        body["stream_options"] = {**(body.get("stream_options") or {}), **ASKS_USAGE}
    match dialect:
        case "kvgate":
            body["stream"] = True
            body["stream_options"] = dict(ASKS_USAGE)
            body["kv"] = kv_member(plan)
        case "openai":
            _speak_openai(body, call, plan)
        case "deepseek":
            body["user_id"] = _name(plan.salt)
        case "vllm" | "sglang":
            body["cache_salt"] = plan.salt
        case "llamacpp":
            body["cache_prompt"] = plan.reuse_prefix and alone
        case "generic":
            pass
        case _:
            assert_never(dialect)
    return body


def is_beyond_key(dialect: Dialect, sent: Json, call: Call, plan: Plan) -> bool:
    """Whether ``sent``, made by :func:`spoken`, says more than the plan's key covers.

    Not counted is what a make gets for every plan of the same key.
    """
    of_the_key = set(_OF_THE_KEY.get(dialect, ()))
    if dialect == "openai" and plan.affinity == plan.cache_key:
        of_the_key.add("prompt_cache_key")
    told = {name: value for name, value in sent.items() if name not in of_the_key}
    try:
        return verbatim(call, told) != plan.canonical
    except RecursionError:
        return True


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """Token counts from a ``usage`` object, with the reuse figures of every make."""
    prompt = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
    details = usage.get("prompt_tokens_details", usage.get("input_tokens_details"))
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        hit_tokens=min(prompt, _count(usage.get("prompt_cache_hit_tokens", cached))),
    )


def with_reuse(data: Json) -> Json:
    """An answer, or an event of one, whose ``usage`` says what llama.cpp says in ``timings``."""
    usage, timings = data.get("usage"), data.get("timings")
    if not isinstance(usage, dict) or not isinstance(timings, dict):
        return data
    cached, details = timings.get("cache_n"), usage.get("prompt_tokens_details")
    told = isinstance(details, dict) and "cached_tokens" in details
    if told or not isinstance(cached, int) or isinstance(cached, bool):
        return data
    known = details if isinstance(details, dict) else {}
    return {
        **data,
        "usage": {**usage, "prompt_tokens_details": {**known, "cached_tokens": cached}},
    }


def _speak_openai(body: Json, call: Call, plan: Plan) -> None:
    body["prompt_cache_key"] = _name(plan.salt, plan.affinity or "")
    if not _knows_breakpoints(plan.model):
        body.pop("prompt_cache_options", None)
        return
    body["prompt_cache_options"] = {
        "mode": "implicit" if plan.reuse_prefix else "explicit",
        "ttl": _LONGEST_TTL,
    }
    lasting = plan.priority == "high" or plan.scope.kind == "shared"
    if plan.reuse_prefix and plan.enabled and lasting and call.messages:
        body["messages"] = _marked(call.messages)


def _knows_breakpoints(model: str) -> bool:
    found = _VERSION.match(model)
    return found is not None and (int(found[1]), int(found[2] or 0)) >= _EXPLICIT_FROM


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with a breakpoint at the end of the leading instructions, if there are any."""
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in _INSTRUCTIONS:
        leading += 1
    if not leading:
        return list(messages)
    last = messages[leading - 1]
    content = last.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts or not isinstance(parts[-1], dict):
        return list(messages)
    marked = [*parts[:-1], {**parts[-1], "prompt_cache_breakpoint": _BREAKPOINT}]
    return [*messages[: leading - 1], {**last, "content": marked}, *messages[leading:]]


def _name(*parts: str) -> str:
    """A name that says nothing: equal for equal parts, and for nothing else."""
    digest = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return f"kvgate-{digest.hexdigest()}"


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
