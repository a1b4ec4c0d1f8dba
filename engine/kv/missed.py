"""Why a prompt's KV was not found, or not all of it: the first block that is missing, explained.

    below_one_block  the prompt is too short for a whole block (its last token is always computed)
    reuse_off        the request, the engine or the kind of request does not look
    declined         a tier below the pool has it, and computing it was the cheaper way
    evicted          it was there: `cause` says what took it (capacity, superseded, quota), `ago_s` when
    expired          the same, and its ttl was over
    invalidated      the same, and somebody wished it gone
    other_salt       it is there under another salt that the asker named as its own
    diverged         something kept under the same salt goes on differently, from `at_token` on
    never_seen       nothing like it is known

What was forgotten is remembered in a bounded ring of keys; a block that fell out of it is `never_seen`.

That a block is there under a salt which the asker did not name is never said, nor looked for: it would
tell one tenant what another has asked. A key covers its salt, so the ring says nothing of others either,
and only blocks of the same salt are compared with. The gateway names other salts when a caller wants an
explanation, and only those under which that caller could have asked as well.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

Cause = Literal["capacity", "superseded", "ttl", "quota", "invalidated"]
Reason = Literal[
    "below_one_block",
    "reuse_off",
    "declined",
    "evicted",
    "expired",
    "invalidated",
    "other_salt",
    "diverged",
    "never_seen",
]
MOST_COMPARED: Final = 64
"""Of the blocks that stand where the missing one would, the most that are looked at."""
_REASONS: Final[dict[Cause, Reason]] = {"ttl": "expired", "invalidated": "invalidated"}


@dataclass(frozen=True, slots=True)
class Missed:
    """From `at_token` on a prompt had to be computed, and why."""

    reason: Reason
    at_token: int
    cause: Cause | None = None
    ago_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As a receipt shows it."""
        shown: dict[str, Any] = {"reason": self.reason, "at_token": self.at_token}
        if self.cause is not None and self.ago_s is not None:
            shown |= {"cause": self.cause, "ago_s": round(self.ago_s, 1)}
        return shown


class Forgotten:
    """Keys of blocks that are there no more, with cause and time; the oldest are forgotten again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: OrderedDict[bytes, tuple[Cause, float]] = OrderedDict()

    def note(self, key: bytes, cause: Cause, *, now: float) -> None:
        """The block under this key has gone."""
        self._keys[key] = (cause, now)
        self._keys.move_to_end(key)
        while len(self._keys) > self._size:
            self._keys.popitem(last=False)

    def back(self, key: bytes) -> None:
        """It is there again."""
        self._keys.pop(key, None)

    def why(self, key: bytes, *, at_token: int, now: float) -> Missed | None:
        """What became of it, if it is remembered."""
        known = self._keys.get(key)
        if known is None:
            return None
        cause, at = known
        return Missed(_REASONS.get(cause, "evicted"), at_token, cause, max(0.0, now - at))

    def __len__(self) -> int:
        return len(self._keys)


def common_tokens(wanted: Sequence[int], others: Iterable[bytes]) -> int:
    """How many tokens the closest of `others` begins like `wanted`; none is equal to it.

    Looks at `MOST_COMPARED` of them: blocks of as many tokens, as bytes.
    """
    best = 0
    for other in islice(others, MOST_COMPARED):
        pairs = enumerate(zip(wanted, array("I", other), strict=True))
        best = max(best, next((at for at, (one, two) in pairs if one != two), 0))
    return best
