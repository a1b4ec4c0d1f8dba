"""How many threads the next step uses: all, unless the cores are wanted by others.

Threads that wait for each other at every layer are only as fast as the one that the system lets run
least. With another busy program on the same cores a step takes many times as long on all threads as on
one, and how long the first thread waited shows it. Bits do not depend on the number of threads.

    calm     all threads; a step that waited for more than half of its time halves them
    crowded  fewer, for a while that doubles each time it did not help to go back
"""

from __future__ import annotations

from dataclasses import dataclass

CROWDED_SHARE = 0.5
FIRST_PAUSE = 8
LONGEST_PAUSE = 512
_CALM_STEPS = 64


@dataclass(slots=True)
class Crowd:
    """Decides; told of each step. Time is measured by the caller."""

    threads: int
    active: int = 0
    pause: int = FIRST_PAUSE
    left: int = 0
    calm: int = 0

    def __post_init__(self) -> None:
        self.active = self.threads

    def next(self) -> int:
        """Threads for the next step."""
        if self.active < self.threads:
            self.left -= 1
            if self.left <= 0:
                self.active = min(2 * self.active, self.threads)
        return self.active

    def learn(self, *, waited_ns: int, took_ns: int) -> None:
        """A step has been done, by `active` threads; the first waited so long for the others."""
        if self.active == 1:
            return
        if waited_ns > CROWDED_SHARE * took_ns:
            self.active = max(1, self.active // 2)
            self.left = self.pause
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            self.calm = 0
            return
        self.calm += 1
        if self.calm >= _CALM_STEPS:
            self.pause = FIRST_PAUSE
