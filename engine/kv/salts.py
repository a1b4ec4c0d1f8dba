"""Who may share which part of a prompt: one salt for all of it, or two that meet at a block boundary.

    tokens  |--block 0--|--block 1--|--block 2--|--block 3--|
    salt    [======= base =========)[======== own =========…
            stored once, found by   found by those who know
            all who know `base`     both, below this base alone

A base prompt that many may use is kept once this way, while what each of them goes on to say is found by
nobody else. Where the second salt begins it is mixed into the chain of keys (`engine.kv.prefix`), so a
block below is reached through the blocks above it and through its own salt, and not otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layered:
    """Blocks [0, blocks) are under `base`, all that follow under `own`. 0 blocks: `own` alone."""

    base: str
    own: str
    blocks: int


Salt = str | Layered


def salt_at(salt: Salt, number: int) -> str:
    """The salt of block `number` of a prompt."""
    if isinstance(salt, str):
        return salt
    return salt.base if number < salt.blocks else salt.own


def begins_anew(salt: Salt, number: int) -> bool:
    """Whether another salt than that of the block before begins with block `number`."""
    return not isinstance(salt, str) and 0 < number == salt.blocks
