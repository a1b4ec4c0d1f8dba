"""Time that moves only when a test says so."""


class Clock:
    """A wall clock that can be set, and a monotonic one that only goes on. Seconds."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._wall_s = now
        self._monotonic_s = 0.0

    def now(self) -> float:
        """Unix time."""
        return self._wall_s

    def monotonic(self) -> float:
        """Time since the clock was made; setting the wall clock does not touch it."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass on both."""
        assert seconds >= 0, "time does not run backwards; set() a wall clock back instead"
        self._wall_s += seconds
        self._monotonic_s += seconds

    def set(self, now: float) -> None:
        """Set the wall clock, as an operator or NTP would: also backwards."""
        self._wall_s = now

    def __repr__(self) -> str:
        return f"<Clock {self._wall_s:.3f}, {self._monotonic_s:.3f} s on>"
