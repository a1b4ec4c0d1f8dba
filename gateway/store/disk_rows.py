"""What the rows of an entry on disk say: its number, its labels, its room. Pure."""

from functools import cache
from math import inf, isnan
from typing import Final

from gateway.store.base import Selector, namespace_of
from gateway.store.disk_database import PAGE_BYTES
from policies.freshness import EntryMeta, last_use

LEAF_FILL: Final = 0.8
"""How full the leaves of a tree are that grows and shrinks at random places (measured)."""
ROW_BYTES: Final = 170
"""What an entry takes beside head and body: its standing and its places in the indices."""
LABEL_BYTES: Final = 40
"""What a label takes beside its text, twice."""
_LARGEST_LOCAL: Final = PAGE_BYTES - 35
_SMALLEST_LOCAL: Final = (PAGE_BYTES - 12) * 32 // 255 - 23


def number_of(key: bytes) -> int:
    """The place of a key: its first eight bytes, in the order of keys."""
    return int.from_bytes(key[:8].ljust(8, b"\x00"), "big") - 2**63


def charge(meta: EntryMeta, head_bytes: int, body_bytes: int) -> int:
    """Bytes of the file that the entry is charged with: its rows on pages as full as they get."""
    payload = head_bytes + body_bytes + 15
    local, overflow = payload, 0
    if payload > _LARGEST_LOCAL:
        usable = PAGE_BYTES - 4
        local = _SMALLEST_LOCAL + (payload - _SMALLEST_LOCAL) % usable
        if local > _LARGEST_LOCAL:
            local = _SMALLEST_LOCAL
        overflow = -(-(payload - local) // usable)
    beside = ROW_BYTES + sum(len(label) + LABEL_BYTES for label in labels(meta))
    on_leaf = local / LEAF_FILL
    if 2 * local > _LARGEST_LOCAL:  # one on a page
        on_leaf = PAGE_BYTES
    elif 3 * local > _LARGEST_LOCAL:  # two at most
        on_leaf *= 1.1
    return int(on_leaf + beside / LEAF_FILL) + overflow * PAGE_BYTES


def labels(meta: EntryMeta) -> list[bytes]:
    """The names an entry can be selected by, each with its kind in front."""
    found = [("t", tag) for tag in meta.tags]
    for kind, name in (
        ("k", meta.cache_key),
        ("n", namespace_of(meta.cache_key or "")),
        ("c", meta.context),
        ("c", meta.scope.context),
        ("u", meta.user),
        ("b", meta.batch_id),
    ):
        if name is not None:
            found.append((kind, name))
    return [raw(kind + name) for kind, name in dict.fromkeys(found)]


def raw(text: str) -> bytes:
    """Text as bytes that sort like it."""
    return text.encode("utf-8", "surrogatepass")


def span_of(selector: Selector) -> tuple[bytes, bytes] | None:
    """The labels from (including) and to (excluding) which the selector's candidates have."""
    for kind, name in (
        ("k", selector.cache_key),
        ("b", selector.batch),
        ("t", selector.tag),
        ("c", selector.context),
        ("u", selector.user),
        ("n", selector.namespace),
    ):
        if name is not None:
            label = raw(kind + name)
            return label, label + b"\x00"
    if selector.prefix is not None:
        label = raw("k" + selector.prefix)
        return label, label + b"\xff"
    return None


def ends_at(meta: EntryMeta) -> float:
    """Its last use as the tables sort it: what is not a number never comes."""
    last = last_use(meta)
    return inf if isnan(last) else last


@cache
def of_tier(statement: str, tier: str) -> str:
    """The statement for one tier's tables."""
    return statement.replace("TIER", tier)
