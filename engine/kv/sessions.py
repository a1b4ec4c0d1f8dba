"""Which blocks of a conversation its next turn has made worthless.

A turn that builds on the one before finds its blocks and goes on: nothing is superseded. But a client that
drops its oldest messages, cuts a long answer, or writes it back otherwise leaves a tail behind that no
later turn of that conversation will ask for again. That the new prompt is a later turn, and not another
question under the same name, is believed when it contains the end of the earlier prompt word for word.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST_SESSIONS: Final = 4096
"""Conversations remembered; the one that was silent longest is forgotten first."""
END_TOKENS: Final = 24
"""Of an earlier prompt, which a later turn contains; the end of what was asked, with its answer's opening."""


@dataclass(frozen=True, slots=True)
class _Turn:
    end: bytes
    leaf: bytes


class Sessions:
    """The latest turn of each conversation, by its name."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._turns: OrderedDict[str, _Turn] = OrderedDict()

    def left_behind(self, name: str, prompt: Sequence[int]) -> bytes | None:
        """The last block of the turn that this prompt is a later one of, if it is one."""
        turn = self._turns.get(name)
        if turn is None or not _contains(array("I", prompt).tobytes(), turn.end):
            return None
        return turn.leaf

    def note(self, name: str, prompt: Sequence[int], leaf: bytes) -> None:
        """The turn with this prompt has ended; `leaf` is the key of the last block it left."""
        end = array("I", prompt[-END_TOKENS:]).tobytes()
        self._turns[name] = _Turn(end, leaf)
        self._turns.move_to_end(name)
        while len(self._turns) > self._most:
            self._turns.popitem(last=False)

    def __len__(self) -> int:
        return len(self._turns)


def _contains(whole: bytes, part: bytes) -> bool:
    """Whether tokens contain others in a row; a find that begins inside a token is none."""
    width = array("I").itemsize
    at = whole.find(part)
    while at >= 0 and at % width:
        at = whole.find(part, at + 1)
    return at >= 0
