"""Which full blocks hold which tokens: the prefix index.

A block is found by a key that covers everything before it (a hash chain, as in vLLM's prefix caching):

    root  = blake2b(fingerprint, key=blake2b(salt))     one per salt and model
    key_i = blake2b(key_{i-1} | tokens of block i)      256 bits

and what is found is believed only when its tokens and its parent are the ones asked for. The salt is
in the root, so two salts share nothing, not even by collision of equal strings.

Blocks that nobody references stay until room is needed; then `policies.reuse` says which goes. Only
blocks that no other builds on are offered to it, so tails go before heads and no orphan occupies the
pool; priority and expiry are merged upwards on release. It learns by the key what comes back, evicted
blocks included.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.kv.blocks import BlockPool
from engine.request import Priority
from policies.reuse import ReuseOrder

_RANK: dict[Priority, int] = {"low": 0, "medium": 1, "high": 2}
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a block is worth keeping once nobody references it. `expires_at` in seconds of `now`."""

    priority: Priority = "medium"
    expires_at: float = math.inf

    def merged(self, other: Retention, *, now: float) -> Retention:
        """The stronger wish of both; one that has expired counts for nothing."""
        if self.expires_at <= now:
            return other
        strongest = max(self.priority, other.priority, key=_RANK.__getitem__)
        return Retention(strongest, max(self.expires_at, other.expires_at))


