"""Who goes first when backends are asked: users, and warming only beside them.

The pipeline says when a user's call is in the air (:meth:`Traffic.of`); warming waits for its
turn (:meth:`Traffic.turn`). In a quiet moment, when no user's call was in the air for ``QUIET_S``,
warming takes all its places. Else it takes one at a time and rests :data:`REST` times as long as
the last one took: it always gets on, and takes no more than a fifth of one place.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from policies.plan import Lane

QUIET_S: Final = 0.25
"""A gap between two calls of one user is no quiet moment."""
REST: Final = 4
LEAST_REST_S: Final = 0.5
LONGEST_REST_S: Final = 60.0


class Traffic:
    """The calls in the air. ``clock`` is monotonic, in seconds; ``sleep`` waits by it."""

    def __init__(
        self,
        *,
        places: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.users = 0
        self.warming = 0
        self._places = asyncio.Semaphore(places)
        self._clock = clock
        self._sleep = sleep
        self._user_left_s = -QUIET_S
        self._rest_until_s = 0.0

    @contextmanager
    def of(self, lane: Lane) -> Iterator[None]:
        """While a call of this lane is in the air."""
        if lane == "warm":
            yield
            return
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self._user_left_s = self._clock()

    @property
    def quiet(self) -> bool:
        """Whether users have left the backends alone for a moment."""
        return not self.users and self._clock() - self._user_left_s >= QUIET_S

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until warming may ask a backend, and hold one of its places meanwhile."""
        async with self._places:
            # A look now and then: to be woken by every call of a user would cost users more.
            while not self._may_begin():
                await self._sleep(QUIET_S)
            self.warming += 1
            began_s = self._clock()
            try:
                yield
            finally:
                self.warming -= 1
                now_s = self._clock()
                rest_s = max(LEAST_REST_S, min(LONGEST_REST_S, REST * (now_s - began_s)))
                self._rest_until_s = now_s + rest_s

    def _may_begin(self) -> bool:
        return self.quiet or (not self.warming and self._clock() >= self._rest_until_s)

    def __repr__(self) -> str:
        return f"<Traffic {self.users} users, {self.warming} warming>"
