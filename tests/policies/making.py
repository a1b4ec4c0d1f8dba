"""What the tests of this folder share: short ways to a call, a plan, an entry."""

from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from policies.call import Call, Endpoint, parse_call
from policies.contexts import Terms
from policies.directive import Directive, parse_directive
from policies.freshness import EntryMeta
from policies.keys import Principal, Scope
from policies.plan import Plan, decide
from policies.rules import Limits, Rules, default_rules

RULES = default_rules()
OPEN = Principal("open", trusted=True)

few = settings(
    max_examples=25,
    deadline=None,  # two busy cores: time is measured elsewhere
    derandomize=True,  # the gate must not depend on luck
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

# Names that try to be delimiters, lengths and other parts.
texts = st.text(max_size=8) | st.sampled_from(["", "\0", ":", "s", "-", "1", "é", "你好", "\ud800"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def call_of(*messages: dict[str, Any] | str, endpoint: Endpoint = "chat", **fields: Any) -> Call:
    """A call; a plain string is a user message."""
    if endpoint == "chat":
        given = messages or ("hello",)
        fields["messages"] = [
            {"role": "user", "content": item} if isinstance(item, str) else item for item in given
        ]
    return parse_call(endpoint, {"model": "m", **fields})


def directive_of(
    kv_cache: object = None,
    headers: Iterable[tuple[str, str]] | None = None,
    prompt_cache_key: object = None,
) -> Directive:
    """A directive under the default limits."""
    return parse_directive(
        kv_cache, headers or [], limits=Limits(), prompt_cache_key=prompt_cache_key
    )


def plan_of(
    kv_cache: object = None,
    *,
    headers: dict[str, str] | None = None,
    call: Call | None = None,
    principal: Principal = OPEN,
    rules: Rules = RULES,
    prompt_cache_key: object = None,
    model: str | None = None,
    context: Terms | None = None,
    without: str | None = None,
) -> Plan:
    """The plan for a call, enabled when nothing at all was said about caching."""
    said = {"enabled": True} if kv_cache is None and headers is None else kv_cache
    directive = directive_of(said, (headers or {}).items(), prompt_cache_key)
    return decide(
        call or call_of(),
        directive,
        principal,
        rules,
        model=model,
        context=context,
        without=without,
    )


def terms_of(**known: Any) -> Terms:
    """A shared context of acme, open to all its users."""
    facts: dict[str, Any] = {
        "tenant": "acme",
        "id": "team",
        "edition": "e1",
        "allowed_users": (),
        "ttl_s": 7200.0,
        "priority": "high",
        "model": None,
        "made_by": None,
        "created_at": 1000.0,
        "renewed_at": 1000.0,
    }
    return Terms(**facts | known)


def because(plan: Plan, field: str) -> tuple[str, str]:
    """What was decided about ``field``, and why."""
    return next((r.value, r.because) for r in plan.reasons if r.field == field)


def meta_of(**known: Any) -> EntryMeta:
    """An entry stored at 1000 s that lives 100 s."""
    facts: dict[str, Any] = {
        "key": b"k" * 32,
        "scope": Scope("tenant", "open"),
        "model": "m",
        "endpoint": "chat",
        "tier": "warm",
        "priority": "medium",
        "stored_at": 1000.0,
        "ttl_s": 100.0,
        "stale_while_revalidate_s": 0.0,
        "stale_if_error_s": 0.0,
        "cost_s": 2.0,
        "size_bytes": 500,
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    return EntryMeta(**facts | known)
