"""Load or compute: the cheaper way for each request, and tiers that lose are left alone for a while.

Deterministic: moments and seconds are arguments, the numbers behind it are those of `costs`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from engine.kv.costs import Average, PrefillCurve, ReadCurve, Trial
from engine.request import Tier

FEWEST_ROWS: Final = 16
"""Of a step that is measured: what a step costs besides its rows would be taken for theirs."""
_log = logging.getLogger("engine")


class Choice:
    """What was measured of computing and of each tier in `names`, and what follows from it.

    A request asks in this order: `may_ask`, `cheaper_to_load`, `probing`, and `learn` or `left` once its
    reads have ended or do not matter any more.
    """

    def __init__(self, names: Iterable[Tier], *, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self.prefill = PrefillCurve()
        self._reads = {name: ReadCurve(block_bytes) for name in names}
        self._trials = {name: Trial() for name in self._reads}
        self._landing_s = Average()

    def may_ask(self, name: Tier, *, now: float) -> bool:
        """Whether a request may use this tier: it is on, or to be probed."""
        return self._trials[name].may_ask(now=now)

    def is_off(self, name: Tier) -> bool:
        """Whether it lost, and has not won since."""
        return self._trials[name].off_until is not None

    def cheaper_to_load(
        self, blocks: Mapping[Tier, int], *, compute_s: float | None, queued: int, now: float
    ) -> bool:
        """Compare both ways for so many blocks of each tier; what was never measured is tried.

        `queued` blocks are being read for others. A tier that would lose has lost.
        """
        if any(self.is_off(name) for name in blocks):
            return True  # it is to be found out
        load_s = sum(blocks.values()) * (self._landing_s.value or 0.0)
        for name, count in blocks.items():
            read_s = self._reads[name].seconds(count, queued=queued)
            if read_s is None:
                return True
            load_s += read_s
        if compute_s is None or load_s <= compute_s:  # reading leaves the processor to others
            return True
        for name in blocks:
            self._judge(name, lost=True, now=now)
        return False

    def probing(self, names: Iterable[Tier], *, now: float) -> tuple[Tier, ...]:
        """Those of the tiers that a request which reads from them now finds out about."""
        return tuple(name for name in names if self._trials[name].probe(now=now))

    def learn(
        self,
        reads: Mapping[Tier, Sequence[float]],
        *,
        compute_s: float | None,
        probes: Sequence[Tier],
        now: float,
    ) -> None:
        """A request's reads have ended: seconds of each block by tier, without those that failed.

        `compute_s` is what the request would have computed for instead.
        """
        for name in probes:  # what it was like before it was switched off says little
            self._reads[name] = ReadCurve(self._block_bytes)
        load_s = 0.0
        for name, seconds in reads.items():
            for number, one in enumerate(seconds):
                self._reads[name].note(one, first=number == 0)
            load_s += sum(seconds) + len(seconds) * (self._landing_s.value or 0.0)
        for name in self._reads:
            if reads.get(name) and compute_s is not None:
                self._judge(name, lost=load_s > compute_s, now=now)
            elif name in probes:
                self._trials[name].end_probe()

    def left(self, probes: Iterable[Tier]) -> None:
        """A request that was to find out about these has gone; another may."""
        for name in probes:
            self._trials[name].end_probe()

    def landed(self, seconds: float) -> None:
        """Copying one block into the pool took so long."""
        self._landing_s.note(seconds)

    def computed(self, prefills: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step of prompts, (first position, rows) each, took so long."""
        rows = sum(count for _, count in prefills)
        if rows < FEWEST_ROWS:
            return
        for start, count in prefills:
            self.prefill.note(start=start, rows=count, seconds=seconds * count / rows)

    def _judge(self, name: Tier, *, lost: bool, now: float) -> None:
        trial = self._trials[name]
        before = trial.switched_off
        trial.judge(lost=lost, now=now)
        if trial.switched_off > before:
            off_s = trial.off_for_s(now=now)
            _log.warning("the %s tier is slower than computing: off for %.0f s", name, off_s)

    def stats(self, name: Tier, *, now: float) -> dict[str, Any]:
        """What was measured of a tier, as plain JSON; null where nothing was."""
        trial, reads = self._trials[name], self._reads[name]
        speed, latency = reads.bytes_per_s, reads.first.value
        return {
            "on": trial.off_until is None,
            "off_for_s": round(trial.off_for_s(now=now), 3),
            "switched_off": trial.switched_off,
            "read_bytes_per_s": None if speed is None else round(speed),
            "read_latency_ms": None if latency is None else round(latency * 1000, 3),
        }
