"""Which writes come too late: generations of what a store holds.

Every store counts generations. A flight notes the number when it begins (:class:`Since`), and its
answer carries that number to the store. A clearing begins a new generation and leaves a *bar*: the
selector with the new number. When a write lands, the store compares in one step: a bar that is newer
than the write and means its entry refuses it. So an answer that was on its way while it was cleared,
by any process and on any machine, never lands. A flight that is to replace what is there draws a
number of its own, and its answer bars the key for flights that began before it.

Bars are remembered for each tenant apart, and only the newest: the oldest ones that are dropped leave
one bar for everything of the tenant, so that a write which nothing is known about any more is refused.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from gateway.store.base import Entry, Selector
from policies.freshness import EntryMeta

MOST_BARS: Final = 1024
"""Of one tenant, in each store."""


class Bars:
    """The generations of a store in memory."""

    def __init__(self) -> None:
        self.number = 1
        self._bars: dict[str | None, dict[Selector, int]] = {}
        self._newest: dict[str | None, int] = {}

    def add(self, what: Selector | None, *, at: int | None = None) -> int:
        """Begin a generation, or take the one that began as ``at``; returns its number."""
        if at is None:
            self.number += 1
            at = self.number
        if what is not None:
            bars = self._bars.setdefault(what.tenant, {})
            bars[what] = max(at, bars.pop(what, 0))
            self._newest[what.tenant] = max(at, self._newest.get(what.tenant, 0))
            if len(bars) > MOST_BARS:
                everything = Selector(what.tenant)
                oldest = min((one for one in bars if one != everything), key=bars.__getitem__)
                bars[everything] = max(bars.pop(oldest), bars.get(everything, 0))
        return at

    def refuse(self, meta: EntryMeta, since: int | None) -> bool:
        """Whether an entry of a flight that began at ``since`` comes too late."""
        return since is not None and any(
            number > since and what.matches(meta)
            for tenant in (meta.scope.tenant, None)
            if self._newest.get(tenant, 0) > since
            for what, number in self._bars[tenant].items()
        )

    def __repr__(self) -> str:
        return f"<Bars at {self.number}, of {len(self._bars)} tenants>"


def since_of(entry: Entry, tier: str) -> int | None:
    """The generation in which the entry's flight began; None: it lands whatever was cleared."""
    return None if entry.since is None else entry.since.numbers.get(tier, 0)


def key_bar(meta: EntryMeta) -> Selector:
    """The bar of an entry that replaces older ones."""
    return Selector(meta.scope.tenant, key=meta.key)


def any_means(bars: Iterable[bytes], meta: EntryMeta) -> bool:
    """Whether a stored bar means this entry; one that cannot be read means all."""
    for bar in bars:
        try:
            if of_message(json.loads(bar)).matches(meta):
                return True
        except (ValueError, TypeError, KeyError, AttributeError):
            return True
    return False


def packed(selector: Selector) -> bytes:
    """The selector as a shared store keeps it."""
    return json.dumps(as_message(selector), sort_keys=True).encode()


def as_message(selector: Selector) -> dict[str, Any]:
    """The selector as JSON can carry it."""
    named = {name: value for name, value in asdict(selector).items() if value not in {None, ()}}
    if selector.key is not None:
        named["key"] = selector.key.hex()
    return named


def of_message(message: Mapping[str, Any]) -> Selector:
    """The selector that :func:`as_message` was given."""
    named = dict(message)
    if "key" in named:
        named["key"] = bytes.fromhex(named["key"])
    if "circles" in named:
        named["circles"] = tuple(named["circles"])
    return Selector(named.pop("tenant", None), **named)
