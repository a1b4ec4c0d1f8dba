"""What computing costs and what reading costs, as measured here and now: load, or compute again?

Everything is a moving average of what was seen; there is no table of hardware. A decision compares the
expected seconds of both ways for the same tokens. A tier that loses `LOSSES_UNTIL_OFF` times in a row is
left alone for a while, then one request tries it again: the pause doubles while it goes on losing.

Seconds come from the caller, moments too: nothing here has a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SHARE: Final = 0.2
"""Of the newest observation in a moving average."""
LOSSES_UNTIL_OFF: Final = 8
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 600.0
_FIRST_EDGE: Final = 512
_BUCKETS: Final = 12


@dataclass(slots=True)
class Average:
    """A moving average; None before the first observation."""

    value: float | None = None

    def note(self, seen: float, *, share: float = SHARE) -> None:
        """Take one observation in."""
        self.value = seen if self.value is None else self.value + share * (seen - self.value)


class PrefillCurve:
    """Seconds that a prompt token takes to compute, by its position: later tokens attend to more."""

    def __init__(self) -> None:
        self._row_s = [Average() for _ in range(_BUCKETS)]
        self._latest = Average()

    def note(self, *, start: int, rows: int, seconds: float) -> None:
        """`rows` tokens from position `start` on took so long."""
        self._row_s[_bucket(start)].note(seconds / rows)
        self._latest.note(seconds / rows)

    @property
    def tokens_per_s(self) -> float | None:
        """Of the latest prompts, whatever their positions; None when nothing was computed yet."""
        return 1 / self._latest.value if self._latest.value else None

    def seconds(self, start: int, stop: int) -> float | None:
        """What tokens [start, stop) would take; None when nothing was computed yet.

        Where a position was never seen the nearest one that was stands in for it.
        """
        if self._latest.value is None:
            return None
        total, at = 0.0, start
        while at < stop:
            bucket = _bucket(at)
            edge = stop if bucket == _BUCKETS - 1 else min(stop, _FIRST_EDGE << bucket)
            total += (edge - at) * self._nearest(bucket)
            at = edge
        return total

    def _nearest(self, bucket: int) -> float:
        known = [n for n, average in enumerate(self._row_s) if average.value is not None]
        nearest = min(known, key=lambda n: (abs(n - bucket), n))
        return self._row_s[nearest].value or 0.0


def _bucket(position: int) -> int:
    return min((position // _FIRST_EDGE).bit_length(), _BUCKETS - 1)


@dataclass(slots=True)
class ReadCurve:
    """Seconds that blocks take to read from a tier: the first of a request, and each one after it."""

    block_bytes: int
    first: Average = field(default_factory=Average)
    further: Average = field(default_factory=Average)

    def note(self, seconds: float, *, first: bool) -> None:
        """One block took so long, the first of a request or a further one."""
        (self.first if first else self.further).note(seconds)

    def seconds(self, blocks: int, *, queued: int = 0) -> float | None:
        """What so many would take behind so many that are queued; None when none was read yet."""
        known = self.further.value if self.further.value is not None else self.first.value
        if known is None:
            return None
        first = known if self.first.value is None else self.first.value
        return first + (blocks - 1 + queued) * known

    @property
    def bytes_per_s(self) -> float | None:
        """Of blocks in a row; None when none was read yet."""
        known = self.further.value if self.further.value is not None else self.first.value
        return self.block_bytes / known if known else None


@dataclass(slots=True)
class Trial:
    """Whether a tier is worth asking: on, off until a moment, or on probation after it."""

    losses: int = 0
    pause_s: float = FIRST_PAUSE_S
    off_until: float | None = None
    probing: bool = False
    switched_off: int = 0

    def may_ask(self, *, now: float) -> bool:
        """False while it is off, and while one request probes it."""
        return self.off_until is None or (now >= self.off_until and not self.probing)

    def probe(self, *, now: float) -> bool:
        """Whether the request that asks now is the one that finds out. Call it once it does ask."""
        if self.off_until is None or now < self.off_until:
            return False
        self.probing = True
        return True

    def end_probe(self) -> None:
        """The request that was to find out has left without a result; another may."""
        self.probing = False

    def judge(self, *, lost: bool, now: float) -> None:
        """A result: reading was slower than computing, or it was not."""
        if not lost:
            self.losses, self.pause_s, self.off_until, self.probing = 0, FIRST_PAUSE_S, None, False
            return
        self.losses += 1
        if self.probing:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        elif self.losses < LOSSES_UNTIL_OFF or self.off_until is not None:
            return
        self.probing = False
        self.off_until = now + self.pause_s
        self.switched_off += 1

    def off_for_s(self, *, now: float) -> float:
        """How long it stays off; 0 when it is on or to be probed."""
        return 0.0 if self.off_until is None else max(0.0, self.off_until - now)
