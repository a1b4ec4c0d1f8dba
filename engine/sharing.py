"""What sequences have in common: finding, claiming and publishing blocks of the prefix index.

Two waiting sequences with the same beginning do not compute it twice: the first to be admitted *claims*
the blocks it is about to compute, and the other is admitted when they are there.

    admitted   blocks |--found--|--found--|--claimed--|--claimed--|--partial--|
    computed                              |-published-|
    left       every claim that is still open is given up
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.kv.missed import Missed
from engine.kv.prefix import PrefixIndex, Retention
from engine.kv.salts import salt_at
from engine.kv.why import why_missed
from engine.request import Sequence


class Sharing:
    """The index as sequences see it; knows who is computing what. Changes `blocks`, `chain`, `published`.

    `enabled` False: nothing is found or published. `exact_decode` says that decode rows write the same
    bits as prefill rows; else the blocks they wrote in stay private.
    """

    def __init__(self, index: PrefixIndex, *, enabled: bool, exact_decode: bool) -> None:
        self.index = index
        self._enabled = enabled
        self._exact_decode = exact_decode
        self._claims: dict[bytes, Sequence] = {}

    def waits(self, sequence: Sequence) -> bool:
        """Is the block that it awaits still being computed?"""
        return bool(self._claims) and sequence.awaits in self._claims

    def may_find(self, sequence: Sequence) -> bool:
        """Whether it may use what others have computed; its chain is complete then."""
        self._extend_chain(sequence)
        # with `score_prompt` every row's logits are wanted
        return self._shares(sequence) and not sequence.request.score_prompt

    def find(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of this sequence already. Takes no reference."""
        if not self.may_find(sequence):
            return []
        return self.index.match(sequence.chain, sequence.tokens, sequence.request.salt)

    def begin(self, sequence: Sequence, *, found: int) -> None:
        """It holds what it found, and takes blocks of its own next: say what it missed, and make room.

        What its conversation has left behind goes first, and its salt's quota holds from now on.
        """
        if sequence.preemptions:
            return  # what it missed and superseded is known
        request = sequence.request
        sequence.missed = self._why(sequence, found)
        if sequence.missed is not None:
            self.index.keeper.missed[sequence.missed.reason] += 1
        if not self._shares(sequence):
            return
        if request.quota_bytes is not None:
            self.index.set_quota(self._own_salt(sequence), request.quota_bytes)
        if request.session is not None:
            leaf = self.index.sessions.left_behind(self._session(sequence), request.prompt)
            if leaf is not None:
                self.index.supersede(leaf)

    def _why(self, sequence: Sequence, found: int) -> Missed | None:
        request = sequence.request
        if not self._shares(sequence) or request.score_prompt:
            return Missed("reuse_off", 0)
        return why_missed(
            self.index,
            sequence.chain,
            sequence.tokens,
            request.salt,
            found=found,
            own_salts=request.own_salts,
        )

    def _own_salt(self, sequence: Sequence) -> str:
        return salt_at(sequence.request.salt, self.index.pool.total_blocks)

    def _session(self, sequence: Sequence) -> str:
        """The name of its conversation: nobody else's is meant by it."""
        salt = self._own_salt(sequence)
        return f"{len(salt)}:{salt}{sequence.request.session}"

    def awaited(self, sequence: Sequence, known: int) -> bytes | None:
        """The key of the next block to compute, if a running sequence is about to publish it."""
        if not self._shares(sequence) or sequence.request.score_prompt:
            return None
        if known >= (len(sequence.tokens) - 1) // self.index.block_tokens:
            return None
        key = sequence.chain[known]
        claimant = self._claims.get(key)
        # one of a lower lane may be slow to finish: then computing it twice is the smaller harm
        waits = claimant is not None and claimant.rank[0] <= sequence.rank[0]
        return key if waits else None

    def claim(self, sequence: Sequence, *, from_block: int) -> None:
        for key in sequence.chain[from_block:]:
            self._claims.setdefault(key, sequence)

    def _unclaim(self, sequence: Sequence, *, from_block: int) -> None:
        for key in sequence.chain[from_block:]:
            if self._claims.get(key) is sequence:
                del self._claims[key]

    def publish(self, sequence: Sequence, *, now: float) -> None:
        """Every block that became full is findable from now on."""
        if not self._shares(sequence):
            return
        self._extend_chain(sequence)
        exact = sequence.computed if self._exact_decode else sequence.prefill_stop
        full = min(sequence.computed, exact) // self.index.block_tokens
        while sequence.published < full:
            number = sequence.published
            block = self.index.publish(
                sequence.chain,
                number,
                sequence.tokens,
                sequence.blocks,
                salt=sequence.request.salt,
                retention=_retention(sequence, now),
                turn=sequence.turn,
            )
            if block is None:
                break
            sequence.blocks[number] = block
            sequence.published += 1
            if self._claims.get(sequence.chain[number]) is sequence:
                del self._claims[sequence.chain[number]]
        if sequence.computed >= sequence.prefill_stop:
            self._unclaim(sequence, from_block=sequence.published)

    def release(self, sequence: Sequence, *, now: float) -> None:
        """Give up its blocks and claims; what it published stays findable."""
        if sequence.request.session is not None and sequence.published:
            leaf = sequence.chain[sequence.published - 1]
            self.index.sessions.note(self._session(sequence), sequence.request.prompt, leaf)
        self.index.release(sequence.blocks, retention=_retention(sequence, now), now=now)
        sequence.blocks = []
        self._unclaim(sequence, from_block=0)

    def trim(self, sequence: Sequence, blocks: int, *, now: float) -> None:
        """Give up what it holds beyond so many blocks; nothing was published there."""
        surplus = sequence.blocks[blocks:]
        if surplus:
            del sequence.blocks[blocks:]
            self.index.release(surplus, retention=_retention(sequence, now), now=now)

    def _shares(self, sequence: Sequence) -> bool:
        return self._enabled and sequence.request.reuse

    def _extend_chain(self, sequence: Sequence) -> None:
        if self._shares(sequence):
            self.index.extend_chain(sequence.chain, sequence.tokens, sequence.request.salt)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Only who runs claims anything. Raises `AssertionError`; for tests."""
        self.index.check_integrity()
        computing = set(running)
        assert all(owner in computing for owner in self._claims.values())

    def __repr__(self) -> str:
        return f"Sharing(claims={len(self._claims)} {self.index!r})"


def _retention(sequence: Sequence, now: float) -> Retention:
    request = sequence.request
    expires_at = now + request.ttl_s
    return Retention(request.priority, expires_at, floor=request.floor, ceiling=request.ceiling)
