"""Which backends may be asked: what their last answers say of them.

A backend that fails again and again is ``down`` for a pause, then one call probes it::

    up ──failures in a row, or half of a window──► down ──pause is over──► one call probes
     ▲                                              ▲                         │
     └──────────── its first piece came ────────────┼─────────────────────────┤
                                                    └── it failed: a pause twice as long

Of several that serve the same, one may also be *left out* for a while: it said ``429``, or it is
clearly slower or worse than its fellows. That is a wish of the others and not a verdict: the last
one is never left out, and where all are down the caller decides.

A client's fault says that the backend lives. No IO; belongs to one process.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

State = Literal["up", "down", "probing", "left out"]

WINDOW: Final = 32
"""Calls to one backend that are looked back at."""
FEWEST: Final = 16
"""Calls before shares and medians say anything."""
FAILED_SHARE: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
JITTER: Final = 0.25
LEFT_OUT_S: Final = 30.0
LONGEST_REST_S: Final = 60.0
WORSE_BY: Final = 0.2
"""How much larger than its fellows' an outlier's share of failures is."""
SLOWER_BY_S: Final = 0.25
"""How much later than its fellows an outlier is, besides the factor."""


@dataclass(slots=True)
class _Record:
    """What is known of one backend. Times by the monotonic clock, in seconds."""

    ended: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    in_a_row: int = 0
    down_until_s: float | None = None
    pause_s: float = 0.0
    probing: bool = False
    next_probe_s: float = 0.0
    left_out_until_s: float = 0.0

    def failed_share(self) -> float:
        return self.ended.count(False) / len(self.ended) if self.ended else 0.0


class Health:
    """See the module's docstring. ``clock`` is monotonic, ``draw`` in ``[0, 1)``.

    ``failures`` in a row bring a backend down, 0: never; the first pause is ``pause_s``.
    ``outlier_factor`` is how many times slower than its fellows an outlier is, 0: there are none.
    ``changed`` is told a backend's name when it is another state than before.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        draw: Callable[[], float],
        failures: int = 5,
        pause_s: float = 5.0,
        outlier_factor: float = 3.0,
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._failures = failures
        self._pause_s = pause_s
        self._factor = outlier_factor
        self._changed = changed
        self._records: dict[str, _Record] = {}
        self._circles: list[tuple[str, ...]] = []

    def __repr__(self) -> str:
        return f"<Health {' '.join(f'{name}={state}' for name, state in self.states().items())}>"

    def together(self, names: Sequence[str]) -> None:
        """These serve the same: each is measured by the others."""
        self._circles.append(tuple(names))

    def state(self, name: str) -> State:
        """How the backend stands now."""
        record = self._of(name)
        if record.probing:
            return "probing"
        if record.down_until_s is not None:
            return "down"
        return "left out" if self._clock() < record.left_out_until_s else "up"

    def is_open(self, name: str) -> bool:
        """Whether a call may go there now, as far as is known. Changes nothing."""
        return self.wait_s(name) == 0.0 and self._clock() >= self._of(name).left_out_until_s

    def wait_s(self, name: str) -> float:
        """How long until it may be asked, left out or not: 0 when it may."""
        record = self._of(name)
        if record.down_until_s is None:
            return 0.0
        left_s = max(0.0, record.down_until_s - self._clock())
        # A probe may take as long as an answer: after a pause another may go beside it.
        next_s = max(0.0, record.next_probe_s - self._clock())
        return max(left_s, next_s) if record.probing else left_s

    def enter(self, name: str) -> bool:
        """Whether a call may go there now; of a backend that was down it is the probe.

        Who is let in says what came of it: :meth:`began`, then :meth:`succeeded`, :meth:`failed` or
        :meth:`left`.
        """
        if self.wait_s(name) > 0.0:
            return False
        record = self._of(name)
        record.probing = record.down_until_s is not None
        record.next_probe_s = self._clock() + self._pause_s
        return True

    def began(self, name: str, waited_s: float) -> None:
        """The first piece of an answer has come: whatever was, it works again."""
        record = self._of(name)
        record.waits_s.append(waited_s)
        if record.down_until_s is not None:
            self._bring_up(name)

    def succeeded(self, name: str) -> None:
        """An answer came to its end, or the call was refused for a fault of the client's."""
        record = self._of(name)
        if record.probing:  # refused: it lives
            self._bring_up(name)
        record.in_a_row = 0
        record.ended.append(True)
        self._look_for_outlier(name)

    def failed(self, name: str) -> None:
        """It could not be reached, refused for a reason of its own, or broke off."""
        record = self._of(name)
        record.ended.append(False)
        record.in_a_row += 1
        if record.down_until_s is not None and not record.probing:
            return  # the end of a call from before
        share_says = len(record.ended) >= FEWEST and record.failed_share() >= FAILED_SHARE
        if record.probing or (self._failures and (record.in_a_row >= self._failures or share_says)):
            self._bring_down(name)
        else:
            self._look_for_outlier(name)

    def left(self, name: str) -> None:
        """The caller went away before anything could be said of the backend."""
        self._of(name).probing = False

    def rest(self, name: str, seconds: float) -> None:
        """It asked to be left alone for so long. The last of its fellows is not."""
        if self._has_open_fellow(name):
            until_s = self._clock() + min(seconds, LONGEST_REST_S)
            record = self._of(name)
            record.left_out_until_s = max(record.left_out_until_s, until_s)

    def _of(self, name: str) -> _Record:
        return self._records.setdefault(name, _Record())

    def states(self) -> Mapping[str, State]:
        """The backends that have been asked since the start, and how each of them stands."""
        return {name: self.state(name) for name in self._records}

    def _bring_up(self, name: str) -> None:
        record = self._of(name)
        record.down_until_s, record.probing = None, False
        record.in_a_row, record.pause_s = 0, 0.0
        record.ended.clear()
        self._changed(name)

    def _bring_down(self, name: str) -> None:
        record = self._of(name)
        longest_s = max(self._pause_s, LONGEST_PAUSE_S)
        record.pause_s = min(2 * record.pause_s or self._pause_s, longest_s)
        # Several gateways that saw the same failure must not come back in the same moment.
        pause_s = record.pause_s * (1 - JITTER * self._draw())
        record.down_until_s = self._clock() + pause_s
        record.probing = False
        self._changed(name)

    def _has_open_fellow(self, name: str) -> bool:
        return any(self.is_open(fellow) for fellow in self._fellows(name))

    def _fellows(self, name: str) -> set[str]:
        circles = [circle for circle in self._circles if name in circle]
        return {fellow for circle in circles for fellow in circle} - {name}

    def _look_for_outlier(self, name: str) -> None:
        """Leave ``name`` out if it is clearly worse than its fellows, and begin to count anew."""
        record = self._of(name)
        if not self._factor or len(record.ended) < FEWEST:
            return
        fellows = [self._of(fellow) for fellow in self._fellows(name)]
        known = [one for one in fellows if len(one.ended) >= FEWEST]
        if not known or not self._has_open_fellow(name):
            return
        if self._fails_more(record, known) or self._is_slower(record, known):
            record.left_out_until_s = self._clock() + LEFT_OUT_S
            record.ended.clear()
            record.waits_s.clear()
            self._changed(name)

    def _fails_more(self, record: _Record, fellows: Sequence[_Record]) -> bool:
        return record.failed_share() >= WORSE_BY + median(one.failed_share() for one in fellows)

    def _is_slower(self, record: _Record, fellows: Sequence[_Record]) -> bool:
        timed = [median(one.waits_s) for one in fellows if len(one.waits_s) >= FEWEST]
        if not timed or len(record.waits_s) < FEWEST:
            return False
        usual_s = median(timed)
        return median(record.waits_s) > max(self._factor * usual_s, usual_s + SLOWER_BY_S)
