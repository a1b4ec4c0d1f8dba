"""Guesses of what comes next, from what was there before. Torch-free, without time or chance.

A text that repeats itself, quotes its prompt or answers what was answered before can be guessed: look
for the latest tokens further up, and propose what followed there (prompt lookup decoding; SuffixDecoding,
arXiv 2411.04975). A guess costs a row of a step and never a wrong token: `engine.speculation` has it
checked by the model before anybody sees it.

    history   … the cat sat on the mat . …
    context                              … and then the cat sat
    matches                                         |--length 3--|
    guess                                                         on the mat .

`Answers` keeps earlier answers by salt, as KV is kept: nothing of one salt is ever proposed under
another (where a prompt has two, that of its end counts), memory is bounded, and the salt that was quiet longest goes first.

Pairs of tokens are found by a hash chain as in zlib's deflate: the last place of each pair, and for each
place the one before. That takes constant time for a token, where a suffix tree has long pauses.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Final, Literal

from engine.kv.salts import Salt

Source = Literal["prompt", "answers"]
"""Of a guess: the sequence's own tokens (prompt and answer so far), or earlier answers of its salt."""

SHORTEST: Final = 2
LONGEST: Final = 32
"""Tokens of a match, at least and at most: beyond 32 nothing more is learned."""
ANSWER_BYTES: Final = 16 << 20
_TRIED = 8  # places that are looked at, latest first
_LEAD_TOKENS = (
    LONGEST  # of the prompt kept before an answer, so that its beginning can be guessed too
)
_SEPARATOR = 2**32 - 1
_PAIR_BYTES = 104  # of a dict entry with its two integers (CPython 3.11, measured)
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Match:
    """`history.tokens[place - length : place)` are the latest `length` tokens of a context."""

    length: int
    place: int
    history: History
    source: Source


@dataclass(frozen=True, slots=True)
class Guess:
    """A token proposed to come next: `length` tokens before it agree, and `share` of those places."""

    token: int
    length: int
    share: float
    source: Source


class History:
    """Tokens in the order in which they came, and where each pair of them was."""

    __slots__ = ("_before", "_last", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[int, int] = {}  # pair -> the place after its latest occurrence
        self._before = array("I", [0])  # that place -> the one after its occurrence before; 0: none

    @property
    def nbytes(self) -> int:
        """About what it takes of memory."""
        return _TOKEN_BYTES * len(self.tokens) + _PAIR_BYTES * len(self._last)

    def extend(self, tokens: Iterable[int]) -> None:
        """More tokens have come."""
        known, last, before = self.tokens, self._last, self._before
        previous = known[-1] if known else _SEPARATOR
        for token in tokens:
            known.append(token)
            if _SEPARATOR in (previous, token):
                before.append(0)
            else:
                pair = previous << 32 | token
                before.append(last.get(pair, 0))
                last[pair] = len(known)
            previous = token

    def separate(self) -> None:
        """What comes next does not continue what was before."""
        self.extend((_SEPARATOR,))

    def matches(self, context: Seq[int], source: Source) -> list[Match]:
        """Where the end of `context` was before and something followed; latest first."""
        found: list[Match] = []
        tokens, size = self.tokens, len(context)
        if size < SHORTEST:
            return found
        place = self._last.get(context[-2] << 32 | context[-1], 0)
        for _ in range(_TRIED):
            if not place:
                break
            if place < len(tokens) and tokens[place] != _SEPARATOR:
                most = min(place, size, LONGEST)
                length = SHORTEST
                while length < most and tokens[place - 1 - length] == context[-1 - length]:
                    length += 1
                found.append(Match(length, place, self, source))
            place = self._before[place]
        return found


def guess(matches: Seq[Match], most: int) -> list[Guess]:
    """Up to `most` tokens that may come next, one after the other.

    The longest matches vote on each token, and who was outvoted votes no more; of equals the first.
    A history that ends within the guess goes on with the guess: then its end repeats itself.
    """
    longest = max((match.length for match in matches), default=0)
    voters = [match for match in matches if match.length == longest]
    guesses: list[Guess] = []
    while len(guesses) < most:
        votes = [(_next(match, guesses), match) for match in voters]
        votes = [(token, match) for token, match in votes if token != _SEPARATOR]
        if not votes:
            break
        token, count = Counter(token for token, _ in votes).most_common(1)[0]
        voters = [match for vote, match in votes if vote == token]
        length = min(longest + len(guesses), LONGEST)
        guesses.append(Guess(token, length, count / len(votes), voters[0].source))
    return guesses


def _next(match: Match, guesses: Seq[Guess]) -> int:
    tokens = match.history.tokens
    place = match.place + len(guesses)
    if place < len(tokens):
        return tokens[place]
    return guesses[place - len(tokens)].token


@dataclass(slots=True)
class _Shelf:
    """Answers of one salt: when the newer half is full it becomes the older one."""

    newer: History = field(default_factory=History)
    older: History = field(default_factory=History)
    bases: set[str] = field(default_factory=set)  # salts of what some of its prompts began with

    @property
    def nbytes(self) -> int:
        return self.newer.nbytes + self.older.nbytes


class Answers:
    """Earlier answers by salt, in at most about `budget_bytes`; one salt takes at most half of that."""

    def __init__(self, budget_bytes: int = ANSWER_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._shelves: OrderedDict[str, _Shelf] = OrderedDict()  # the quietest first
        self.nbytes = 0

    @property
    def salts(self) -> int:
        return len(self._shelves)

    def note(self, salt: Salt, tokens: Seq[int], *, answer_start: int) -> None:
        """`tokens[answer_start:]` was answered to what is before it."""
        if len(tokens) <= answer_start:
            return
        own = _own(salt)
        shelf = self._shelves.setdefault(own, _Shelf())
        if not isinstance(salt, str):
            shelf.bases.add(salt.base)
        self.nbytes -= shelf.nbytes
        room = self._budget_bytes // 4
        kept = tokens[max(0, answer_start - _LEAD_TOKENS) :]
        kept = kept[: room // (_PAIR_BYTES + _TOKEN_BYTES)]
        shelf.newer.separate()
        shelf.newer.extend(kept)
        if shelf.newer.nbytes > room // 2:
            shelf.older, shelf.newer = shelf.newer, History()
        self.nbytes += shelf.nbytes
        self._shelves.move_to_end(own)
        while self.nbytes > self._budget_bytes and len(self._shelves) > 1:
            _, quietest = self._shelves.popitem(last=False)
            self.nbytes -= quietest.nbytes

    def matches(self, salt: Salt, context: Seq[int]) -> list[Match]:
        """Where the end of `context` was in earlier answers of this salt; latest first."""
        own = _own(salt)
        shelf = self._shelves.get(own)
        if shelf is None:
            return []
        self._shelves.move_to_end(own)
        return [
            *shelf.newer.matches(context, "answers"),
            *shelf.older.matches(context, "answers"),
        ]

    def forget(self, salt: str | None = None) -> None:
        """Nothing of this salt (None: of any), or after a beginning of this salt, is proposed any more."""
        for name, shelf in list(self._shelves.items()):
            if salt is None or name == salt or salt in shelf.bases:
                del self._shelves[name]
                self.nbytes -= shelf.nbytes

    def __repr__(self) -> str:
        return f"Answers(salts={self.salts} bytes={self.nbytes} of {self._budget_bytes})"


def _own(salt: Salt) -> str:
    """The salt of what is said after the beginning that others may know."""
    return salt if isinstance(salt, str) else salt.own
