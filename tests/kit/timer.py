"""A clock on which one can sleep; who sleeps wakes when the test lets time pass."""

import asyncio

from tests.kit.clock import Clock


class Timer(Clock):
    """``sleep`` takes the place of ``asyncio.sleep``."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        """Until the test has let so much time pass."""
        wakes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.monotonic() + seconds, wakes))
        await wakes

    @property
    def sleepers(self) -> list[float]:
        """In how many seconds those who sleep will wake, the next first."""
        now = self.monotonic()
        return sorted(at - now for at, wakes in self._sleepers if not wakes.done())

    async def asleep(self) -> None:
        """Until there is one who sleeps."""
        while not self.sleepers:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)

    async def go_on(self, seconds: float) -> None:
        """Let time pass; everybody wakes in their turn and does what they can without time."""
        until = self.monotonic() + seconds
        await turns()
        while self.sleepers and self.monotonic() + self.sleepers[0] <= until + 1e-9:
            self.advance(max(0.0, self.sleepers[0]))
            now = self.monotonic()
            for at, wakes in self._sleepers:
                if at <= now + 1e-9 and not wakes.done():
                    wakes.set_result(None)
            self._sleepers = [one for one in self._sleepers if not one[1].done()]
            await turns()
        self.advance(max(0.0, until - self.monotonic()))


async def turns(count: int = 50) -> None:
    """Turns of the loop: enough for everything that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)
