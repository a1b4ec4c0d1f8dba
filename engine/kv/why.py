"""Explains the first block of a prompt that was not found. Asks the index, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from engine.kv.missed import Missed, common_tokens
from engine.kv.prefix import PrefixIndex
from engine.kv.salts import Salt


def why_missed(
    index: PrefixIndex,
    chain: Sequence[bytes],
    tokens: Sequence[int],
    salt: Salt,
    *,
    found: int,
    own_salts: Sequence[str] = (),
) -> Missed | None:
    """Why no more than `found` blocks of a prompt were found; None when it was all there is to find.

    Of other salts only those in `own_salts` are looked at (`engine.kv.missed` says why).
    """
    whole, at = (len(tokens) - 1) // index.block_tokens, found * index.block_tokens
    if not whole:
        return Missed("below_one_block", 0)
    if found >= whole:
        return None
    if index.below is not None and index.below.holds(chain[found]):
        return Missed("declined", at)
    keeper = index.keeper
    gone = keeper.forgotten.why(chain[found], at_token=at, now=keeper.clock())
    if gone is not None:
        return gone
    if any(index.lookup(tokens, other) > at for other in own_salts if other != salt):
        return Missed("other_salt", at)
    wanted = tokens[at : at + index.block_tokens]
    common = common_tokens(wanted, index.beside(chain, found, salt))
    return Missed("diverged", at + common) if common else Missed("never_seen", at)
