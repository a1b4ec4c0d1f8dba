"""What the client asked about caching, and where each word of it came from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from policies.eviction import Priority
from policies.rules import Limits, Match, ScopeName, TierName

__all__ = ["Directive", "Limits", "Match", "Priority", "ScopeName", "TierName", "parse_directive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """The client's wishes; None means that the client said nothing.

    ``origins`` names for each spoken field where it came from: ``body kv_cache.ttl``,
    ``header X-Cache-TTL``, ``Cache-Control`` or ``body prompt_cache_key``. ``unknown`` lists
    ``X-Cache-*`` names and ``kv_cache`` members that mean nothing here, shortened.
    ``shared`` is ``X-Cache-Shared``, ``shared_context`` the id of a context named in the body.
    """

    enabled: bool | None = None
    cache_key: str | None = None
    ttl_s: float | None = None
    priority: Priority | None = None
    tier: TierName | None = None
    prompt_type: str | None = None
    context: str | None = None
    strategy: str | None = None
    reuse: bool | None = None
    context_aware: bool | None = None
    match: Match | None = None
    scope: ScopeName | None = None
    stream: bool | None = None
    batch_mode: bool | None = None
    batch_id: str | None = None
    share: bool | None = None
    preload: bool | None = None
    shared_context: str | None = None
    shared: bool | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    debug: bool = False
    no_cache: bool = False
    no_store: bool = False
    max_age_s: float | None = None
    only_if_cached: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def parse_directive(
    kv_cache: object,
    headers: Iterable[tuple[str, str]],
    *,
    limits: Limits,
    prompt_cache_key: object = None,
) -> Directive:
    raise NotImplementedError
