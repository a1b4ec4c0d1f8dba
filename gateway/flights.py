"""One piece of work per key; everybody reads along.

The work belongs to the flight, not to the first caller. All callers are readers of one
buffer: a late reader starts from the first piece, a reader leaving only decrements a count,
and when nobody reads any more the work is cancelled (unless it was asked to finish). An
error reaches all readers and leaves the key free. Work that may still wait behind more urgent
work can give way to a flight of the same key: its readers are told to look for that one.

``Flights`` does no IO and knows nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Final, Self

from gateway.chunks import Chunk, Comment, Opening, Piece, Whole
from policies.outcome import Elsewhere
from policies.plan import Lane

Work = Callable[[], AsyncGenerator[Piece, None]]

URGENCY: Final[tuple[Lane, ...]] = ("interactive", "batch", "warm")
TURN: Final = 128
"""Pieces that come or are read one after another before others get their turn."""
MAX_UNREAD_BYTES: Final = 64 * 1024
"""Of a stream: work that is so far ahead of its fastest reader waits."""
_LET_GO: Final = Comment(b"")
MAX_LANDED: Final = 1024
"""Landings remembered: more than happen while one look-up is on its way."""


class Tasks:
    """Background tasks that are kept alive until they end and awaited on close."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run ``work`` as a task that cannot be collected while it runs."""
        task = asyncio.create_task(work, name=name)  # noqa: TID251 - the one place that may
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def close(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._running)


class FlightCancelled(Exception):
    """The work was cancelled from outside (shutdown) while somebody still read."""


class FlightBroken(Exception):
    """The work stopped without an ending: half an answer must not pass for a whole one."""


class Flight:
    """A running piece of work and its buffer. Built by :meth:`Flights.start` only."""

    __slots__ = (
        "_full",
        "_read_to",
        "_unread_bytes",
        "_waiting",
        "abandoned",
        "began_at",
        "ended",
        "error",
        "finish_alone",
        "lane",
        "once",
        "pieces",
        "readers",
        "settled",
        "task",
    )

    def __init__(self, *, finish_alone: bool, lane: Lane, began_at: float, once: bool) -> None:
        self.once = once
        self.lane = lane
        self.began_at = began_at
        self.pieces: list[Piece] = []
        self.readers = 0
        self.finish_alone = finish_alone
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.settled = False  # an Ending is in the buffer: what follows is storing the answer
        self.ended = False
        self.abandoned = False
        self._waiting: list[asyncio.Future[None]] = []
        self._read_to = 0  # pieces that some reader has taken
        self._unread_bytes = 0
        self._full: asyncio.Future[None] | None = None

    def read(self) -> "Reader":
        """A reader that starts from the first piece."""
        assert not (self.once and self._read_to), "what was read once is gone"
        self.readers += 1
        return Reader(self)

    async def run(self, work: Work) -> None:
        """Fill the buffer. An error is kept for the readers."""
        try:
            async with aclosing(work()) as pieces:
                async for piece in pieces:
                    self.pieces.append(piece)
                    self.settled = not isinstance(piece, Opening | Comment | Chunk | Whole)
                    if isinstance(piece, Chunk):
                        self._unread_bytes += piece.size_bytes
                    self.wake()
                    if len(self.pieces) % TURN == 0:
                        await asyncio.sleep(0)
                    while self._unread_bytes > MAX_UNREAD_BYTES and self.readers:
                        await self._room()
        except Exception as error:  # noqa: BLE001 - each reader raises it in its own request
            self.error = error

    def taken(self, position: int) -> None:
        """A reader has taken the pieces before ``position``."""
        if position <= self._read_to:
            return
        for place in range(self._read_to, position):
            piece = self.pieces[place]
            if isinstance(piece, Chunk):
                self._unread_bytes -= piece.size_bytes
                if self.once:
                    self.pieces[place] = _LET_GO
        self._read_to = position
        self._go_on()

    async def _room(self) -> None:
        """Wait until a reader takes something, or leaves. Pieces without readers must not fill memory."""
        self._full = asyncio.get_running_loop().create_future()
        try:
            await self._full
        finally:
            self._full = None

    def _go_on(self) -> None:
        if self._full is not None and not self._full.done():
            self._full.set_result(None)

    def wake(self) -> None:
        """Tell the waiting readers that the buffer or the state has changed."""
        waiting, self._waiting = self._waiting, []
        for reader in waiting:
            if not reader.done():
                reader.set_result(None)

    async def changed(self) -> None:
        """Wait for the next :meth:`wake`."""
        # A future for each reader: one that is cancelled must not cancel the others' wait.
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        await mine

    def leave(self) -> None:
        """One reader less; the last one to leave ends the work."""
        self.readers -= 1
        self._go_on()
        if self.readers == 0 and not self.finish_alone and not self.settled:
            self.abandoned = True
            if self.task is not None:
                self.task.cancel()

    def gives_way(self, lane: Lane) -> bool:
        """Make room for a flight in ``lane``, if that is more urgent and nothing is here yet."""
        behind = URGENCY.index(self.lane) > URGENCY.index(lane)
        if not behind or self.pieces or self.error is not None or self.task is None:
            return False
        self.pieces.append(Elsewhere())
        self.settled = True
        self.wake()
        self.task.cancel()
        return True

    def __repr__(self) -> str:
        state = "ended" if self.ended else "flying"
        return f"<Flight {state}: {len(self.pieces)} pieces, {self.readers} readers>"


