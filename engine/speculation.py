"""How many guesses a step checks, for whom, and what became of them. Torch-free.

A sequence whose next token is computed may have guesses behind it (`engine.drafts`): rows of the same
step, each with the token that may have come. The model says what really comes after each row; as long as
that is the next guess, it is the token that would have come anyway, to the last bit, and the step gave
more than one.

    row      p         p+1       p+2       p+3
    token    known     guess     guess     guess
    sampled  = guess   = guess   other     (nobody asks)
    result   accepted  accepted  a new token, as without guesses

Guesses stand at the end of `Sequence.tokens` while their step runs (`drafted` says how many) and are
taken away before anything is committed. Their KV is written behind `computed`, in blocks of the sequence
alone, and written over later: nobody else can find it.

How many are worth a row: the chance of a guess is how often guesses with as long a match were right, of
all sequences and of this one lately. Rows are handed to the best chances as long as the step gives more
tokens for what it costs (`RowCost`). The more answer at once, the less a row is worth, and the longer
everybody waits for a step: then there are none but those that would be padding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

from engine.drafts import LONGEST, Answers, Guess, History, Source, guess
from engine.request import Sequence

_PRIOR_WEIGHT = 8.0  # observations that the first estimates are worth
_OWN_PRIOR_WEIGHT = 4.0  # and those of all sequences, for one of them
_REMEMBERED = 512.0  # observations after which old ones count half
_OWN_MEMORY = 0.9  # what an observation of a sequence is worth a step later
_PROBE_AFTER = 32  # steps without a guess, then one is made: times change
SOURCES: Final[tuple[Source, ...]] = ("prompt", "answers")


@dataclass(frozen=True, slots=True)
class RowCost:
    """What a step of some decode rows costs, in units of one row's own cost.

    counts  the runner pads a step to one of these row counts; none: it pads nothing
    fixed   what every step costs beside its rows (reading the weights)
    """

    counts: tuple[int, ...] = ()
    fixed: float = 32.0

    def of(self, rows: int) -> float:
        """What so many cost together."""
        tiles = -(-rows // self.counts[-1]) if self.counts else 1
        return self.fixed * max(1, tiles) + rows + self.padding(rows)

    def padding(self, rows: int) -> int:
        """Rows that the runner adds to so many."""
        if not self.counts:
            return 0
        rest = rows % self.counts[-1]
        return self.counts[bisect_left(self.counts, rest)] - rest if rest else 0


class Chances:
    """How often guesses were right, by where they are from and how long their match was."""

    def __init__(self) -> None:
        self._right = {source: [0.0] * (LONGEST + 1) for source in SOURCES}
        self._tried = {source: [0.0] * (LONGEST + 1) for source in SOURCES}

    def note(self, one: Guess, *, right: bool) -> None:
        """One more guess was checked."""
        tried, length = self._tried[one.source], one.length
        if tried[length] >= _REMEMBERED:
            tried[length] /= 2
            self._right[one.source][length] /= 2
        tried[length] += 1
        self._right[one.source][length] += right

    def of(self, one: Guess) -> float:
        """How likely it is right, if those before it are."""
        first = one.length / (one.length + 3)  # nothing is known yet: 2 in 5, 8 in 11, …
        right = self._right[one.source][one.length] + _PRIOR_WEIGHT * first
        return right / (self._tried[one.source][one.length] + _PRIOR_WEIGHT)


@dataclass(slots=True)
class Drafter:
    """What speculation knows of one sequence. It lives in `Sequence.drafter`."""

    history: History = field(default_factory=History)
    guesses: list[Guess] = field(default_factory=list)  # of the step that runs
    right: float = 0.0
    tried: float = 0.0
    idle: int = 0
    off: bool = False
    keep: bool = True  # its answer may be proposed to others of its salt

    def follow(self, tokens: Seq[int]) -> None:
        self.history.extend(tokens[len(self.history.tokens) :])

    def chance(self, prior: float) -> float:
        return (self.right + _OWN_PRIOR_WEIGHT * prior) / (self.tried + _OWN_PRIOR_WEIGHT)


@dataclass(slots=True)
class Counts:
    """Guesses since the start, of one source."""

    drafted: int = 0
    accepted: int = 0


class Speculation:
    """Makes guesses and learns from what became of them. `most` guesses a sequence and step; 0 is off."""

    def __init__(self, *, most: int, cost: RowCost, answers: Answers | None = None) -> None:
        self._most = most
        self._cost = cost
        self.answers = Answers() if answers is None else answers
        self._chances = Chances()
        self.counts: dict[Source, Counts] = {source: Counts() for source in SOURCES}
        self._drafting: list[Sequence] = []

    def draft(self, decoding: Seq[Sequence], room: Callable[[Sequence, int], int]) -> None:
        """Put guesses behind the tokens of sequences that are about to decode one row each.

        `room(sequence, tokens)` makes room for so many more and says for how many there is.
        """
        assert not self._drafting, "the guesses of the last step were not taken away"
        if not self._most or not decoding:
            return
        drafters = [_drafter(sequence) for sequence in decoding]
        for sequence, drafter in zip(decoding, drafters, strict=True):
            drafter.guesses = self._guesses(sequence, drafter)
        rows = len(decoding)
        most = max(2 * self._most - rows, self._cost.padding(rows))
        chances = [self._chances_of(drafter) for drafter in drafters]
        shares = share_rows(chances, self._cost, most)
        for sequence, drafter, share in zip(decoding, drafters, shares, strict=True):
            wanted = share or _probes(drafter)
            granted = room(sequence, wanted) if wanted else 0
            drafter.guesses = drafter.guesses[:granted]
            if granted:
                sequence.tokens.extend(one.token for one in drafter.guesses)
                sequence.drafted = granted
                self._drafting.append(sequence)

    def _guesses(self, sequence: Sequence, drafter: Drafter) -> list[Guess]:
        most = min(self._most, sequence.sampling.max_tokens - sequence.generated - 1)
        if most <= 0 or drafter.off:
            return []
        drafter.follow(sequence.tokens)
        matches = drafter.history.matches(sequence.tokens, "prompt")
        if sequence.request.reuse:
            matches += self.answers.matches(sequence.request.salt, sequence.tokens)
        return guess(matches, most)

    def _chances_of(self, drafter: Drafter) -> list[float]:
        """Of each guess: that it and all before it are right."""
        chances, all_right = [], 1.0
        for one in drafter.guesses:
            all_right *= drafter.chance(self._chances.of(one)) * one.share
            chances.append(all_right)
        return chances

    def withdraw(self) -> list[Sequence]:
        """Take all guesses away again, and say whose they were."""
        drafting, self._drafting = self._drafting, []
        for sequence in drafting:
            del sequence.tokens[-sequence.drafted :]
            sequence.drafted = 0
        return drafting

    def judge(self, sequence: Sequence, accepted: int) -> None:
        """So many of its guesses were right; the one after them, if there is one, was wrong."""
        drafter = _drafter(sequence)
        checked = drafter.guesses[: accepted + 1]
        for one in drafter.guesses:
            self.counts[one.source].drafted += 1
        for number, one in enumerate(checked):
            right = number < accepted
            self.counts[one.source].accepted += right
            self._chances.note(one, right=right)
        drafter.right = drafter.right * _OWN_MEMORY + accepted
        drafter.tried = drafter.tried * _OWN_MEMORY + len(checked)
        drafter.guesses = []

    def stop(self, sequence: Sequence) -> None:
        """No guesses for this sequence any more."""
        _drafter(sequence).off = True

    def ended(self, sequence: Sequence) -> None:
        """What it answered may be asked for again."""
        request = sequence.request
        keep = sequence.drafter is None or sequence.drafter.keep
        if self._most and keep and request.reuse and request.ttl_s > 0:
            self.answers.note(request.salt, sequence.tokens, answer_start=sequence.prompt_tokens)

    def forget(self, salt: str | None, open_sequences: Seq[Sequence]) -> None:
        """Nothing that was answered under this salt (None: any) so far is proposed to anybody."""
        self.answers.forget(salt)
        for sequence in open_sequences:
            known = sequence.request.salt
            if salt is None or salt in (
                {known} if isinstance(known, str) else {known.base, known.own}
            ):
                _drafter(sequence).keep = False

    def as_json(self) -> dict[str, Any]:
        """Guesses checked and right since the start, and what the earlier answers take."""
        return {
            "most": self._most,
            **{
                source: {"drafted": count.drafted, "accepted": count.accepted}
                for source, count in self.counts.items()
            },
            "answers_bytes": self.answers.nbytes,
            "answers_salts": self.answers.salts,
        }

    def __repr__(self) -> str:
        said = " ".join(f"{s}={c.accepted}/{c.drafted}" for s, c in self.counts.items())
        return f"Speculation(most={self._most} {said} {self.answers!r})"


def share_rows(chances: Seq[Seq[float]], cost: RowCost, most: int) -> list[int]:
    """How many guesses each decoding sequence may have, by their chances (each: with all before it).

    At most `most` together. The best go first, and it ends where the step gives most tokens for its cost; of equals, the longer.
    """
    rows = len(chances)
    heap = [(-own[0], number, 0) for number, own in enumerate(chances) if own]
    heap.sort()
    order: list[int] = []
    expected = float(rows)
    best, kept = expected / cost.of(rows), 0
    while heap and len(order) < most:
        chance, number, depth = heappop(heap)
        order.append(number)
        expected -= chance
        if depth + 1 < len(chances[number]):
            heappush(heap, (-chances[number][depth + 1], number, depth + 1))
        gain = expected / cost.of(rows + len(order))
        if gain >= best:
            best, kept = gain, len(order)
    counts = [0] * rows
    for number in order[:kept]:
        counts[number] += 1
    return counts


def _probes(drafter: Drafter) -> int:
    """One guess now and then although it is not worth it: else nothing more would be learned."""
    drafter.idle = (drafter.idle + bool(drafter.guesses)) % _PROBE_AFTER
    return int(bool(drafter.guesses) and not drafter.idle)


def _drafter(sequence: Sequence) -> Drafter:
    if not isinstance(sequence.drafter, Drafter):
        sequence.drafter = Drafter()
    return sequence.drafter
