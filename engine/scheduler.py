"""Who runs this step: continuous batching with chunked prefill, lanes and preemption.

A step is a number of rows, one token each (`lanes` divides them): first one for every running sequence
that has its prompt behind it (decode), and guesses of what comes next (`speculation`); then prompts are
computed, as many rows as the budget has left (chunked prefill, Agrawal et al., Sarathi-Serve, 2024), so
that a long prompt never stops running answers.

    waiting ──admit──► running: prefill ──► decode ──► finished
       ▲                   │                   │
       └──── preempt ──────┴───────────────────┘      (its full blocks stay in the prefix index)

Order: lanes interactive > batch > warm, first come first served inside a lane. When blocks run out the
youngest sequence of the lowest lane steps back and is computed again later, mostly out of the index:
a request that fits the pool alone is always served.

What sequences find of each other's blocks, and who waits for whom to compute them, is `sharing`.
Blocks that a tier below the pool holds (`kv.tiers`) are read while the request waits, and copied into its
own blocks, a few between two steps, before its first row is computed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from engine.kv.prefix import PrefixIndex
from engine.kv.tiers import LANDED_A_STEP, Tiers
from engine.lanes import choose
from engine.request import GenerationRequest, Pick, Sequence, TokenEvent
from engine.sharing import Sharing
from engine.spans import Schedule, Span, came_true
from engine.speculation import RowCost, Speculation

__all__ = ["Limits", "Schedule", "Scheduler", "Span"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one step and the whole engine may hold.

    chunk_tokens   rows of one tile: the runner pads every step to whole tiles
    idle_tiles     tiles of prefill in a step in which nothing decodes
    exact_decode   decode rows write the same bits as prefill rows; else their blocks stay private
    speculate_tokens  guesses checked beside a decode row, at most; 0: none. Wants exact rows
    row_cost       what a step of decode rows costs: how many guesses are worth it
    """

    chunk_tokens: int
    max_sequences: int
    max_model_len: int
    idle_tiles: int = 4
    prefix_cache: bool = True
    exact_decode: bool = True
    speculate_tokens: int = 0
    row_cost: RowCost = field(default_factory=RowCost)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


