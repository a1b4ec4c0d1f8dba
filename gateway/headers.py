"""An outcome as response headers and body fields (protocol section 4); no IO.

An outcome is rendered twice for a stream: as opening headers, and as the last usage chunk,
because headers leave before the ending is known. ``Cache-Status`` is RFC 9211.
"""

from collections.abc import Mapping
from typing import Any, Final, assert_never

from gateway import exact_json
from gateway.chunks import Json, Whole
from gateway.responses import EventLog, is_response
from policies.outcome import Outcome
from policies.plan import Plan

CACHE_NAME: Final = "kvgate"
RECEIPT: Final = "kv_receipt"
"""What an engine says of one computation: none of it is true of an answer from the store."""
_MADE_ANEW: Final = frozenset({"id", "created", RECEIPT})


def render(plan: Plan, outcome: Outcome) -> dict[str, str]:
    """The ``X-Cache-*``, ``Age`` and ``Cache-Status`` headers of an answer."""
    headers = {
        "X-Cache-Hit": "true" if outcome.hit else "false",
        "X-Cache-Level": outcome.level,
        "Cache-Status": cache_status(plan, outcome),
    }
    if plan.enabled:
        headers["X-Cache-Key"] = outcome.key
        headers["X-Cache-Tier"] = outcome.tier
    if outcome.age_s is not None:
        headers["Age"] = str(int(outcome.age_s))
    if outcome.ttl_left_s is not None:
        headers["X-Cache-TTL"] = str(max(0, int(outcome.ttl_left_s)))
    if outcome.tokens_saved:
        headers["X-Cache-Tokens-Saved"] = str(outcome.tokens_saved)
    if outcome.stale:
        headers["X-Cache-Stale"] = "true"
    if outcome.fallback is not None:
        headers["X-Cache-Fallback"] = outcome.fallback
    if plan.debug:
        if outcome.debug is not None:
            headers["X-Cache-Debug"] = outcome.debug
        if outcome.miss_reason is not None:
            headers["X-Cache-Miss-Reason"] = miss_reason_value(outcome)
    return headers


def cache_status(plan: Plan, outcome: Outcome) -> str:
    """One member of RFC 9211's list: this cache."""
    parts = [CACHE_NAME]
    match outcome.level:
        case "response" if outcome.forwarded is not None:
            parts.append(f"fwd={outcome.forwarded}")
            if outcome.stored:
                parts.append("stored")
            parts.append("detail=response")
        case "response" | "semantic" | "negative":
            parts.append("hit")
            if outcome.ttl_left_s is not None:
                parts.append(f"ttl={int(outcome.ttl_left_s)}")
            parts.append(f"detail={outcome.level}")
        case "prefix" | "none":
            parts.append(f"fwd={outcome.forwarded or 'uri-miss'}")
            if outcome.collapsed:
                parts.append("collapsed")
            if outcome.stored:
                parts.append("stored")
            if outcome.detail is not None:
                parts.append(f"detail={outcome.detail}")
            elif outcome.level == "prefix":
                parts.append("detail=prefix")
        case _:
            assert_never(outcome.level)
    if plan.enabled:
        parts.append(f'key="{outcome.key}"')
    return "; ".join(parts)


def miss_reason_value(outcome: Outcome) -> str:
    """The reason word, with the first difference as parameters where there is one."""
    reason = outcome.miss_reason or ""
    if outcome.difference is None:
        return reason
    where = "; ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        for name, value in outcome.difference.as_dict().items()
    )
    return f"{reason}; {where}"


def annotated(body: Json, outcome: Outcome) -> Json:
    """The body with ``cache_hit`` and the reuse figures in ``usage``; the original is not touched."""
    marked = with_receipt({**body, "cache_hit": outcome.hit}, outcome)
    usage = body.get("usage")
    if isinstance(usage, dict):
        marked["usage"] = annotated_usage(usage)
    return marked


def with_receipt(marked: Json, outcome: Outcome) -> Json:
    """``marked``, which may be changed, with the engine's receipt only if an explanation is wanted."""
    if outcome.debug is None:
        marked.pop(RECEIPT, None)
    return marked


def replayable(body: Json, log: EventLog | None = None) -> bytes:
    """What the store holds: the answer as a later caller gets it, but for its new id and date.

    In a second line are the events of ``log`` where the answer alone does not tell them.

    Raises: NotStrict: it holds what no JSON can hold.
    """
    is_typed = is_response(body)
    made_anew = frozenset({RECEIPT}) if is_typed else _MADE_ANEW
    kept = {name: value for name, value in body.items() if name not in made_anew}
    kept["cache_hit"] = True
    if isinstance(usage := body.get("usage"), dict):
        kept["usage"] = annotated_usage(usage)
    answer = exact_json.dumps_strict(kept)
    if not is_typed or log is None or not log.runs or not log.tells_more_than(kept):
        return answer
    return b"%b\n%b" % (answer, exact_json.dumps_strict(log.runs))


def replayed(kept: bytes, new_id: str | None, created_s: int) -> bytes:
    """A stored answer under a new id; without one (embeddings have none) as it is."""
    if new_id is None:
        return kept.partition(b"\n")[0]
    return b'{"id":"%b","created":%d,%b' % (new_id.encode(), created_s, kept[1:])


def stored_answer(kept: bytes) -> Whole:
    """A stored answer as data, with the events in which it came where those are kept."""
    answer, _, log = kept.partition(b"\n")
    return Whole(exact_json.loads(answer), exact_json.loads(log) if log else None)


def annotated_usage(usage: Mapping[str, Any]) -> Json:
    """``usage`` with ``prompt_cache_hit_tokens``, its counterpart and ``cached_tokens``.

    The backend's figures stand; what it leaves out is filled in from what it says.
    """
    prompt = usage.get("prompt_tokens")
    if not isinstance(prompt, int):
        return dict(usage)
    given = usage.get("prompt_tokens_details")
    details = given if isinstance(given, dict) else {}
    cached = details.get("cached_tokens")
    hit = usage.get("prompt_cache_hit_tokens")
    hit = hit if isinstance(hit, int) else cached if isinstance(cached, int) else 0
    miss = usage.get("prompt_cache_miss_tokens")
    return {
        **usage,
        "prompt_cache_hit_tokens": hit,
        "prompt_cache_miss_tokens": miss if isinstance(miss, int) else max(0, prompt - hit),
        "prompt_tokens_details": {**details, "cached_tokens": hit},
    }