class Reader:
    """One caller's view of a flight; an async iterator and an async context manager.

    As an iterator it gives out no comments. ``heard`` is told of them.
    """

    __slots__ = ("_flight", "_open", "_position", "heard")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._position = 0
        self._open = True
        self.heard: Callable[[Comment], None] | None = None

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        while await self._more():
            if self._position % TURN == TURN - 1:
                await asyncio.sleep(0)
            piece = self._flight.pieces[self._position]
            self._position += 1
            self._flight.taken(self._position)
            if not isinstance(piece, Comment):
                return piece
            if self.heard is not None:
                self.heard(piece)
        raise StopAsyncIteration

    async def batches(self) -> AsyncIterator[Sequence[Piece]]:
        """The rest, in portions: what is there each time one looks, but others get their turn."""
        while await self._more():
            there = self._flight.pieces[self._position : self._position + TURN]
            self._position += len(there)
            self._flight.taken(self._position)
            yield there
            if len(there) == TURN:
                await asyncio.sleep(0)

    async def _more(self) -> bool:
        """Wait until there is an unread piece; False when none will come."""
        flight = self._flight
        while self._position >= len(flight.pieces):
            if flight.error is not None:
                raise flight.error
            if flight.ended:
                return False
            await flight.changed()
        return True

    def close(self) -> None:
        """Stop reading. The last reader to leave ends the work."""
        if self._open:
            self._open = False
            self._flight.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class Flights:
    """The flights in the air, by key."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._by_key: dict[bytes, Flight] = {}
        self._flying: set[Flight] = set()
        self._closed = False
        self._landed: dict[bytes, int] = {}  # the latest ones, with their place in the order
        self.landings = 0

    def find(self, key: bytes) -> Flight | None:
        """The flight for this key, if one is in the air and not being given up."""
        flight = self._by_key.get(key)
        return None if flight is None or flight.abandoned else flight

    def landed_since(self, key: bytes, mark: int) -> bool:
        """Whether a flight for ``key`` has landed since ``landings`` was ``mark``.

        Who found nothing in the store meanwhile should look again: it may be there now.
        """
        return self._landed.get(key, 0) > mark

    def start(
        self,
        key: bytes | None,
        work: Work,
        *,
        finish_alone: bool = False,
        lane: Lane = "interactive",
        began_at: float = 0.0,
        once: bool = False,
    ) -> Flight:
        """Start ``work`` at ``began_at`` (unix seconds). With a key others may find it until it has ended.

        ``once``: it has one reader ever, so that what that one has read need not be held.
        The work may go on after its last piece (to store the answer): the key stays taken
        until then, so that nobody starts the same work in between.
        """
        flight = Flight(finish_alone=finish_alone, lane=lane, began_at=began_at, once=once)
        if key is not None:
            self._by_key[key] = flight

        def landed(task: asyncio.Task[None]) -> None:
            # A callback, not a `finally`: a task cancelled before its first step never enters one.
            if not flight.settled and flight.error is None:
                flight.error = FlightCancelled() if task.cancelled() else FlightBroken()
            flight.ended = True
            self._flying.discard(flight)
            flight.wake()
            if key is not None:
                self._note_landing(key)
                if self._by_key.get(key) is flight:
                    del self._by_key[key]

        flight.task = self._tasks.start(flight.run(work), name="flight")
        flight.task.add_done_callback(landed)
        self._flying.add(flight)
        if self._closed:
            flight.task.cancel()
        return flight

    def close(self) -> None:
        """The process ends: cancel all work, and what is started from now on."""
        self._closed = True
        for flight in self._flying:
            if flight.task is not None:
                flight.task.cancel()

    def _note_landing(self, key: bytes) -> None:
        self.landings += 1
        self._landed.pop(key, None)
        self._landed[key] = self.landings
        if len(self._landed) > MAX_LANDED:
            del self._landed[next(iter(self._landed))]

    def __len__(self) -> int:
        return len(self._by_key)

    def __repr__(self) -> str:
        readers = sum(flight.readers for flight in self._by_key.values())
        return f"<Flights {len(self._by_key)} in the air, {readers} readers>"
