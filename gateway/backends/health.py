"""Which backends may be asked: what their last answers say of them.

A backend that answers, be it an error, is alive. It is ``down`` when it cannot be reached, or when a
check finds that it is silent or unwell; see :mod:`gateway.backends.watch`::

    up ── unreachable several times in a row, or a check finds it dead ──► down
     ▲                                                                      │
     ├──── a check finds it alive ──────────────────────────────────────────┤
     │                                                                      │ pause is over
     └──── it answers the call that probes it ◄─────────────────────────────┘

A broken connection and a silence only raise a doubt: the prompts of one tenant may cause them, so a
check decides.

Of several backends that serve the same model, one may also be *left out* for a while: it said ``429``,
refused the operator's key, answers with errors, or is clearly slower or worse than its fellows. Calls
prefer the others then. The last one is never left out, and is never closed for its errors.

A client's fault says that the backend lives. No IO; belongs to one process.
"""

import re
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
TOLD_AGAIN_S: Final = 60.0
"""A refusal of the key in the same words is told again after so long, if calls worked in between."""
_CHANGING: Final = re.compile(r"[0-9a-f-]{8,}|\d+")
"""Ids and numbers: what differs between two refusals that say the same."""


@dataclass(slots=True)
class _Refused:
    """The last refusal of the operator's key that was told, and whether it still holds."""

    gist: str
    status: str
    told_s: float
    holds: bool = True


@dataclass(slots=True)
class _Record:
    """What is known of one backend. Times by the monotonic clock, in seconds.

    ``lost`` counts unreachable calls in a row, ``errors`` answers that were errors. ``doubtful``: a
    check should be made; ``missing``: it could not be reached when it was asked last.
    """

    ended: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    lost: int = 0
    errors: int = 0
    down_until_s: float | None = None
    pause_s: float = 0.0
    probing: bool = False
    next_probe_s: float = 0.0
    left_out_until_s: float = 0.0
    doubtful: bool = False
    missing: bool = False
    refused: _Refused | None = None

    def failed_share(self) -> float:
        return self.ended.count(False) / len(self.ended) if self.ended else 0.0