@dataclass(slots=True, eq=False)
class _Entry:
    key: bytes
    parent: bytes
    content: bytes
    block: int
    salt: str
    retention: Retention
    children: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Counters since start. Tokens are counted when a sequence gets its blocks."""

    blocks: int
    idle_blocks: int
    hit_tokens: int
    miss_tokens: int
    evicted_blocks: int
    invalidated_blocks: int


class PrefixIndex:
    """Finds, publishes, keeps and evicts full blocks of a `BlockPool`.

    A caller's `chain` is its list of keys: `extend_chain` appends to it, the other calls read it.
    """

    def __init__(self, pool: BlockPool, *, block_tokens: int, fingerprint: bytes = b"") -> None:
        self.pool = pool
        self.block_tokens = block_tokens
        self._fingerprint = fingerprint
        self._entries: dict[bytes, _Entry] = {}
        self._by_block: dict[int, _Entry] = {}
        self._order: ReuseOrder[bytes] = ReuseOrder()
        self._hit_tokens = self._miss_tokens = 0
        self._evicted = self._invalidated = 0

    # -- keys ------------------------------------------------------------------------------------

    def root(self, salt: str) -> bytes:
        """The key before the first block. Nothing of another salt or model can be below it."""
        key = hashlib.blake2b(salt.encode(), digest_size=_KEY_BYTES).digest()
        return hashlib.blake2b(self._fingerprint, digest_size=_KEY_BYTES, key=key).digest()

    def extend_chain(self, chain: list[bytes], tokens: Sequence[int], salt: str) -> None:
        """Append the keys of the full blocks of `tokens` that `chain` does not have yet."""
        parent = chain[-1] if chain else self.root(salt)
        for number in range(len(chain), len(tokens) // self.block_tokens):
            content = self._content(tokens, number)
            parent = hashlib.blake2b(parent + content, digest_size=_KEY_BYTES).digest()
            chain.append(parent)

    def _content(self, tokens: Sequence[int], number: int) -> bytes:
        start = number * self.block_tokens
        return array("I", tokens[start : start + self.block_tokens]).tobytes()

    # -- find ------------------------------------------------------------------------------------

    def match(self, chain: Sequence[bytes], tokens: Sequence[int], salt: str) -> list[int]:
        """The blocks of the longest known prefix. Takes no reference: `hold` them before `take`.

            tokens  |--block 0--|--block 1--|--block 2--|--rest--
            known   [=======================)
            match   [0, len(result) * P)

        The last token is never matched: its logits are wanted, so its row must be computed.
        """
        found: list[int] = []
        parent = self.root(salt)
        for number in range(min(len(chain), (len(tokens) - 1) // self.block_tokens)):
            entry = self._entries.get(chain[number])
            if entry is None or entry.parent != parent:
                break
            if entry.content != self._content(tokens, number):
                break
            found.append(entry.block)
            parent = entry.key
        return found

    def lookup(self, tokens: Sequence[int], salt: str) -> int:
        """How many leading tokens a request with this prompt would find. Changes nothing."""
        chain: list[bytes] = []
        self.extend_chain(chain, tokens, salt)
        return len(self.match(chain, tokens, salt)) * self.block_tokens

    def count(self, *, hit_tokens: int, miss_tokens: int) -> None:
        self._hit_tokens += hit_tokens
        self._miss_tokens += miss_tokens

    def turn(self, chain: Sequence[bytes]) -> int:
        """How often a prompt builds on another, by what is known of its blocks; from 1 on.

        The second turn of a conversation is 2, and so is a first question under a known system prompt.
        """
        return 1 + max((self._order.turn_of(key) or 0 for key in chain), default=0)

    # -- own -------------------------------------------------------------------------------------

    def hold(self, blocks: Sequence[int]) -> None:
        """One reference more to each matched block; none of them can be evicted until released."""
        for block in blocks:
            self.pool.hold(block)
            self._order.touch(self._by_block[block].key)

    def available_blocks(self) -> int:
        """How many blocks `take` could hand out."""
        return self.pool.free_blocks + self.pool.idle_blocks

    def take(self, count: int, *, now: float) -> list[int] | None:
        """`count` blocks with one reference each, or None. Evicts only what is short."""
        if self.available_blocks() < count:
            return None
        while self.pool.free_blocks < count:
            victim = self._order.pop(now=now)
            assert victim is not None
            self._forget_one(self._entries[victim])
            self._evicted += 1
        return [self.pool.take() for _ in range(count)]

    def publish(
        self,
        chain: Sequence[bytes],
        number: int,
        tokens: Sequence[int],
        blocks: Sequence[int],
        *,
        salt: str,
        retention: Retention,
        turn: int = 1,
    ) -> int | None:
        """Make block `number` of a sequence, which holds `blocks`, findable. Its KV must be complete.

            tokens  |--block 0--| … |--block number--|--
            before  held by the sequence alone
            after   held by the sequence, and known to the index under chain[number]

        Returns the block the sequence is to go on with: its own, or an equal one published before
        (then its own is freed and the reference moves over). None when the block cannot be published:
        what is before it is not this sequence's any more (invalidated), or the key belongs to other
        tokens.
        """
        block = blocks[number]
        parent = chain[number - 1] if number else self.root(salt)
        above = self._entries.get(parent)
        if number and (above is None or above.block != blocks[number - 1]):
            return None
        content = self._content(tokens, number)
        known = self._entries.get(chain[number])
        if known is not None:
            if known.content != content or known.parent != parent:
                return None
            if known.block != block:
                self.hold([known.block])
                self.pool.drop(block)
                self.pool.give_back(block)
            return known.block
        entry = _Entry(chain[number], parent, content, block, salt, retention)
        self._entries[entry.key] = self._by_block[block] = entry
        if above is not None:
            above.children.add(entry.key)
        self._order.add(entry.key, turn=turn)
        return block

    def release(self, blocks: Sequence[int], *, retention: Retention, now: float) -> None:
        """Give up one reference to each block of a sequence, last block first.

        blocks  |--published--|--published--|--own, partial--|
        after        idle          idle            free          unless others hold them
        """
        for block in reversed(blocks):
            entry = self._by_block.get(block)
            left = self.pool.drop(block)
            if entry is not None:
                entry.retention = entry.retention.merged(retention, now=now)
                if left == 0:
                    self._rest(entry)
            elif left == 0:
                self.pool.give_back(block)

    def _rest(self, entry: _Entry) -> None:
        """Nobody references the block any more: once nothing builds on it, it may be evicted."""
        if not entry.children:
            self._order.offer(
                entry.key,
                priority=entry.retention.priority,
                expires_at=entry.retention.expires_at,
            )

    # -- forget ----------------------------------------------------------------------------------

    def invalidate(self, salt: str | None = None) -> int:
        """Forget every block of a salt (None: all). Returns how many tokens can no longer be found.

        Blocks that are still held stay with their sequences; nobody else will find them.
        """
        entries = [e for e in self._entries.values() if salt is None or e.salt == salt]
        for entry in entries:
            self._order.discard(entry.key)
            self._forget_one(entry)
        self._invalidated += len(entries)
        return len(entries) * self.block_tokens

    def _forget_one(self, entry: _Entry) -> None:
        del self._entries[entry.key]
        del self._by_block[entry.block]
        above = self._entries.get(entry.parent)
        if above is not None:
            above.children.discard(entry.key)
            if self.pool.references(above.block) == 0:
                self._rest(above)
        if self.pool.references(entry.block) == 0:
            self.pool.give_back(entry.block)

    # -- look ------------------------------------------------------------------------------------

    def stats(self) -> IndexStats:
        return IndexStats(
            blocks=len(self._entries),
            idle_blocks=self.pool.idle_blocks,
            hit_tokens=self._hit_tokens,
            miss_tokens=self._miss_tokens,
            evicted_blocks=self._evicted,
            invalidated_blocks=self._invalidated,
        )

    def check_integrity(self) -> None:
        """Index, order and pool tell the same story. Raises `AssertionError`."""
        self.pool.check_integrity()
        assert len(self._entries) == len(self._by_block)
        for key, entry in self._entries.items():
            assert entry.key == key
            assert self._by_block[entry.block] is entry
            idle = self.pool.references(entry.block) == 0
            offered = key in self._order
            assert offered == (idle and not entry.children), f"block {entry.block} {offered=}"
            above = self._entries.get(entry.parent)
            assert above is not None or entry.parent == self.root(entry.salt), "an orphan"
            if above is not None:
                assert key in above.children
                references = self.pool.references(above.block)
                assert idle or references, "a held block below an idle one"
            for child in entry.children:
                assert self._entries[child].parent == key

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"PrefixIndex(blocks={stats.blocks} idle={stats.idle_blocks}"
            f" hit_tokens={stats.hit_tokens} miss_tokens={stats.miss_tokens}"
            f" evicted={stats.evicted_blocks})"
        )
