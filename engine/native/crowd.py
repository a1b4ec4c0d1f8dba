"""How many threads the next step uses: all, unless the cores are wanted by others.

Threads that wait for each other at every layer are only as fast as the one that the system lets run
least. With another busy program on the same cores a small step takes several times as long on all
threads as on one, and how long the first thread waited shows it. One slow step shows nothing: any program
that wakes up for a moment makes one. Bits do not depend on the number of threads.

    calm     all threads; when of the last few steps more than half of the time was waiting: half of them
    crowded  for a while, which doubles each time that going back did not help

A step of many rows always has all threads: there is work enough between two gates.
"""

from __future__ import annotations

from dataclasses import dataclass

CROWDED_SHARE = 0.5
MANY_ROWS = 24
FIRST_PAUSE = 16
LONGEST_PAUSE = 512
_KEPT = 0.8  # of what earlier steps weigh, at each step: about the last five count
_FEWEST_STEPS = 5
_CALM_STEPS = 64


@dataclass(slots=True)
class Crowd:
    """Decides; told of each step. Time is measured by the caller."""

    threads: int
    active: int = 0
    pause: int = FIRST_PAUSE
    left: int = 0
    calm: int = 0
    waited: float = 0.0
    took: float = 0.0

    def __post_init__(self) -> None:
        self.active = self.threads

    def next(self, rows: int) -> int:
        """Threads for the next step, of so many rows."""
        if rows >= MANY_ROWS:
            return self.threads
        if self.active < self.threads:
            self.left -= 1
            if self.left <= 0:
                self._use(min(2 * self.active, self.threads))
        return self.active

    def learn(self, rows: int, *, waited_ns: int, took_ns: int) -> None:
        """A step of so many rows has been done; its first thread waited so long for the others."""
        if rows >= MANY_ROWS or self.active == 1:
            return
        self.waited = _KEPT * self.waited + waited_ns
        self.took = _KEPT * self.took + took_ns
        self.calm += 1
        if self.calm >= _FEWEST_STEPS and self.waited > CROWDED_SHARE * self.took:
            self.left = self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            self._use(max(1, self.active // 2))
        elif self.calm >= _CALM_STEPS:
            self.pause = FIRST_PAUSE

    def _use(self, threads: int) -> None:
        self.active = threads
        self.calm = 0
        self.waited = self.took = 0.0