class Health:
    """See the module's docstring. ``clock`` is monotonic, ``draw`` in ``[0, 1)``.

    ``failures`` in a row bring a backend down, 0: never; the first pause is ``pause_s``.
    ``outlier_factor`` is how many times slower than its fellows an outlier is, 0: there are none.
    ``changed`` is told a backend's name when it is another state than before, ``key_refused`` the name
    and the backend's words when it refuses the operator's key, once for the same words.
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
        key_refused: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._failures = failures
        self._pause_s = pause_s
        self._factor = outlier_factor
        self._changed = changed
        self._key_refused = key_refused
        self._records: dict[str, _Record] = {}
        self._circles: list[tuple[str, ...]] = []
        self.doubted: Callable[[str], None] = lambda _: None
        """Told of a backend that should be checked."""

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

    def is_doubtful(self, name: str) -> bool:
        """Whether a check should be made, or made again: nothing was heard of it since the doubt."""
        return self._of(name).doubtful

    def is_missing(self, name: str) -> bool:
        """Whether it could not be reached when it was asked last, by a call or by a check."""
        return self._of(name).missing

    def enter(self, name: str) -> bool:
        """Whether a call may go there now; of a backend that was down it is the probe.

        A call that is let in says what came of it: :meth:`began`, then :meth:`succeeded`,
        :meth:`erred`, :meth:`lost`, :meth:`refused_key` or :meth:`left`.
        """
        if self.wait_s(name) > 0.0:
            return False
        record = self._of(name)
        record.probing = record.down_until_s is not None
        record.next_probe_s = self._clock() + self._pause_s
        return True

    def began(self, name: str, waited_s: float) -> None:
        """The first piece of an answer has come: whatever was, it works again."""
        self._of(name).waits_s.append(waited_s)
        self._heard(name)

    def succeeded(self, name: str) -> None:
        """An answer came to its end, or the call was refused for a fault of the client's."""
        record = self._of(name)
        self._heard(name)
        record.errors = 0
        record.ended.append(True)
        if record.refused is not None:
            record.refused.holds = False
        self._look_for_outlier(name)

    def erred(self, name: str) -> None:
        """It answered with an error of its own: it is alive. Its fellows are asked meanwhile."""
        record = self._of(name)
        self._heard(name)
        record.ended.append(False)
        record.errors += 1
        if self._failures and (record.errors >= self._failures or self._half_failed(record)):
            self._leave_out(name, self._pause_s)
            self._doubt(name)
        else:
            self._look_for_outlier(name)

    def lost(self, name: str, *, reached: bool) -> None:
        """It could not be reached; or it was, and then broke off or was silent.

        Only the first says for sure that it is down. After the second a check decides.
        """
        record = self._of(name)
        record.ended.append(False)
        record.missing = record.missing or not reached
        record.lost += not reached
        self._doubt(name)
        if record.down_until_s is not None and not record.probing:
            return  # the end of a call from before
        if record.probing or (self._failures and record.lost >= self._failures):
            self._bring_down(name)
        elif self._failures and self._half_failed(record):
            self._leave_out(name, self._pause_s)
        else:
            self._look_for_outlier(name)

    def refused_key(self, name: str, words: str) -> None:
        """It refuses the operator's key: it is alive, and no call can change that."""
        record, now_s = self._of(name), self._clock()
        self._heard(name)
        gist, before = _CHANGING.sub("#", words.partition(" ")[2]), record.refused
        status = "".join(re.findall(r"\d+", words)[:1])
        again = before is not None and (before.gist, before.status) == (gist, status)
        if (
            before is None
            or not again
            or (not before.holds and now_s - before.told_s > TOLD_AGAIN_S)
        ):
            record.refused = _Refused(gist, status, now_s)
            self._key_refused(name, words)
        else:
            before.holds = True
        self._leave_out(name, LEFT_OUT_S)

    def left(self, name: str) -> None:
        """The caller went away before anything could be said of the backend."""
        self._of(name).probing = False

    def rest(self, name: str, seconds: float) -> None:
        """It asked to be left alone for so long. The last of its fellows is not."""
        self._heard(name)
        self._leave_out(name, min(seconds, LONGEST_REST_S), told=False)

    def alive(self, name: str) -> None:
        """A check found that it answers."""
        self._heard(name)

    def dead(self, name: str) -> None:
        """A check found that it cannot be reached, is silent, or says itself that it is unwell."""
        record = self._of(name)
        record.missing = record.doubtful = True
        if record.down_until_s is None:
            if self._failures:
                self._bring_down(name)
        else:  # no call needs to try it before the next check
            record.down_until_s = max(record.down_until_s, self._clock() + self._pause_s)

    def _of(self, name: str) -> _Record:
        return self._records.setdefault(name, _Record())

    def states(self) -> Mapping[str, State]:
        """The backends that have been asked since the start, and how each of them stands."""
        return {name: self.state(name) for name in self._records}

    def complaints(self) -> Mapping[str, str]:
        """What is wrong with each backend with which something is."""
        found = {name: self._complaint(name) for name in self._records}
        return {name: complaint for name, complaint in found.items() if complaint is not None}

    def _complaint(self, name: str) -> str | None:
        record, state = self._of(name), self.state(name)
        if record.refused is not None and record.refused.holds:
            return f"key refused (HTTP {record.refused.status})"
        if state == "up" and record.missing:
            return "unreachable"
        return None if state == "up" else state

    def _heard(self, name: str) -> None:
        """Something came from it: it is alive."""
        record = self._of(name)
        record.lost, record.doubtful, record.missing = 0, False, False
        if record.down_until_s is not None:
            record.down_until_s, record.probing = None, False
            record.errors, record.pause_s = 0, 0.0
            record.ended.clear()
            self._changed(name)

    def _doubt(self, name: str) -> None:
        self._of(name).doubtful = True
        self.doubted(name)

    def _half_failed(self, record: _Record) -> bool:
        return len(record.ended) >= FEWEST and record.failed_share() >= FAILED_SHARE

    def _bring_down(self, name: str) -> None:
        record = self._of(name)
        longest_s = max(self._pause_s, LONGEST_PAUSE_S)
        record.pause_s = min(2 * record.pause_s or self._pause_s, longest_s)
        # Several gateways that saw the same failure must not come back in the same moment.
        pause_s = record.pause_s * (1 - JITTER * self._draw())
        record.down_until_s = self._clock() + pause_s
        record.probing = False
        self._changed(name)

    def _leave_out(self, name: str, seconds: float, *, told: bool = True) -> None:
        """Pass it over for a while, unless it is the last of its fellows that is open."""
        if not self._has_open_fellow(name):
            return
        record, now_s = self._of(name), self._clock()
        was_in = now_s >= record.left_out_until_s
        record.left_out_until_s = max(record.left_out_until_s, now_s + seconds)
        if was_in and told:
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
            record.ended.clear()
            record.waits_s.clear()
            self._leave_out(name, LEFT_OUT_S)

    def _fails_more(self, record: _Record, fellows: Sequence[_Record]) -> bool:
        return record.failed_share() >= WORSE_BY + median(one.failed_share() for one in fellows)

    def _is_slower(self, record: _Record, fellows: Sequence[_Record]) -> bool:
        timed = [median(one.waits_s) for one in fellows if len(one.waits_s) >= FEWEST]
        if not timed or len(record.waits_s) < FEWEST:
            return False
        usual_s = median(timed)
        return median(record.waits_s) > max(self._factor * usual_s, usual_s + SLOWER_BY_S)
