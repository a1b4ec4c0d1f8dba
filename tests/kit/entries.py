"""Entries and plans for tests of what keeps and finds them."""

from collections.abc import Mapping
from typing import Any

from gateway.store.base import Entry
from policies.call import Call, Endpoint, parse_call
from policies.directive import parse_directive
from policies.freshness import EntryMeta
from policies.keys import Principal, Scope, fingerprint
from policies.plan import Plan, decide
from policies.rules import Limits, Rules, default_rules

NOW = 1_700_000_000.0
OPEN = Principal("default", trusted=True, admin=True)


def key_of(name: str) -> bytes:
    """A key of the real size."""
    return fingerprint(name.encode())


def meta_of(name: str = "k", *, tenant: str = "t", size_bytes: int = 2, **more: Any) -> EntryMeta:
    """What is known about an entry."""
    facts: dict[str, Any] = {
        "key": key_of(name),
        "scope": Scope("tenant", tenant),
        "model": "m",
        "endpoint": "chat",
        "tier": "warm",
        "priority": "medium",
        "stored_at": NOW,
        "ttl_s": 100.0,
        "stale_while_revalidate_s": 0.0,
        "stale_if_error_s": 0.0,
        "cost_s": 1.0,
        "size_bytes": size_bytes,
        "prompt_tokens": 5,
        "completion_tokens": 2,
        **more,
    }
    return EntryMeta(**facts)


def entry_of(name: str = "k", body: bytes = b"{}", **more: Any) -> Entry:
    """An entry whose key follows from its name."""
    return Entry(meta_of(name, size_bytes=len(body), **more), body)


def asked(
    text: str = "?",
    kv_cache: object = True,
    *,
    headers: Mapping[str, str] | None = None,
    principal: Principal = OPEN,
    rules: Rules | None = None,
    endpoint: Endpoint = "chat",
    **body: Any,
) -> tuple[Call, Plan]:
    """A request, understood."""
    known = {"model": "m", "messages": [{"role": "user", "content": text}], "prompt": text}
    call = parse_call(endpoint, {**known, **body})
    spoken = parse_directive(kv_cache, (headers or {}).items(), limits=Limits())
    return call, decide(call, spoken, principal, rules or default_rules())
