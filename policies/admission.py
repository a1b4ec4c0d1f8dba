"""Is a new answer kept, and for how long?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from policies.call import Endpoint
from policies.freshness import jittered
from policies.outcome import Abandoned, Completed, Elsewhere, Ending, Failed
from policies.plan import Plan
from policies.rules import Rules

# A refusal that the same request will meet again. 401, 403, 408, 409, 429 and 5xx may pass.
_DETERMINISTIC = frozenset({400, 404, 422})

Finish = Literal["whole", "filtered", "unfinished"]
"""Whether an answer is all there, held back by a content filter, or broken off."""
_TEXT_ENDS: Final = frozenset({
    "stop", "length",  # OpenAI's
    "eos", "eos_token", "stop_sequence",  # Together, TGI
    "end_turn", "max_tokens",  # Anthropic-compatible, Gemini-compatible
    "model_length",  # Mistral
    "complete",  # Cohere
})  # fmt: skip
_WHOLE_ENDS: Final[Mapping[Endpoint, frozenset[str]]] = {
    "chat": _TEXT_ENDS | {"tool_calls", "function_call", "tool_use"},
    "completions": _TEXT_ENDS,
}
_FILTERED: Final = "content_filter"
_ENDS: Final = frozenset({_FILTERED}).union(*_WHOLE_ENDS.values())


@dataclass(frozen=True, slots=True)
class Store:
    """Keep it for ``ttl_s`` (jittered). ``negative``: a refusal or a filtered answer, never stale."""

    ttl_s: float
    negative: bool


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not keep it. ``why`` is one word for log and metrics."""

    why: str


def is_end(reason: object) -> bool:
    """Whether this finish reason is one of a good answer, or of a filtered one."""
    return isinstance(reason, str) and reason.lower() in _ENDS


def finish(endpoint: Endpoint, reasons: Sequence[object]) -> Finish:
    """How an answer with these finish reasons, one for each choice, ended.

    A closed set of words is good: a word that is not in it (``error``, ``abort``, ``timeout``, one
    that a server invents tomorrow) is no end worth keeping.
    """
    words = [reason.lower() if isinstance(reason, str) else "" for reason in reasons]
    good = _WHOLE_ENDS.get(endpoint, frozenset())
    if not words or not all(word in good or word == _FILTERED for word in words):
        return "unfinished"
    return "filtered" if _FILTERED in words else "whole"


def admit(
    plan: Plan,
    ending: Ending,
    *,
    finish: Finish = "whole",
    size_bytes: int,
    rules: Rules,
    draw: float,
) -> Store | Refuse:
    """Keep what ended well, and for a short while what will be refused again.

    ``draw`` in ``[0, 1)`` jitters the ttl. Why not: a word of ``Plan.why_not``, ``too_large``,
    ``error``, ``filtered`` or ``unfinished``.
    """
    if not plan.may_store:
        return Refuse(_why_not_stored(plan))
    match ending:
        case Completed():
            if finish == "unfinished":
                return Refuse(finish)
            ttl_s, negative = plan.ttl_s, finish == "filtered"
            if negative:
                ttl_s = min(ttl_s, rules.negative_ttl_s)
            if ttl_s <= 0:
                return Refuse("filtered")
        case Failed():
            if not _is_remembered(plan, ending, rules):
                return Refuse("error")
            ttl_s, negative = rules.negative_ttl_s, True
        case Abandoned() | Elsewhere():
            return Refuse("unfinished")
        case _:
            assert_never(ending)
    if size_bytes > rules.limits.max_entry_bytes:
        return Refuse("too_large")
    return Store(jittered(ttl_s, rules.jitter, draw), negative)


def _is_remembered(plan: Plan, ending: Failed, rules: Rules) -> bool:
    """A refusal belongs to one fingerprint, and must not take the place of a good answer."""
    return (
        ending.status in _DETERMINISTIC
        and ending.fault != "ours"
        and rules.negative_ttl_s > 0
        and not ending.beyond_key
        and plan.match != "key"
        and plan.may_read
    )


def _why_not_stored(plan: Plan) -> str:
    # why_not tells why reading was refused where both were; the two storing words remain
    if plan.why_not != "no_cache" and plan.why_not is not None:
        return plan.why_not
    return "ttl_0" if plan.ttl_s == 0 else "no_store"
