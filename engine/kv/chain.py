"""The keys of blocks: a hash chain over tokens, rooted in a model and a salt.

    root  = blake2b(fingerprint, key=blake2b(salt))     one per salt and model
    key_i = blake2b(key_{i-1} | tokens of block i)      256 bits

Where a prompt goes on under another salt (`engine.kv.salts`), that salt is mixed into the key before.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from engine.kv.salts import Salt, begins_anew, salt_at

KEY_BYTES = 32


class Chains:
    """Makes keys of one model's blocks of `block_tokens` tokens."""

    def __init__(self, fingerprint: bytes, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._fingerprint = fingerprint

    def root(self, salt: str) -> bytes:
        """The key before the first block. Nothing of another salt or model can be below it."""
        return _keyed(self._fingerprint, salt)

    def extend(self, chain: list[bytes], tokens: Sequence[int], salt: Salt) -> None:
        """Append the keys of the full blocks of `tokens` that `chain` does not have yet."""
        parent = self.parent(chain, len(chain), salt)
        for number in range(len(chain), len(tokens) // self.block_tokens):
            if begins_anew(salt, number):
                parent = _keyed(parent, salt_at(salt, number))
            content = self.content(tokens, number)
            parent = hashlib.blake2b(parent + content, digest_size=KEY_BYTES).digest()
            chain.append(parent)

    def parent(self, chain: Sequence[bytes], number: int, salt: Salt) -> bytes:
        """The key of the block before block `number`, or the root."""
        return chain[number - 1] if number else self.root(salt_at(salt, 0))

    def content(self, tokens: Sequence[int], number: int) -> bytes:
        """The tokens of block `number` as bytes."""
        start = number * self.block_tokens
        return array("I", tokens[start : start + self.block_tokens]).tobytes()


def _keyed(data: bytes, salt: str) -> bytes:
    key = hashlib.blake2b(salt.encode(), digest_size=KEY_BYTES).digest()
    return hashlib.blake2b(data, digest_size=KEY_BYTES, key=key).digest()
