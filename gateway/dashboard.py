"""What the dashboard shows, computed once for all who look, and only while somebody does.

A *frame* is made every second: the sections that have changed since the one before, encoded once.
Who comes gets a whole frame, and so does who missed one; everybody else gets the changes. What a frame takes of
the event loop is measured, and the next one is made so late that it is a small share: after a second on
most gateways, later where there are very many kinds of calls to add up.

While nobody looks, a row is added to the past every ten seconds, for the curves of who comes later.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

import orjson
import structlog

from gateway.history import COARSE_S, History, counts_of
from gateway.numbers import Ask
from gateway.stats import stats_of

FRAME_S: Final = 1.0
LONGEST_FRAME_S: Final = 30.0
SHARE: Final = 0.0005
"""Of the event loop, that adding up and encoding may take; what is around them takes about as much."""
_log = structlog.get_logger("kvgate")


class Slow(Protocol):
    """What is asked for at its own pace; see :mod:`gateway.dashboard_views`."""

    async def sections(self) -> dict[str, Any]:
        """What is known by now."""
        ...


class Dashboard:
    """See the module's docstring. ``now`` is unix time; ``used`` what this thread has used of a core.

    Of several ``workers`` each one's numbers are asked for: frames are as many seconds apart.
    """

    def __init__(
        self,
        *,
        numbers: Ask,
        slow: Slow,
        now: Callable[[], float],
        used: Callable[[], float],
        workers: int = 1,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.viewers = 0
        self._numbers = numbers
        self._slow = slow
        self._now = now
        self._used = used
        self._frame_s = FRAME_S * workers
        self._sleep = sleep
        self._history = History()
        self._sections: dict[str, bytes] = {}
        self._number = 0
        self._changes = b""
        self._whole = b""
        self._made = asyncio.Event()
        self._came = asyncio.Event()
        self._closing = False
        self.spent_s = 0.0
        """Seconds of the event loop that all frames took."""

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events, until the gateway ends: the state of things, then what changes."""
        self.viewers += 1
        self._came.set()
        seen = 0
        try:
            while not self._closing:
                made, number = self._made, self._number
                if number > seen:
                    follows, seen = seen == number - 1 > 0, number
                    yield self._changes if follows else self._everything()
                else:
                    await made.wait()
        finally:
            self.viewers -= 1
            if not self.viewers:  # what is held would be old when somebody comes
                self._came.clear()

    def close(self) -> None:
        """The process ends: nobody who looks should hold it up."""
        self._closing = True
        self._wake()

    async def run(self) -> None:
        """For ever: frames while somebody looks, else a row now and then."""
        while True:
            try:
                wait_s = await self._frame() if self.viewers else await self._row()
            except Exception:  # noqa: BLE001 - a defect here must not end the page for good
                _log.exception("no dashboard frame")
                wait_s = LONGEST_FRAME_S
            await self._wait(wait_s)

    async def _wait(self, seconds: float) -> None:
        """So long, or until the first viewer comes."""
        if self.viewers:
            await self._sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._came.wait()
        except TimeoutError:
            pass

    async def _row(self) -> float:
        numbers = await self._numbers()
        row = self._history.note(self._now(), counts_of(numbers, numbers.statistics.views()))
        self._whole = b""
        if self.viewers:  # who came meanwhile has the rows before this one
            self._publish({}, row)
            return 0.0
        return COARSE_S

    async def _frame(self) -> float:
        """Make one; returns how long to wait for the next."""
        numbers = await self._numbers()
        sections = await self._slow.sections()
        before_s = self.spent_s
        with self._measured():
            views = numbers.statistics.views()
            row = self._history.note(self._now(), counts_of(numbers, views))
            sections |= {
                "stats": stats_of(numbers, views),
                "keys": [one.as_dict() for one in numbers.keys],
            }
            self._publish({name: orjson.dumps(said) for name, said in sections.items()}, row)
        return min(max(self._frame_s, (self.spent_s - before_s) / SHARE), LONGEST_FRAME_S)

    def _publish(self, sections: Mapping[str, bytes], row: Any) -> None:
        changed = {
            name: data for name, data in sections.items() if self._sections.get(name) != data
        }
        self._sections |= changed
        self._number += 1
        self._whole = b""
        self._changes = _event("changes", changed, [row])
        self._wake()

    def _everything(self) -> bytes:
        if not self._whole:
            with self._measured():
                self._whole = _event("whole", self._sections, self._history.rows())
        return self._whole

    def _wake(self) -> None:
        made, self._made = self._made, asyncio.Event()
        made.set()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        began_s = self._used()
        try:
            yield
        finally:
            self.spent_s += self._used() - began_s

    def __repr__(self) -> str:
        return f"<Dashboard {self.viewers} viewers, frame {self._number}, {self._history!r}>"


def _event(name: str, sections: Mapping[str, bytes], rows: Any) -> bytes:
    told = {one: orjson.Fragment(data) for one, data in sections.items()}
    return b"event: %b\ndata: %b\n\n" % (
        name.encode(),
        orjson.dumps({"sections": told, "rows": rows}),
    )
