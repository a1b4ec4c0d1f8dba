"""Time that moves only when a test says so."""

import asyncio


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


class Ticks:
    """A sleep that ends when a test says so, whatever the seconds."""

    def __init__(self) -> None:
        self._sleepers: list[asyncio.Future[None]] = []
        self._came = asyncio.Condition()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Wait for the next :meth:`tick`."""
        self.slept.append(seconds)
        mine = asyncio.get_running_loop().create_future()
        self._sleepers.append(mine)
        async with self._came:
            self._came.notify_all()
        await mine

    async def slept_once(self) -> None:
        """Wait until something sleeps."""
        async with self._came:
            await self._came.wait_for(lambda: bool(self._sleepers))

    async def tick(self) -> None:
        """Wait until something sleeps, and end all sleeps."""
        await self.slept_once()
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
