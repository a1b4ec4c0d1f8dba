"""What happened to blocks, in order: a bounded ring that a reader can follow without polling for state.

Every event has a sequence number, one more than the one before. The ring keeps the latest; a reader that
asks for what it has not seen and comes too late is told how many it has missed. A salt is shown as a
hash, a block as the beginning of its key: both mean something only to who knows them already.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["stored", "evicted", "moved", "invalidated"]
KINDS: Final[tuple[Kind, ...]] = ("stored", "evicted", "moved", "invalidated")
RING: Final = 16_384
_SHOWN: Final = 16
_PERSON: Final = b"kvgate events"


class KvEvent(NamedTuple):
    """One thing that happened to one block. `cause`: why it was evicted, or where it moved to."""

    seq: int
    at: float
    kind: Kind
    key: bytes
    salt: str
    tokens: int
    cause: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As the route shows it; `at` is unix time where the log's clock is."""
        shown = {
            "seq": self.seq,
            "at": round(self.at, 3),
            "kind": self.kind,
            "block": self.key.hex()[:_SHOWN],
            "salt": shown_salt(self.salt),
            "tokens": self.tokens,
        }
        return shown if self.cause is None else shown | {"cause": self.cause}


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a number, and how many of those that were asked for are there no more.

    `last` is the number to ask with next time.
    """

    events: tuple[KvEvent, ...]
    missed: int
    last: int

    def as_json(self) -> dict[str, Any]:
        """As the route answers."""
        events = [event.as_json() for event in self.events]
        return {"events": events, "missed": self.missed, "last": self.last}


class EventLog:
    """The ring. Written and read by the engine's thread; `heard` is called there after each event."""

    def __init__(self, *, clock: Callable[[], float] = lambda: 0.0, size: int = RING) -> None:
        self._clock = clock
        self._ring: deque[KvEvent] = deque(maxlen=size)
        self.last = 0
        self.counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.heard: Callable[[], None] | None = None

    def note(
        self, kind: Kind, key: bytes, *, salt: str, tokens: int, cause: str | None = None
    ) -> None:
        """Something happened to the block under this key."""
        self.last += 1
        self.counts[kind] += 1
        self._ring.append(KvEvent(self.last, self._clock(), kind, key, salt, tokens, cause))
        if self.heard is not None:
            self.heard()

    def after(self, seq: int, *, limit: int) -> Page:
        """At most `limit` events with larger numbers, oldest first.

        A number from the future (of an engine that was restarted) is answered from the beginning.
        """
        seq = seq if seq <= self.last else 0
        first = self.last - len(self._ring) + 1
        begin = max(seq + 1, first)
        stop = min(self.last, begin + limit - 1)
        start = begin - first
        events = tuple(islice(self._ring, start, start + stop - begin + 1))
        return Page(events, begin - seq - 1, max(stop, seq))

    def __repr__(self) -> str:
        said = " ".join(f"{kind}={count}" for kind, count in self.counts.items())
        return f"EventLog(last={self.last} {said})"


@lru_cache(maxsize=4096)
def shown_salt(salt: str) -> str:
    """A salt as events and statistics show it: 16 hexadecimal characters of a hash."""
    return hashlib.blake2b(salt.encode(), digest_size=_SHOWN // 2, person=_PERSON).hexdigest()
