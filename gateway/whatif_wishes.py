"""What another configuration would have decided about a call of the journal.

A journal names the rule that decided about tier, ttl and priority, in the operator's words. What the
client asked for stays; what a table said is looked up in the other configuration's table. A name that only
the other configuration has cannot be recognised: the journal has it as ``*``.
"""

from typing import NamedTuple

from gateway.trace import Recorded
from policies.eviction import Priority
from policies.rules import PrefixRule, ProfileRule, Rules, TierName


class Decided(NamedTuple):
    """Where, how long and how important."""

    tier: TierName
    ttl_s: float
    priority: Priority


def decided(call: Recorded, rules: Rules) -> Decided:
    """Decide anew."""
    tier = rules.tiers[_tier(call, rules)]
    ttl_s, priority = call.ttl_s, call.priority
    if not _is_asked_for(call, "ttl_s"):
        brings = _brings(call.by["ttl_s"], rules)
        said_s = None if brings is None else brings.ttl_s
        ttl_s = tier.ttl_s if said_s is None else said_s
    if not _is_asked_for(call, "priority"):
        brings = _brings(call.by["priority"], rules)
        said = None if brings is None else brings.priority
        priority = tier.priority if said is None else said
    return Decided(tier.name, ttl_s, priority)


def _is_asked_for(call: Recorded, field: str) -> bool:
    return call.by.get(field, "request") in {"request", "shared"}


def _tier(call: Recorded, rules: Rules) -> TierName:
    kind, _, name = call.by.get("tier", "request").partition(":")
    match kind:
        case "default":
            return rules.default_tier
        case "prompt_type":
            found = rules.prompt_types.get(name) or rules.prompt_types.get("*")
            return found or rules.default_tier
        case "key_prefix":
            rule = _prefix(name, rules)
            return (rule.tier if rule else None) or rules.default_tier
        case _:
            return call.plan_tier


def _brings(origin: str, rules: Rules) -> ProfileRule | PrefixRule | None:
    """The rule beside the tier's own that says something about ttl and priority."""
    kind, _, name = origin.partition(":")
    match kind:
        case "context":
            return rules.contexts.get(name) or rules.contexts.get("*")
        case "key_prefix":
            return _prefix(name, rules)
        case _:
            return None


def _prefix(name: str, rules: Rules) -> PrefixRule | None:
    return next((rule for rule in rules.key_prefixes if rule.prefix == name), None)
