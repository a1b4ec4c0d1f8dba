"""Rules: the operator's wishes, frozen. The gateway reads them from its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.eviction import Priority

TierName = Literal["hot", "warm", "cold"]
Match = Literal["exact", "key", "semantic"]
ScopeName = Literal["tenant", "user", "shared"]
StoreKind = Literal["memory", "disk", "redis"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest things a client may ask for or send."""

    max_ttl_s: float = 604_800.0
    max_entry_bytes: int = 4 * MIB
    max_body_bytes: int = 16 * MIB


@dataclass(frozen=True, slots=True)
class TierRule:
    """One tier: how long, how important, how much, and where it is kept."""

    name: TierName
    ttl_s: float
    priority: Priority
    max_bytes: int
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    store: StoreKind = "memory"


@dataclass(frozen=True, slots=True)
class ProfileRule:
    """A kind of context: the retention it brings."""

    ttl_s: float | None = None
    priority: Priority | None = None


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """Cache keys that start with ``prefix``, and the retention they bring."""

    prefix: str
    tier: TierName | None = None
    ttl_s: float | None = None
    priority: Priority | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """All of the operator's wishes that decide about a call.

    ``tiers`` holds all three tiers. In ``prompt_types`` and ``contexts`` the key ``"*"``
    stands for every other name. Of several matching ``key_prefixes`` the longest wins.
    ``kv_secret`` keys the salts of the KV blocks and the keys of entries. ``kv_quotas``
    says by tenant how many bytes of KV each scope of it (all, a user, a context) may keep.
    """

    tiers: Mapping[TierName, TierRule]
    default_tier: TierName = "warm"
    prompt_types: Mapping[str, TierName] = field(default_factory=dict)
    contexts: Mapping[str, ProfileRule] = field(default_factory=dict)
    key_prefixes: tuple[PrefixRule, ...] = ()
    adaptive_min_messages: int = 5
    enabled_default: bool = False
    match_default: Match = "exact"
    scope_default: ScopeName = "tenant"
    jitter: float = 0.1
    negative_ttl_s: float = 60.0
    refresh_beta: float = 1.0
    max_renewals: int = 4
    limits: Limits = field(default_factory=Limits)
    kv_secret: bytes = field(default=b"", repr=False)
    kv_quotas: Mapping[str, int] = field(default_factory=dict)


def default_rules() -> Rules:
    """The tables of the two guides that kvgate's calls come from, as shipped in config.yaml."""
    return Rules(
        tiers={
            "hot": TierRule(
                name="hot",
                ttl_s=300.0,
                priority="high",
                max_bytes=256 * MIB,
                stale_while_revalidate_s=30.0,
                stale_if_error_s=300.0,
            ),
            "warm": TierRule(name="warm", ttl_s=1800.0, priority="medium", max_bytes=256 * MIB),
            "cold": TierRule(
                name="cold", ttl_s=7200.0, priority="low", max_bytes=4096 * MIB, store="disk"
            ),
        },
        prompt_types={
            "faq": "hot",
            "common_query": "hot",
            "template": "warm",
            "standard": "warm",
            "*": "cold",
        },
        contexts={
            "code_review": ProfileRule(ttl_s=7200.0, priority="high"),
            "casual_chat": ProfileRule(ttl_s=1800.0, priority="low"),
            "technical_support": ProfileRule(ttl_s=3600.0, priority="medium"),
            "documentation": ProfileRule(ttl_s=14_400.0, priority="high"),
            "*": ProfileRule(ttl_s=3600.0, priority="medium"),
        },
        key_prefixes=(PrefixRule(prefix="faq:", tier="hot", ttl_s=86_400.0),),
    )
