"""Tier, ttl and priority of a call: each rule bids, the first bid that names a thing wins it."""

from typing import NamedTuple

from policies.call import Call
from policies.contexts import Terms
from policies.conversation import CONTEXT_OF, classify
from policies.directive import Directive
from policies.eviction import Priority
from policies.rules import Rules, TierName


class Reason(NamedTuple):
    """One decision and the rule that made it: ``("ttl_s", "86400", "key prefix faq:")``."""

    field: str
    value: str
    because: str


class Bid(NamedTuple):
    """What one rule would have; the first bid that names a thing wins it."""

    because: str
    tier: TierName | None
    ttl_s: float | None
    priority: Priority | None


class Retention(NamedTuple):
    """What was agreed on."""

    tier: TierName
    ttl_s: float
    priority: Priority


def agreed(bids: list[Bid], reasons: list[Reason]) -> Retention:
    """What wins of these bids, and why. They must name all three: the default tier does."""
    tier: TierName | None = None
    ttl_s: float | None = None
    priority: Priority | None = None
    for bid in bids:
        if tier is None and bid.tier is not None:
            tier = bid.tier
            reasons.append(Reason("tier", tier, bid.because))
        if ttl_s is None and bid.ttl_s is not None:
            ttl_s = bid.ttl_s
            reasons.append(Reason("ttl_s", f"{ttl_s:.15g}", bid.because))
        if priority is None and bid.priority is not None:
            priority = bid.priority
            reasons.append(Reason("priority", priority, bid.because))
    assert tier is not None  # the default tier bids for all three
    assert ttl_s is not None
    assert priority is not None
    return Retention(tier, ttl_s, priority)


def bids_of(call: Call, directive: Directive, rules: Rules, shared: Terms | None) -> list[Bid]:
    """The rules that speak for this call, in the protocol's order of precedence."""
    origins = directive.origins
    bids: list[Bid] = []
    if directive.ttl_s is not None:
        bids.append(Bid(origins["ttl_s"], None, directive.ttl_s, None))
    if directive.priority is not None:
        bids.append(Bid(origins["priority"], None, None, directive.priority))
    if directive.tier is not None:
        bids.append(_tier_bid(origins["tier"], directive.tier, rules))
    if directive.prompt_type is not None:
        tier = rules.prompt_types.get(directive.prompt_type) or rules.prompt_types.get("*")
        if tier is not None:
            bids.append(_tier_bid(f"prompt type {directive.prompt_type}", tier, rules))
    if directive.context is not None:
        profile = rules.contexts.get(directive.context) or rules.contexts.get("*")
        if profile is not None:
            because = f"context {directive.context}"
            bids.append(Bid(because, None, profile.ttl_s, profile.priority))
    if directive.affinity is not None:
        bids.extend(_prefix_bids(directive.affinity, rules))
    if directive.strategy == "adaptive":
        bids.extend(_adaptive_bids(call, rules))
    if shared is not None:
        bids.append(Bid(f"shared context {shared.id}", None, shared.ttl_s, shared.priority))
    bids.append(_tier_bid("default tier", rules.default_tier, rules))
    return bids


def _adaptive_bids(call: Call, rules: Rules) -> list[Bid]:
    """The lifetime of what the conversation is about; importance and tier are not its to say."""
    kind = classify(call.messages)
    profile = rules.contexts.get(CONTEXT_OF[kind]) or rules.contexts.get("*")
    if profile is None:
        return []
    return [Bid(f"strategy adaptive: {kind}", None, profile.ttl_s, None)]


def _tier_bid(because: str, tier: TierName, rules: Rules) -> Bid:
    rule = rules.tiers[tier]
    return Bid(because, tier, rule.ttl_s, rule.priority)


def _prefix_bids(cache_key: str, rules: Rules) -> list[Bid]:
    matching = [rule for rule in rules.key_prefixes if cache_key.startswith(rule.prefix)]
    if not matching:
        return []
    rule = max(matching, key=lambda rule: len(rule.prefix))
    because = f"key prefix {rule.prefix}"
    bids = [Bid(because, None, rule.ttl_s, rule.priority)]
    if rule.tier is not None:
        bids.append(_tier_bid(because, rule.tier, rules))
    return bids
