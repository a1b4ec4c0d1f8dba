"""Tokens back to text, as they come. No torch, no tokenizer: it is given the bytes of each token.

Two things are held back: bytes that are not yet a whole character, and text that may turn out to be the
beginning of a stop string.

    text so far   |----sent----|--held: "\\nUs"--|         stop = "\\nUser:"
    next token    "er:"   →  stop found, the held text is never sent
    next token    "age"   →  no stop begins here any more, all of it is sent
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """What can be sent now: some text, and how many tokens (from the first on) it shows in all.

    `stopped` means a stop string was completed: the text ends before it and nothing follows.
    """

    text: str
    shown_tokens: int
    stopped: bool = False


class Detokenizer:
    """One answer's text. `push` the bytes of each token, then `finish` unless a piece was `stopped`."""

    __slots__ = ("_decoder", "_held", "_sent", "_stops", "starts")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stops)
        self._held = ""
        self._sent = 0
        self.starts: list[int] = []  # character where each token's text begins

    @property
    def end(self) -> int:
        """Characters of the text so far; a half one is not counted."""
        return self._sent + len(self._held)

    def push(self, token_bytes: bytes) -> Piece:
        """One token more. Bytes that are no UTF-8 become U+FFFD."""
        if token_bytes and not _continues(token_bytes):
            self._held += self._decoder.decode(b"", final=True)  # the half before stays one
        self.starts.append(self.end)
        self._held += self._decoder.decode(token_bytes)
        cut = self._first_stop()
        if cut is not None:
            return self._cut(cut)
        return self._send(len(self._held) - self._may_begin_a_stop(), ended=False)

    def finish(self) -> Piece:
        """The answer ends here: what was held back is sent."""
        self._held += self._decoder.decode(b"", final=True)
        cut = self._first_stop()
        return self._send(len(self._held), ended=True) if cut is None else self._cut(cut)

    def _first_stop(self) -> int | None:
        """Where the stop begins that is complete first: however the text was cut into tokens."""
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _may_begin_a_stop(self) -> int:
        """Length of the longest end of the held text that is the beginning of a stop string."""
        for length in range(min(len(self._held), self._longest_beginning()), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

    def _longest_beginning(self) -> int:
        return max((len(stop) - 1 for stop in self._stops), default=0)

    def _cut(self, at: int) -> Piece:
        text, self._held = self._held[:at], ""
        self._sent += at
        return Piece(text, self._shown(), stopped=True)

    def _send(self, length: int, *, ended: bool) -> Piece:
        text, self._held = self._held[:length], self._held[length:]
        self._sent += length
        # a token of half a character is shown with the character it becomes part of
        waits = not ended and bool(self._held or self._decoder.getstate()[0])
        return Piece(text, self._shown() if waits else len(self.starts))

    def _shown(self) -> int:
        """Tokens whose text begins before what was sent ends."""
        count = len(self.starts)
        while count and self.starts[count - 1] >= self._sent:
            count -= 1
        return count


def _continues(token_bytes: bytes) -> bool:
    """Whether a character may go on with these bytes."""
    return 0x80 <= token_bytes[0] < 0xC0
