"""Tiers below the pool: what the pool lets go of goes down, what a prompt asks for comes up again.

    hot    the pool: `blocks`, `prefix`, `cache`
    warm   host memory, where the pool is on a device of its own. On a CPU the pool *is* host memory: then
           there is no warm tier and nothing is copied for show
    cold   disk: outlives the process

    down   index.take evicts ──► evicted() ──► warm ──► cold        written behind by a thread
           index.publish ──► published() ··idle··► cold             ahead, so that a kill costs little
    up     scheduler.add ──► seek(): load or compute? ──reads──► waits() until they are there
           scheduler places ──► arrived() ──► land(): a few blocks between two steps

Reads run ahead of the scheduler, in a thread: a sequence waits for its own, and nobody waits with it.
A block that came up is checked (`blob`) before it is counted on; one that fails is quarantined and
computed anew. What is loaded at all is what is cheaper than computing by what was measured (`choice`).

Everything here but the reading and writing itself happens in the engine's thread. Clocks are arguments:
`clock` measures, `wall` is what expiries on disk are in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Executor
from typing import Any, Final

from engine.kv.ascent import BlockStore, Fetch, Fetcher, Part
from engine.kv.blob import salt_digest
from engine.kv.choice import Choice
from engine.kv.descent import Descent
from engine.kv.keeper import Kept
from engine.kv.prefix import PrefixIndex
from engine.kv.retention import Retention
from engine.kv.shelf import Item
from engine.kv.stock import Disk, Memory, Run, Stock
from engine.request import Sequence, Tier

AHEAD_A_STEP: Final = 2
"""Blocks written ahead in each step; more only while nothing runs."""
LANDED_A_STEP: Final = 16
"""Blocks that are copied into the pool between two steps while somebody else computes."""
READ_AHEAD_BYTES: Final = 256 << 20
"""Of blocks that were read and are not in the pool yet."""


class Tiers:
    """The tiers below one pool. Without any, every call is a quick nothing.

    `clock` and the `now` of every call are one clock, that of the engine; `wall` is the wall clock.
    `threads` are those of `read` and of the disk's writer, which `close` ends.
    """

    def __init__(
        self,
        index: PrefixIndex,
        store: BlockStore,
        *,
        fingerprint: bytes,
        block_bytes: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        warm: Memory | None = None,
        cold: Disk | None = None,
        read: Run = lambda work: work(),
        threads: tuple[Executor, Executor] | None = None,
    ) -> None:
        self.warm = warm
        self.cold = cold
        self._index = index
        self._store = store
        self._block_bytes = block_bytes
        self._clock = clock
        self._wall = wall
        self._threads = threads
        self._closed = False
        self._stocks: tuple[Stock, ...] = tuple(one for one in (warm, cold) if one is not None)
        self.choice = Choice((one.name for one in self._stocks), block_bytes=block_bytes)
        self._fetcher = Fetcher(fingerprint, block_bytes, clock, read)
        self._most_coming = max(1, READ_AHEAD_BYTES // block_bytes)
        self._descent = Descent(index, store, warm=warm, cold=cold, choice=self.choice, wall=wall)
        if self._stocks:
            index.below = self
            index.keeper.tiers_below = tuple(one.name for one in self._stocks)

    def notify(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from other threads, whenever a read or a write has ended."""
        self._fetcher.wake = wake
        if self.cold is not None:
            self.cold.wake = wake

    # -- down ------------------------------------------------------------------------------------

    def evicted(self, kept: Kept, *, now: float) -> None:
        """The pool is about to give a block's place to another. Called by the index."""
        self._descent.evicted(kept, now=now)

    def published(self, key: bytes, wanted: Retention) -> None:
        """A block became findable: it is worth writing ahead of its eviction. Called by the index."""
        self._descent.published(key, wanted)

    def narrowed(self, key: bytes, wanted: Retention) -> None:
        """Copies that lie farther down than `wanted` allows go. Called by the index."""
        self._descent.narrowed(key, wanted)

    def forget(self, keys: Collection[bytes], *, salt: str | None = None) -> int:
        """Forget these blocks, those of this salt, and what is known to build on them.

        Not even a kill brings them back. Returns how many of them were not in the pool. Called by the
        index before it forgets its own. Raises `OSError` when the disk cannot be told.
        """
        digest = None if salt is None else salt_digest(salt)
        gone: set[bytes] = set()
        for stock in self._stocks:
            own = [] if digest is None else [item.key for item in stock.shelf.of_salt(digest)]
            items = stock.shelf.below({*keys, *own})
            gone.update(item.key for item in items)
            stock.counts.invalidated += stock.forget(items)
        if self.cold is not None and gone:
            self.cold.sync_soon()
        return sum(self._index.kept(key) is None for key in gone)

    def forget_all(self) -> int:
        """Forget everything. As `forget`."""
        return self.forget([item.key for stock in self._stocks for item in stock.shelf])

    # -- up --------------------------------------------------------------------------------------

    def seek(self, sequence: Sequence, *, now: float) -> None:
        """Look below the pool for what follows what it holds; read it if that is the cheaper way."""
        if self._fetcher.blocks >= self._most_coming:
            return  # later, then
        sequence.sought = True
        if not self._stocks:
            return
        tokens, chain = sequence.tokens, sequence.chain
        first = len(self._index.match(chain, tokens, sequence.request.salt))
        stop = min(len(chain), (len(tokens) - 1) // self._index.block_tokens)
        stop = min(stop, first + self._most_coming - self._fetcher.blocks)
        found = self._found(chain[first:stop], now=now)
        for stock in self._stocks:
            stock.counts.misses += stop - first - len(found)
        if found and self._worth_reading(first, found, now=now):
            sequence.fetch = self._begin(sequence, first, found, now=now)

    def lookup(self, keys: Seq[bytes], *, now: float) -> list[Tier]:
        """Where the blocks with these keys are below the pool, up to the first that is nowhere."""
        return [stock.name for stock, _ in self._found(keys, now=now)]

    def holds(self, key: bytes) -> bool:
        """Whether the block with this key is below the pool and worth keeping. Called by the index."""
        wall = self._wall()
        items = (stock.shelf.get(key) for stock in self._stocks)
        return any(item is not None and item.wanted.expires_at > wall for item in items)

    def _found(self, keys: Seq[bytes], *, now: float) -> list[tuple[Stock, Item]]:
        wall = self._wall()
        asked = [one for one in self._stocks if self.choice.may_ask(one.name, now=now)]
        found: list[tuple[Stock, Item]] = []
        for key in keys:
            for stock in asked:
                item = stock.shelf.get(key)
                if item is not None and item.wanted.expires_at > wall:
                    found.append((stock, item))
                    break
            else:
                break
        return found

    def _compute_s(self, first: int, blocks: int) -> float | None:
        tokens = self._index.block_tokens
        return self.choice.prefill.seconds(first * tokens, (first + blocks) * tokens)

    def _worth_reading(self, first: int, found: Seq[tuple[Stock, Item]], *, now: float) -> bool:
        fresh: Counter[Tier] = Counter(
            s.name for s, item in found if self._fetcher.under_way(item.key) is None
        )
        cheaper = self.choice.cheaper_to_load(
            fresh,
            compute_s=self._compute_s(first, len(found)),
            queued=self._fetcher.blocks,
            now=now,
        )
        if not cheaper:
            for stock in self._stocks:
                stock.counts.declined += fresh[stock.name]
        return cheaper

    def _begin(
        self, sequence: Sequence, first: int, found: Seq[tuple[Stock, Item]], *, now: float
    ) -> Fetch:
        wall = self._wall()
        parts: list[Part] = []
        for number, (stock, item) in enumerate(found, first):
            part = self._fetcher.under_way(item.key)
            if part is None:
                identity = self._index.identity(
                    sequence.chain, number, sequence.tokens, sequence.request.salt
                )
                part = self._fetcher.begin(stock, item, identity)
            part.users += 1
            parts.append(part)
        for stock, item in reversed(found):  # heads were used last, so tails go first
            stock.use(item, now=wall)
            stock.counts.hits += 1
        probes = self.choice.probing(dict.fromkeys(one.name for one, _ in found), now=now)
        return Fetch(first, parts, self._compute_s(first, len(found)), probes)

    def waits(self, sequence: Sequence, *, now: float) -> bool:
        """Whether reads for this sequence are still under way: then it is not placed yet."""
        fetch: Fetch | None = sequence.fetch
        if fetch is None:
            return False
        if not fetch.done:
            return True
        if not fetch.settled:
            fetch.settled = True
            self._settle(fetch, now=now)
        return False

    def _settle(self, fetch: Fetch, *, now: float) -> None:
        """Learn from reads that have ended."""
        reads: dict[Tier, list[float]] = {}
        for part in fetch.parts:
            if part.measures and not part.noted:  # else another that wanted it too has learned
                reads.setdefault(part.stock.name, []).append(part.seconds)
            self._fetcher.judge(part)
        self.choice.learn(reads, compute_s=fetch.compute_s, probes=fetch.probes, now=now)

    def arrived(self, sequence: Sequence, first: int) -> int:
        """How many blocks from number `first` on have come up for this sequence, in a row."""
        fetch: Fetch | None = sequence.fetch
        if fetch is None:
            return 0
        count = 0
        while fetch.part(first + count) is not None:
            count += 1
        if not count:
            self.drop(sequence)
        return count

    def land(self, sequence: Sequence, most: int) -> int:
        """Copy at most so many blocks into the sequence's own; how many. It owns `computed` meanwhile.

        tokens  |--in the pool--|--landed--|--to land--|--to compute--|
                                ^ computed, before and after           `fetch` stays while some are left
        """
        fetch: Fetch | None = sequence.fetch
        landed = 0
        while fetch is not None:
            part = fetch.part(sequence.computed // self._index.block_tokens)
            if part is None:
                self.drop(sequence)
            if part is None or landed == most:
                break
            block = sequence.blocks[sequence.computed // self._index.block_tokens]
            began = self._clock()
            self._store.import_block(block, part.payload)
            self.choice.landed(self._clock() - began)
            part.landed = True
            landed += 1
            sequence.computed += self._index.block_tokens
            sequence.moved_bytes += self._block_bytes
            if not sequence.preemptions:  # what it landed once more is no more of its prompt
                name = part.stock.name
                tokens = sequence.tier_tokens.get(name, 0)
                sequence.tier_tokens[name] = tokens + self._index.block_tokens
        return landed

    def drop(self, sequence: Sequence) -> None:
        """The sequence wants nothing from below any more."""
        fetch: Fetch | None = sequence.fetch
        sequence.fetch = None
        if fetch is None:
            return
        if not fetch.settled:
            self.choice.left(fetch.probes)
        for part in fetch.parts:
            self._fetcher.release(part)

    # -- time passes -----------------------------------------------------------------------------

    def begin_step(self, *, now: float) -> None:
        """Before each step: take note of what other threads have done, write a little ahead."""
        if self._stocks:
            self._collect()
            if self.cold is not None:
                self._descent.write_ahead(AHEAD_A_STEP, now=now)

    def idle(self, *, now: float) -> bool:
        """Nothing runs: write one block ahead. False when there is none, or the writer is busy."""
        if self.cold is None:
            return False
        self._collect()
        return self._descent.write_ahead(1, now=now) > 0

    def _collect(self) -> None:
        self._fetcher.sweep()
        if self.cold is not None:
            self.cold.collect(now=self._wall())

    def close(self, *, now: float, until: float) -> None:
        """Write what is worth it until the moment `until` (of `clock`), and end the threads. Once."""
        if self._closed:
            return
        self._closed = True
        if self._threads is not None:
            reader, writer = self._threads
            reader.shutdown(cancel_futures=True)
            writer.shutdown()
        if self.cold is None:
            return
        self._collect()
        self.cold.write_at_once()
        while self._clock() < until and self._descent.write_ahead(1, now=now):
            self._collect()
        self._collect()
        self.cold.file.close()

    # -- look ------------------------------------------------------------------------------------

    def stats(self, *, now: float) -> dict[str, Any]:
        """Every tier as plain JSON: what is in it, what came of it, how fast it was."""
        index, pool = self._index.stats(), self._index.pool
        rate = self.choice.prefill.tokens_per_s
        hot = {
            "on": True,
            "blocks": index.blocks,
            "bytes": index.blocks * self._block_bytes,
            "max_bytes": pool.total_blocks * self._block_bytes,
            "evictions": index.evicted_blocks,
        }
        told: dict[str, Any] = {"hot": hot, "warm": {"on": False}, "cold": {"on": False}}
        for stock in self._stocks:
            told[stock.name] = self._stats_of(stock, now=now)
        told["prefill_tokens_per_s"] = None if rate is None else round(rate, 1)
        return told

    def _stats_of(self, stock: Stock, *, now: float) -> dict[str, Any]:
        counts = stock.counts
        return {
            **self.choice.stats(stock.name, now=now),
            "blocks": len(stock.shelf),
            "bytes": len(stock.shelf) * self._block_bytes,
            "max_bytes": stock.shelf.most * self._block_bytes,
            "hits": counts.hits,
            "misses": counts.misses,
            "declined": counts.declined,
            "reads": counts.reads,
            "writes": counts.writes,
            "evictions": counts.evictions,
            "invalidated": counts.invalidated,
            "quarantined": counts.quarantined,
            "dropped_writes": counts.dropped,
            "errors": counts.errors,
        }

    def __repr__(self) -> str:
        told = ", ".join(f"{one.name}: {one.shelf!r}" for one in self._stocks)
        return f"Tiers({told or 'the pool alone'})"
