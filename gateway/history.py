"""What was counted when: a bounded past of the gateway's numbers, for curves.

A row holds what was counted since the row before it, so rows can be added up: the last minutes are
kept as they came, what is older in steps of ``COARSE_S``. No IO, no clock.
"""

from collections import deque
from collections.abc import Sequence
from operator import add
from typing import Final

from gateway.numbers import Numbers
from gateway.tally import BUCKETS_S, Tally, Views

LEVELS: Final = ("response", "semantic", "prefix", "negative", "none")
STORED: Final = ("response", "semantic", "negative")
"""Levels that answer without a backend: the others are computed."""
COLUMNS: Final = (
    *LEVELS, "errors", "tokens_saved", "seconds_saved", "money_saved", "prompt_tokens",
    "prompt_tokens_reused",
)  # fmt: skip
FINE_S: Final = 300.0
COARSE_S: Final = 10.0
KEPT_S: Final = 3600.0

Counts = Sequence[float]
"""``COLUMNS``, then answer times by bucket: of what was stored, of what was computed."""
Row = tuple[float, Counts]
"""Unix seconds at its end, and what was counted until then since the row before."""


def counts_of(numbers: Numbers, views: Views) -> Counts:
    """Everything since the start, as one row. ``views`` are those of the numbers."""
    whole, levels = views.total, views.levels
    stored, computed = [0] * (len(BUCKETS_S) + 1), [0] * (len(BUCKETS_S) + 1)
    for level, tally in levels.items():
        into = stored if level in STORED else computed
        into[:] = map(add, into, tally.within)
    return [
        *(levels.get(level, _NOTHING).requests for level in LEVELS),
        numbers.statistics.errors,
        whole.tokens_saved,
        round(whole.seconds_saved, 6),
        round(whole.money_saved, 9),
        whole.prompt_tokens,
        whole.hit_tokens,
        *stored,
        *computed,
    ]


_NOTHING: Final = Tally()


class History:
    """Rows of the last hour, the oldest first. Times are unix seconds."""

    def __init__(self) -> None:
        self._before: Counts | None = None
        self._fine: deque[Row] = deque()
        self._coarse: deque[Row] = deque()

    def note(self, now: float, counts: Counts) -> Row:
        """Take in everything that was counted until ``now``; returns the new row.

        What has become less is taken as nothing: a process that ended took it along.
        """
        before = self._before or [0] * len(counts)
        grown = [max(0, round(one - was, 9)) for one, was in zip(counts, before, strict=True)]
        self._before = counts
        row = (round(now, 3), grown)
        self._fine.append(row)
        self._thin(now)
        return row

    def rows(self) -> list[Row]:
        """All of them."""
        return [*self._coarse, *self._fine]

    def _thin(self, now: float) -> None:
        while self._fine and self._fine[0][0] < now - FINE_S:
            at_s, counts = self._fine.popleft()
            if self._coarse and self._coarse[-1][0] // COARSE_S == at_s // COARSE_S:
                _, counted = self._coarse.pop()
                counts = list(map(add, counted, counts))
            self._coarse.append((at_s, counts))
        while self._coarse and self._coarse[0][0] < now - KEPT_S:
            self._coarse.popleft()

    def __repr__(self) -> str:
        return f"<History {len(self._coarse)} + {len(self._fine)} rows>"
