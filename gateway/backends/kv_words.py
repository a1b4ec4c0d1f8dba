"""A plan in the words of the bundled engine: the member ``kv`` of its calls; pure."""

from typing import Any

from gateway.backends.base import KnownPrefix
from policies.call import Call
from policies.plan import Plan

Json = dict[str, Any]


def kv_member(plan: Plan) -> Json:
    """Who may share the KV, how long and how near it is worth keeping, who goes first."""
    terms = plan.kv
    said: Json = {
        **salts(plan),
        "priority": plan.priority,
        "ttl_s": plan.ttl_s,
        "lane": plan.lane,
        "reuse": plan.reuse_prefix,
    }
    optional = {
        "floor": terms.floor,
        "session": terms.session,
        "quota_bytes": terms.quota_bytes,
        "own_salts": list(terms.own_salts) or None,
    }
    return said | {name: value for name, value in optional.items() if value is not None}


def salts(plan: Plan) -> Json:
    """One salt for the whole prompt, or that of the base and that of what follows."""
    after = plan.kv.after
    if after is None:
        return {"salt": plan.salt}
    base: Json = {"salt": plan.salt}
    if after.messages is not None:
        base["messages"] = after.messages
    if after.characters is not None:
        base["characters"] = after.characters
    return {"salt": after.salt, "base": base}


def lookup_wish(call: Call, plan: Plan) -> Json | None:
    """What to ask of the call's prompt; ``None``: it has none, or is not to be looked for."""
    name = {"chat": "messages", "completions": "prompt"}.get(call.endpoint)
    if name is None or not plan.reuse_prefix:
        return None
    own = {"own_salts": list(plan.kv.own_salts)} if plan.kv.own_salts else {}
    return {name: call.body[name], **salts(plan), **own}


def known_prefix(backend: str, said: Json) -> KnownPrefix:
    """What was answered to that."""
    tiers, missed = said.get("tiers"), said.get("missed")
    return KnownPrefix(
        backend,
        int(said.get("tokens", 0)),
        int(said.get("hit_tokens", 0)),
        tiers if isinstance(tiers, dict) else None,
        missed if isinstance(missed, dict) else None,
    )