class Scheduler:
    """Owns every `Sequence` from `add` to its terminal event, and the blocks it holds."""

    def __init__(
        self,
        index: PrefixIndex,
        limits: Limits,
        *,
        end_tokens: frozenset[int],
        tiers: Tiers | None = None,
    ) -> None:
        self.index = index
        self.tiers = tiers
        self.limits = limits
        self.end_tokens = end_tokens
        self._sharing = Sharing(
            index, enabled=limits.prefix_cache, exact_decode=limits.exact_decode
        )
        self.speculation = Speculation(
            most=limits.speculate_tokens if limits.exact_decode else 0, cost=limits.row_cost
        )
        self._waiting: list[Sequence] = []  # sorted by rank, as is _running
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._serial = 0
        self.preemptions = 0

    @property
    def capacity_tokens(self) -> int:
        """Prompt and answer of one request may be this long together."""
        pool_tokens = self.index.pool.total_blocks * self.index.block_tokens
        return min(self.limits.max_model_len, pool_tokens)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._by_id)

    @property
    def stalled(self) -> bool:
        """Nobody runs, and all who wait do so for blocks that are being read."""
        reads = (one.fetch is not None and not one.fetch.done for one in self._waiting)
        return not self._running and bool(self._waiting) and all(reads)

    # -- come and go -----------------------------------------------------------------------------

    def add(self, request: GenerationRequest, *, now: float = 0.0) -> Sequence:
        """Take a request in; that it fits (`capacity_tokens`) was checked before."""
        wanted = len(request.prompt) + request.sampling.max_tokens
        assert wanted <= self.capacity_tokens, f"{wanted} tokens can never be held"
        assert request.prompt, "a request has at least one token"
        assert request.id not in self._by_id, f"request {request.id} is already there"
        sequence = Sequence(request=request, serial=self._serial, tokens=list(request.prompt))
        self._serial += 1
        self._by_id[request.id] = sequence
        insort(self._waiting, sequence, key=_rank)
        self._seek(sequence, now=now)
        return sequence

    def abort(self, request_id: str, *, now: float) -> TokenEvent | None:
        """End a request between two steps; its blocks are released. None when it has ended already."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return None
        self.speculation.ended(sequence)
        self._finish(sequence, now=now)
        return TokenEvent(request_id, finish="abort", hit_tokens=sequence.hit_tokens)

    def fail(self, sequences: Iterable[Sequence], message: str, *, now: float) -> list[TokenEvent]:
        """End sequences whose step failed. Nothing of what the step computed is published."""
        self.speculation.withdraw()
        events = []
        for sequence in dict.fromkeys(sequences):
            self._finish(sequence, now=now)
            events.append(TokenEvent(sequence.id, finish="error", error=message))
        return events

    def blamed(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those of them whose step held no guess. The others are computed again, from now on without."""
        guessing = self.speculation.withdraw()
        for sequence in sequences:
            if sequence in guessing:
                self.speculation.stop(sequence)
        return [one for one in sequences if one not in guessing]

    def fail_all(self, message: str, *, now: float) -> list[TokenEvent]:
        return self.fail(list(self._by_id.values()), message, now=now)

    def forget_answers(self, *salts: str | None) -> None:
        """What was answered under these salts (None: any), or is just now, is proposed to nobody."""
        for salt in salts:
            self.speculation.forget(salt, list(self._by_id.values()))

    # -- one step --------------------------------------------------------------------------------

    def schedule(self, *, now: float) -> Schedule:
        """Choose the rows of the next step. Takes and releases blocks, computes nothing."""
        if self.tiers is not None:
            self.tiers.begin_step(now=now)
        self._grow(now=now)
        self._admit(now=now)
        self._land(now=now)
        return choose(
            self._running,
            tile=self.limits.chunk_tokens,
            idle_tiles=self.limits.idle_tiles,
            draft=lambda ones: self.speculation.draft(
                ones, lambda *room: self._room(*room, now=now)
            ),
        )

    def commit(self, schedule: Schedule, picks: Seq[Pick], *, now: float) -> list[TokenEvent]:
        """Take over what a step computed: `picks` has one entry for each span with `sample`, in order."""
        events = []
        accepted = dict.fromkeys(self.speculation.withdraw(), 0)
        chosen = iter(picks)
        for span in schedule.spans:
            sequence = span.sequence
            pick = next(chosen) if span.sample else None
            if span.guess is not None:
                if not came_true(span):
                    continue
                accepted[sequence] += 1
            sequence.computed = span.stop
            self._sharing.publish(sequence, now=now)
            if pick is not None and span.stop < sequence.prompt_tokens:
                sequence.scores.append(pick)  # the row's own target was scored, nothing sampled
            elif sequence.computed == len(sequence.tokens):
                events.append(self._advance(sequence, pick, now=now))
        for sequence, right in accepted.items():
            self.speculation.judge(sequence, right)
            self._sharing.trim(sequence, self._blocks_for(len(sequence.tokens)), now=now)
        return events

    def _advance(self, sequence: Sequence, pick: Pick | None, *, now: float) -> TokenEvent:
        """One more token, or the end, or both."""
        scores = None
        if sequence.request.score_prompt and not sequence.generated:
            scores = (None, *sequence.scores)
        receipt = None if sequence.generated else sequence.receipt()
        if pick is None:  # the prompt alone was wanted
            self._finish(sequence, now=now)
            return TokenEvent(
                sequence.id,
                finish="length",
                hit_tokens=sequence.hit_tokens,
                prompt_scores=scores,
                receipt=receipt,
            )
        ended = pick.token in self.end_tokens and not sequence.sampling.ignore_eos
        if not ended:
            sequence.tokens.append(pick.token)
        full = sequence.generated >= sequence.sampling.max_tokens
        if ended or full:
            self.speculation.ended(sequence)
            self._finish(sequence, now=now)
        return TokenEvent(
            sequence.id,
            token=None if ended else pick.token,
            logprob=pick.logprob,
            top=pick.top,
            finish="stop" if ended else "length" if full else None,
            hit_tokens=sequence.hit_tokens,
            prompt_scores=scores,
            receipt=receipt,
        )

    # -- blocks ----------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.index.block_tokens)

    def _room(self, sequence: Sequence, tokens: int, *, now: float) -> int:
        """Room for so many guesses, or for as many as there is without taking anybody's last block.

        blocks  |--full--|--known tokens--|--one block more, if need be--|
        tokens           ^ len(tokens)    ^ guesses may stand up to the end of the blocks
        """
        short = self._blocks_for(len(sequence.tokens) + tokens) - len(sequence.blocks)
        spare = len(self._running)  # each running sequence will want a block before long
        if short > 0 and self.index.available_blocks() >= short + spare:
            sequence.blocks.extend(
                self.index.take(short, now=now, salt=sequence.request.salt) or []
            )
        room = len(sequence.blocks) * self.index.block_tokens - len(sequence.tokens)
        return min(tokens, room)

    def _grow(self, *, now: float) -> None:
        """Each running sequence has room for all its tokens, or steps back."""
        for sequence in tuple(self._running):
            while sequence.blocks and len(sequence.blocks) < self._blocks_for(len(sequence.tokens)):
                taken = self.index.take(1, now=now, salt=sequence.request.salt)
                if taken is not None:
                    sequence.blocks.extend(taken)
                else:
                    self._preempt(self._running[-1], now=now)  # may be the sequence itself

    def _admit(self, *, now: float) -> None:
        """Waiting sequences run, in order, until one does not fit: nobody overtakes it for ever."""
        for sequence in tuple(self._waiting):
            if self._sharing.waits(sequence):
                continue
            if self._reads(sequence, now=now):
                continue
            shared = self._sharing.find(sequence)
            sequence.awaits = self._sharing.awaited(sequence, len(shared))
            if sequence.awaits is not None:
                continue
            while not self._place(sequence, shared, now=now):
                lowest = self._running[-1] if self._running else None
                if lowest is None or lowest.rank[0] <= sequence.rank[0]:
                    return
                self._preempt(lowest, now=now)

    def _place(self, sequence: Sequence, shared: list[int], *, now: float) -> bool:
        """Give a waiting sequence its blocks, shared ones first, if there are enough.

        tokens  |--shared--|--shared--|------own------|
        KV      [0, computed)         [computed, prefill_stop) to be computed
        """
        if len(self._running) >= self.limits.max_sequences:
            return False
        pool = self.index.pool
        idle = sum(pool.references(block) == 0 for block in shared)
        need = self._blocks_for(len(sequence.tokens)) - len(shared)
        spare = len(self._running)  # each running sequence will want a block before long
        if self.index.available_blocks() - idle < need + spare:
            return False
        self.index.hold(shared)
        arrived = 0 if self.tiers is None else self.tiers.arrived(sequence, len(shared))
        self._sharing.begin(sequence, found=len(shared) + arrived)
        own = self.index.take(need, now=now, salt=sequence.request.salt)
        assert own is not None
        sequence.blocks = shared + own
        sequence.computed = len(shared) * self.index.block_tokens
        sequence.published = len(shared)
        sequence.prefill_stop = len(sequence.tokens)
        if not sequence.preemptions:  # later it would take its own blocks for another's
            sequence.turn = self.index.turn(sequence.chain)
            sequence.hit_tokens = hit = sequence.computed + arrived * self.index.block_tokens
            sequence.tier_tokens["hot"] = sequence.computed
            self.index.count(hit_tokens=hit, miss_tokens=len(sequence.tokens) - hit)
        self._sharing.claim(sequence, from_block=len(shared))
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_rank)
        return True

    def _preempt(self, sequence: Sequence, *, now: float) -> None:
        """Back to waiting. Tokens and sampler state stay; KV is computed or found again."""
        self._running.remove(sequence)
        self._release(sequence, now=now)
        sequence.preemptions += 1
        sequence.sought = False
        self.preemptions += 1
        insort(self._waiting, sequence, key=_rank)

    def _finish(self, sequence: Sequence, *, now: float) -> None:
        home = self._running if sequence.blocks else self._waiting
        home.remove(sequence)
        self._release(sequence, now=now)
        del self._by_id[sequence.id]

    def _release(self, sequence: Sequence, *, now: float) -> None:
        self._sharing.release(sequence, now=now)
        sequence.computed = sequence.published = sequence.prefill_stop = 0
        sequence.scores.clear()
        if self.tiers is not None:
            self.tiers.drop(sequence)

    # -- from below ------------------------------------------------------------------------------

    def _seek(self, sequence: Sequence, *, now: float) -> None:
        """Have what the pool does not hold read from the tiers below it, if they have it."""
        if self.tiers is not None and self._sharing.may_find(sequence):
            self.tiers.seek(sequence, now=now)

    def _reads(self, sequence: Sequence, *, now: float) -> bool:
        """Whether a waiting sequence waits for reads of its own."""
        if self.tiers is None:
            return False
        if not sequence.sought:
            self._seek(sequence, now=now)
        return self.tiers.waits(sequence, now=now)

    def _land(self, *, now: float) -> None:
        """What has come up for running sequences goes into their blocks, and is findable at once.

        A few blocks a step, so that those who decode do not wait; all of them when nobody does.
        """
        others = sum(one.fetch is None for one in self._running)
        room = LANDED_A_STEP if others else self.index.pool.total_blocks
        for one in self._running:
            if one.fetch is not None and self.tiers is not None:
                room -= self.tiers.land(one, room)
                self._sharing.publish(one, now=now)
                if (
                    one.fetch is None and not one.preemptions
                ):  # less than was there when it was placed?
                    one.hit_tokens = min(one.hit_tokens, one.computed)

    def check_integrity(self) -> None:
        """References and sequences agree. Raises `AssertionError`; for tests, after every step."""
        self._sharing.check_integrity(self._running)
        pool = self.index.pool
        wanted = [0] * pool.total_blocks
        for sequence in self._running:
            assert sequence.blocks, f"{sequence!r} runs without blocks"
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            complete = sequence.computed // self.index.block_tokens
            assert sequence.published <= complete, f"{sequence!r}: half a block is published"
            for block in sequence.blocks:
                wanted[block] += 1
        for block, count in enumerate(wanted):
            assert pool.references(block) == count, f"block {block}: {pool.references(block)}"
        assert all(not sequence.blocks for sequence in self._waiting)
        assert len(self._by_id) == len(self._waiting) + len(self._running)

    def __repr__(self) -> str:
        return (
            f"Scheduler(running={self.running} waiting={self.waiting}"
            f" preemptions={self.preemptions} {self.index.pool!r})"
        )
