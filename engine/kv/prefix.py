"""Which full blocks hold which tokens: the prefix index.

A block is found by a key that covers everything before it (a hash chain, as in vLLM's prefix caching;
`engine.kv.chain`), and what is found is believed only when its tokens, its salt and its parent are the
ones asked for. The salt is in the root, so two salts share nothing, not even by collision of equal
strings. A prompt may go on under a second salt: what is below is found by those who know both.

Blocks that nobody references stay until room is needed; then the `Keeper` says which goes. Only blocks
that no other builds on are offered to it, so tails go before heads and no orphan occupies the pool; what
is wanted of a block is merged upwards on release. What is below the pool (`engine.kv.tiers`) is told what
comes, goes and is wished gone.

Over 400 lines because finding, owning and forgetting change the same three tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.kv.blob import Identity
from engine.kv.blocks import BlockPool
from engine.kv.chain import Chains
from engine.kv.keeper import Below, Entry, Keeper, Kept
from engine.kv.missed import Cause
from engine.kv.retention import Retention
from engine.kv.salts import Salt, salt_at
from engine.kv.sessions import Sessions

__all__ = ["Entry", "IndexStats", "PrefixIndex", "Retention"]


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Counters since start. Tokens are counted when a sequence gets its blocks."""

    blocks: int
    idle_blocks: int
    hit_tokens: int
    miss_tokens: int
    evicted_blocks: int
    invalidated_blocks: int
    evicted_by: dict[Cause, int]
    pinned_blocks: int
    broken_pins: int


class PrefixIndex:
    """Finds, publishes, keeps and evicts full blocks of a `BlockPool`.

    A caller's `chain` is its list of keys: `extend_chain` appends to it, the other calls read it.
    `clock` dates events and what is forgotten; `now` is the engine's own time, of ttls and pins.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_tokens: int,
        fingerprint: bytes = b"",
        block_bytes: int = 1,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.pool = pool
        self.block_tokens = block_tokens
        self.keeper = Keeper(
            blocks=pool.total_blocks,
            block_tokens=block_tokens,
            block_bytes=block_bytes,
            clock=clock,
        )
        self.sessions = Sessions()
        self.below: Below | None = None
        self._chains = Chains(fingerprint, block_tokens)
        self._entries: dict[bytes, Entry] = {}
        self._by_block: dict[int, Entry] = {}
        self._firsts: dict[bytes, dict[bytes, None]] = {}  # root -> the blocks that begin there
        self._hit_tokens = self._miss_tokens = self._invalidated = 0

    # -- keys ------------------------------------------------------------------------------------

    def root(self, salt: str) -> bytes:
        """The key before the first block. Nothing of another salt or model can be below it."""
        return self._chains.root(salt)

    def extend_chain(self, chain: list[bytes], tokens: Sequence[int], salt: Salt) -> None:
        """Append the keys of the full blocks of `tokens` that `chain` does not have yet."""
        self._chains.extend(chain, tokens, salt)

    def chain(self, tokens: Sequence[int], salt: Salt) -> list[bytes]:
        """The keys of the full blocks of `tokens`."""
        keys: list[bytes] = []
        self._chains.extend(keys, tokens, salt)
        return keys

    def identity(
        self, chain: Sequence[bytes], number: int, tokens: Sequence[int], salt: Salt
    ) -> Identity:
        """Which block number `number` of a prompt is."""
        parent = self._chains.parent(chain, number, salt)
        return Identity(chain[number], parent, self._chains.content(tokens, number))

    # -- find ------------------------------------------------------------------------------------

    def match(self, chain: Sequence[bytes], tokens: Sequence[int], salt: Salt) -> list[int]:
        """The blocks of the longest known prefix. Takes no reference: `hold` them before `take`.

            tokens  |--block 0--|--block 1--|--block 2--|--rest--
            known   [=======================)
            match   [0, len(result) * P)

        The last token is never matched: its logits are wanted, so its row must be computed.
        """
        most = (len(tokens) - 1) // self.block_tokens
        return [entry.block for entry in self.path(chain, tokens, salt, most=most)]

    def path(
        self, chain: Sequence[bytes], tokens: Sequence[int], salt: Salt, *, most: int
    ) -> list[Entry]:
        """At most so many blocks of what is known of this prompt, from the first on."""
        found: list[Entry] = []
        parent = self._chains.parent(chain, 0, salt)
        for number in range(min(len(chain), most)):
            entry = self._entries.get(chain[number])
            if entry is None or entry.parent != parent or entry.salt != salt_at(salt, number):
                break
            if entry.content != self._chains.content(tokens, number):
                break
            found.append(entry)
            parent = entry.key
        return found

    def lookup(self, tokens: Sequence[int], salt: Salt) -> int:
        """How many leading tokens a request with this prompt would find. Changes nothing."""
        return len(self.match(self.chain(tokens, salt), tokens, salt)) * self.block_tokens

    def beside(self, chain: Sequence[bytes], number: int, salt: Salt) -> Iterator[bytes]:
        """What stands where block `number` of a prompt would, latest first: tokens as bytes.

        Of its own salt alone: what others keep there is none of its business.
        """
        parent = self._chains.parent(chain, number, salt)
        above = self._entries.get(parent)
        there = above.children if above is not None else self._firsts.get(parent, {})
        own = salt_at(salt, number)
        entries = (self._entries[key] for key in reversed(there))
        return (entry.content for entry in entries if entry.salt == own)

    def kept(self, key: bytes) -> Kept | None:
        """The block under this key, if it is in the pool."""
        entry = self._entries.get(key)
        return None if entry is None else self.keeper.kept(entry)

    def count(self, *, hit_tokens: int, miss_tokens: int) -> None:
        self._hit_tokens += hit_tokens
        self._miss_tokens += miss_tokens

    def turn(self, chain: Sequence[bytes]) -> int:
        """How often a prompt builds on another, by what is known of its blocks; from 1 on.

        The second turn of a conversation is 2, and so is a first question under a known system prompt.
        """
        return 1 + max((self.keeper.order.turn_of(key) or 0 for key in chain), default=0)

    # -- own -------------------------------------------------------------------------------------

    def hold(self, blocks: Sequence[int]) -> None:
        """One reference more to each matched block; none of them can be evicted until released."""
        for block in blocks:
            self.pool.hold(block)
            self.keeper.used(self._by_block[block])

    def available_blocks(self) -> int:
        """How many blocks `take` could hand out."""
        return self.pool.free_blocks + self.pool.idle_blocks

    def take(self, count: int, *, now: float, salt: Salt = "") -> list[int] | None:
        """`count` blocks with one reference each, or None. Evicts only what is short.

        A salt that keeps all it may gives its own blocks first.
        """
        if self.available_blocks() < count:
            return None
        for key in self.keeper.passes(now):
            entry = self._entries[key]
            self.keeper.unpins(entry, idle=self._idle(entry))
        own = salt_at(salt, self.pool.total_blocks)
        while self.pool.free_blocks < count and self.keeper.quotas.over(own, coming=count):
            if not self._evict_own(own):
                break
        while self.pool.free_blocks < count:
            self._evict(self._entries[self.keeper.victim()])
        return [self.pool.take() for _ in range(count)]

    def _idle(self, entry: Entry) -> bool:
        return self.pool.references(entry.block) == 0

    def _evict(self, entry: Entry, *, quota: bool = False) -> None:
        if self.below is not None:
            self.below.evicted(self.keeper.kept(entry), now=self.keeper.now)
        self._forget_one(entry, self.keeper.evicts(entry, quota=quota))

    def _evict_own(self, salt: str) -> bool:
        """Give up the least valuable block of a salt that is over its quota; whether it has one."""
        victim = self.keeper.own_victim(salt)
        if victim is None:
            return False
        self._evict(self._entries[victim], quota=True)
        return True

    def publish(
        self,
        chain: Sequence[bytes],
        number: int,
        tokens: Sequence[int],
        blocks: Sequence[int],
        *,
        salt: Salt,
        retention: Retention,
        turn: int = 1,
    ) -> int | None:
        """Make block `number` of a sequence, which holds `blocks`, findable. Its KV must be complete.

            tokens  |--block 0--| … |--block number--|--
            before  held by the sequence alone
            after   held by the sequence, and known to the index under chain[number]

        Returns the block the sequence is to go on with: its own, or an equal one published before
        (then its own is freed and the reference moves over). None when the block cannot be published:
        what is before it is not this sequence's any more (invalidated), the key belongs to other tokens,
        or the salt may keep no more.
        """
        block = blocks[number]
        parent = self._chains.parent(chain, number, salt)
        above = self._entries.get(parent)
        if number and (above is None or above.block != blocks[number - 1]):
            return None
        content = self._chains.content(tokens, number)
        known = self._entries.get(chain[number])
        if known is not None:
            if known.content != content or known.parent != parent:
                return None
            if known.block != block:
                self.hold([known.block])
                self.pool.drop(block)
                self.pool.give_back(block)
            return known.block
        entry = Entry(chain[number], parent, content, block, salt_at(salt, number), retention)
        if not self._may_keep(entry.salt):
            return None
        self._entries[entry.key] = self._by_block[block] = entry
        if above is None:
            self._firsts.setdefault(parent, {})[entry.key] = None
        else:
            above.children[entry.key] = None
            above.branches += 1
        self.keeper.stored(entry, turn=turn)
        if self.below is not None:
            self.below.published(entry.key, retention)
        return block

    def _may_keep(self, salt: str) -> bool:
        """Whether the salt may keep one more block, its own having made room for it."""
        while self.keeper.quotas.over(salt, coming=1):
            if not self._evict_own(salt):
                return False
        return True

    def release(self, blocks: Sequence[int], *, retention: Retention, now: float) -> None:
        """Give up one reference to each block of a sequence, last block first.

        blocks  |--published--|--published--|--own, partial--|
        after        idle          idle            free          unless others hold them
        """
        self.keeper.now = max(self.keeper.now, now)
        for block in reversed(blocks):
            entry = self._by_block.get(block)
            left = self.pool.drop(block)
            if entry is not None:
                wanted = entry.retention.merged(retention, now=now)
                self._tell_below(entry, wanted)
                entry.retention = wanted
                if left == 0:
                    self.keeper.rests(entry)
            elif left == 0:
                self.pool.give_back(block)

    # -- keep ------------------------------------------------------------------------------------

    def retain(self, entry: Entry, wanted: Retention) -> None:
        """From now on this is wanted of a block of `path`, in place of what was."""
        self._tell_below(entry, wanted)
        self.keeper.wants(entry, wanted, idle=self._idle(entry))

    def _tell_below(self, entry: Entry, wanted: Retention) -> None:
        """A copy of it may lie farther down than it may from now on."""
        if self.below is not None and wanted.ceiling != entry.retention.ceiling:
            self.below.narrowed(entry.key, wanted)

    def supersede(self, leaf: bytes) -> int:
        """A conversation has gone on without this block: it, and what led to it alone, goes first.

        To be called when the next turn holds what it builds on. Returns how many blocks that are.
        """
        count = 0
        entry = self._entries.get(leaf)
        while entry is not None and self._idle(entry):
            if any(not self._entries[child].superseded for child in entry.children):
                break
            entry.superseded = True
            self.keeper.rests(entry)
            count += 1
            entry = self._entries.get(entry.parent)
        return count

    def set_quota(self, salt: str, limit_bytes: int | None) -> None:
        """How much a salt may keep from now on (None: all there is). What is too much goes at once."""
        quotas = self.keeper.quotas
        if quotas.set(salt, limit_bytes):
            for entry in self._entries.values():
                if entry.salt == salt and self._idle(entry):
                    self.keeper.rests(entry)
        while quotas.over(salt) and self._evict_own(salt):
            pass

    # -- forget ----------------------------------------------------------------------------------

    def invalidate(self, salt: str | None = None) -> int:
        """Forget every block of a salt (None: all) and what builds on it.

        Returns how many tokens can no longer be found. Blocks that are still held stay with their
        sequences; nobody else will find them.
        """
        meant = [e for e in self._entries.values() if salt is None or e.salt == salt]
        return self._invalidate(meant, salt=salt, everything=salt is None)

    def invalidate_from(self, tokens: Sequence[int], salt: Salt, *, from_token: int) -> int:
        """Forget the blocks of a prompt from this token on, and whatever else builds on them."""
        chain = self.chain(tokens, salt)
        path = self.path(chain, tokens, salt, most=len(chain))
        first = from_token // self.block_tokens
        return self._invalidate(path[first:][:1], below=chain[first:])

    def _invalidate(
        self,
        meant: Iterable[Entry],
        *,
        below: Iterable[bytes] = (),
        salt: str | None = None,
        everything: bool = False,
    ) -> int:
        """Forget these and what builds on them; below the pool also these keys, a salt, or all."""
        doomed = {entry.key: entry for entry in meant}
        waiting = list(doomed.values())
        while waiting:
            for key in waiting.pop().children:
                if key not in doomed:
                    doomed[key] = self._entries[key]
                    waiting.append(doomed[key])
        try:
            elsewhere = self._forget_below({*doomed, *below}, salt, everything=everything)
        finally:  # a disk that cannot be told is no reason to go on serving it from the pool
            for entry in doomed.values():
                self.keeper.order.discard(entry.key)
                self._forget_one(entry, "invalidated")
            self._invalidated += len(doomed)
        return (len(doomed) + elsewhere) * self.block_tokens

    def _forget_below(self, keys: set[bytes], salt: str | None, *, everything: bool) -> int:
        """How many more blocks than the pool's own are forgotten with them."""
        if self.below is None:
            return 0
        return self.below.forget_all() if everything else self.below.forget(keys, salt=salt)

    def _forget_one(self, entry: Entry, cause: Cause) -> None:
        del self._entries[entry.key]
        del self._by_block[entry.block]
        self.keeper.gone(entry, cause)
        above = self._entries.get(entry.parent)
        if above is not None:
            above.children.pop(entry.key, None)
            if self._idle(above):
                self.keeper.rests(above)
        else:
            self._forget_first(entry)
        if self._idle(entry):
            self.pool.give_back(entry.block)

    def _forget_first(self, entry: Entry) -> None:
        firsts = self._firsts.get(entry.parent)
        if firsts is not None:
            firsts.pop(entry.key, None)
            if not firsts:
                del self._firsts[entry.parent]

    # -- look ------------------------------------------------------------------------------------

    def stats(self) -> IndexStats:
        return IndexStats(
            blocks=len(self._entries),
            idle_blocks=self.pool.idle_blocks,
            hit_tokens=self._hit_tokens,
            miss_tokens=self._miss_tokens,
            evicted_blocks=self.keeper.evicted.total(),
            invalidated_blocks=self._invalidated,
            evicted_by=dict(self.keeper.evicted),
            pinned_blocks=len(self.keeper.pins),
            broken_pins=self.keeper.broken_pins,
        )

    def check_integrity(self) -> None:
        """Index, order and pool tell the same story. Raises `AssertionError`."""
        self.pool.check_integrity()
        assert len(self._entries) == len(self._by_block)
        assert all(firsts for firsts in self._firsts.values())
        kept = Counter(entry.salt for entry in self._entries.values())
        assert kept == self.keeper.quotas.blocks_kept
        for key, entry in self._entries.items():
            assert entry.key == key
            assert self._by_block[entry.block] is entry
            idle = self.pool.references(entry.block) == 0
            offered = key in self.keeper.order
            assert offered == (idle and not entry.children), f"block {entry.block} {offered=}"
            above = self._entries.get(entry.parent)
            first = key in self._firsts.get(entry.parent, ())
            assert first == (above is None), "an orphan"
            assert first == (entry.parent == self.root(entry.salt))
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
