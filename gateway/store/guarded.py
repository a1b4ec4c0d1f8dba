"""A time limit and a circuit breaker around whatever is kept outside this process's memory.

Each call may take so long and no longer (:mod:`gateway.store.store_time`). After a failure no further
call waits: calls fail at once until a probe in the background has found the place working. If that fails
too, several times in a row, the circuit is open: one line in the log, and the guard probes
seldom, and only while requests come. One late answer costs a few hits; a place that is gone costs the callers of one
moment one time limit.

A place that is full (:class:`~gateway.store.base.StoreFull`) still gives back what it has: taking
entries has a circuit of its own. One :class:`Guard` watches one place (a server, a folder); all that
lies there shares it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog

from gateway.flights import Tasks
from gateway.store.base import (
    Entry,
    Fill,
    Selector,
    Store,
    Stored,
    StoreError,
    StoreFull,
    StoreRefuses,
)
from gateway.store.sharing import Leases, Listener, News, Records
from gateway.store.store_time import StoreTime
from policies.freshness import EntryMeta

FAILURES_IN_A_ROW: Final = 3
"""Of calls and probes together."""
FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 5.0
LONG_CALLS: Final = 100
"""How many limits a call may take that goes through many entries: nobody's answer waits for it."""

LONGEST_CALLS: Final = 10_000
"""As many for a removal of many entries: the store itself limits each of its steps."""

LEASE_CALLS: Final = 10
"""How many limits a lease may take: giving up on it costs a second computation."""

T = TypeVar("T")
_log = structlog.get_logger("kvgate.store")


class Circuit:
    """Closed: calls pass. After a failure they do not, until a probe worked; open: probes are rare."""

    __slots__ = (
        "_backoff_s",
        "_changed",
        "_clock",
        "_closed_at",
        "_draw",
        "_failures",
        "_probe_at",
        "is_open",
        "probing",
    )

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        draw: Callable[[], float],
        changed: Callable[[StoreError | None], None],
    ) -> None:
        """``changed`` is told of each change: why the circuit opened, or None when it closed.

        ``clock`` is monotonic (seconds), ``draw`` from ``[0, 1)`` spreads the probes of many gateways.
        """
        self._clock = clock
        self._draw = draw
        self._changed = changed
        self._failures = 0
        self._backoff_s = FIRST_BACKOFF_S
        self._closed_at = clock()
        self._probe_at = 0.0
        self.is_open = False
        self.probing = False
        """Set by whoever begins a probe, and taken back by him when it has ended."""

    @property
    def passes(self) -> bool:
        """Whether calls may be made."""
        return self._failures == 0

    @property
    def wants_probe(self) -> bool:
        """Whether a probe should begin now."""
        early = self.is_open and self._clock() < self._probe_at
        return not (self.passes or self.probing or early)

    def worked(self) -> None:
        """A call or a probe was answered."""
        self._failures = 0
        if self.is_open:
            self.is_open = False
            self._closed_at = self._clock()
            self._changed(None)

    def failed(self, error: StoreError) -> None:
        """A call or a probe was not answered, or not in time."""
        self._failures += 1
        if self.is_open:
            if self.probing:  # else it is a call from before the circuit opened
                self._wait_longer()
        elif self._failures == FAILURES_IN_A_ROW:
            if self._clock() - self._closed_at > LONGEST_BACKOFF_S:
                self._backoff_s = FIRST_BACKOFF_S
            self.is_open = True
            self._wait_longer()
            self._changed(error)

    def _wait_longer(self) -> None:
        # Half of it by chance: gateways that lost a server together must not come back together.
        self._probe_at = self._clock() + self._backoff_s * (0.5 + self._draw() / 2)
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Circuit {state}, {self._failures} failures in a row>"


class Guard:
    """The limit and the circuits of one place."""

    def __init__(
        self,
        place: str,
        probe: Callable[[], Awaitable[object]],
        *,
        limit_s: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        """``probe`` is any call that works when reading works; it raises StoreError otherwise."""
        self.place = place
        self._probe = probe
        self._down: str | None = None
        self._takes_nothing: str | None = None
        self._limit_s = limit_s
        self._tasks = tasks
        self._answers = Circuit(clock=clock, draw=draw, changed=self._answering_changed)
        self._takes = Circuit(clock=clock, draw=draw, changed=self._taking_changed)

    @property
    def ailing(self) -> str | None:
        """Why the place is of no use now, or takes nothing; None: it works.

        Who asks lets a probe be made, so that a place that is back is found without a request.
        """
        self._look_again()
        return self._down or self._takes_nothing

    async def check(self) -> None:
        """Probe the place; one that fails several times in a row is down from the start."""
        self._answers.probing = True
        await self._probe_on()

    async def read(self, work: Callable[[], Awaitable[T]], *, limits: int = 1) -> T:
        """Do ``work``, which takes no room, within so many time limits. Raises: StoreError."""
        if not self._answers.passes:
            self._look_again()
            raise StoreError(f"{self.place} does not answer")
        try:
            return await self._limited(work, limits)
        finally:
            self._look_again()

    async def write(self, work: Callable[[], Awaitable[T]], *, limits: int = 1) -> T:
        """Do ``work``, which takes room; one that is full is probed by it. Raises: StoreError."""
        takes = self._takes
        probes = takes.wants_probe
        if not takes.passes and not probes:
            raise StoreFull(f"{self.place} takes nothing")
        takes.probing |= probes
        try:
            result = await self.read(work, limits=limits)
        except (StoreFull, StoreRefuses) as error:
            takes.failed(error)
            raise
        finally:
            if probes:
                takes.probing = False
        takes.worked()
        return result

    def _look_again(self) -> None:
        """Begin to probe in the background, if it is time to."""
        if self._answers.wants_probe:
            self._answers.probing = True
            self._tasks.start(self._probe_on(), name=f"probe of {self.place}")

    async def _probe_on(self) -> None:
        """Probe until the place has answered, or the circuit has opened."""
        try:
            while True:
                with suppress(StoreError):
                    await self._limited(self._probe, 1)
                if self._answers.passes or self._answers.is_open:
                    return
        finally:
            self._answers.probing = False

    async def _limited(self, work: Callable[[], Awaitable[T]], limits: int) -> T:
        limit_s = limits * self._limit_s
        try:
            async with StoreTime(limit_s):
                result = await work()
        except TimeoutError:
            raise self._late(limit_s) from None
        except StoreFull:
            self._answers.worked()
            raise
        except StoreError as error:
            self._answers.failed(error)
            raise
        self._answers.worked()
        return result

    def _late(self, limit_s: float) -> StoreError:
        # Made here: an error that is a local of a frame it passes keeps all frames alive, and the
        # entries in them, until the collector looks for cycles.
        late = StoreError(f"{self.place}: no answer within {1000 * limit_s:.0f} ms")
        self._answers.failed(late)
        return late

    def _answering_changed(self, error: StoreError | None) -> None:
        self._down = None if error is None else str(error)[:200]
        if error is not None:
            _log.warning("store down", store=self.place, reason=self._down)
        else:
            _log.info("store back", store=self.place)

    def _taking_changed(self, error: StoreError | None) -> None:
        self._takes_nothing = None if error is None else f"takes nothing: {str(error)[:200]}"
        if error is not None:
            _log.warning("store takes nothing", store=self.place, reason=str(error)[:200])
        else:
            _log.info("store takes entries again", store=self.place)

    def __repr__(self) -> str:
        return f"<Guard of {self.place}: answers {self._answers}, takes {self._takes}>"


class Guarded:
    """A store behind a guard."""

    def __init__(self, store: Store, guard: Guard) -> None:
        self._store = store
        self._guard = guard

    @property
    def number(self) -> int:
        """See :attr:`gateway.store.base.Generations.number`."""
        return self._store.number

    async def bar(self, what: Selector | None, *, at: int | None = None) -> int:
        """See :meth:`gateway.store.base.Generations.bar`."""
        limits = 1 if what is None or at is not None else LONG_CALLS
        return await self._guard.read(lambda: self._store.bar(what, at=at), limits=limits)

    async def refresh(self) -> None:
        """See :meth:`gateway.store.base.Generations.refresh`."""
        await self._guard.read(self._store.refresh)

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """See :meth:`gateway.store.base.Store.get`."""
        return await self._guard.read(lambda: self._store.get(key, now=now))

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """See :meth:`gateway.store.base.Store.put`."""
        return await self._guard.write(lambda: self._store.put(entry, now=now))

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.remove`."""
        limits = 1 if selector.key is not None else LONGEST_CALLS
        return await self._guard.read(lambda: self._store.remove(selector), limits=limits)

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.scan`."""
        limits = 1 if selector.key is not None else LONG_CALLS
        return await self._guard.read(
            lambda: self._store.scan(selector, after=after, limit=limit), limits=limits
        )

    def fill(self) -> Fill:
        """See :meth:`gateway.store.base.Store.fill`."""
        return self._store.fill()

    async def close(self) -> None:
        """See :meth:`gateway.store.base.Store.close`."""
        await self._store.close()

    def __repr__(self) -> str:
        return repr(self._store)


class GuardedLeases:
    """Leases behind a guard: when they fail, everybody computes for himself."""

    def __init__(self, leases: Leases, guard: Guard) -> None:
        self._leases = leases
        self._guard = guard

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        """See :meth:`gateway.store.sharing.Leases.take`."""
        return await self._guard.write(
            lambda: self._leases.take(key, ttl_s=ttl_s), limits=LEASE_CALLS
        )

    async def release(self, key: bytes) -> None:
        """See :meth:`gateway.store.sharing.Leases.release`."""
        await self._guard.read(lambda: self._leases.release(key), limits=LEASE_CALLS)

    async def held(self, key: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Leases.held`."""
        return await self._guard.read(lambda: self._leases.held(key), limits=LEASE_CALLS)


class GuardedRecords:
    """Records behind a guard."""

    def __init__(self, records: Records, guard: Guard) -> None:
        self._records = records
        self._guard = guard

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        """See :meth:`gateway.store.sharing.Records.read`."""
        return await self._guard.read(lambda: self._records.read(kind, tenant, name))

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        """See :meth:`gateway.store.sharing.Records.write`."""
        await self._guard.write(lambda: self._records.write(kind, tenant, name, data))

    async def create(self, kind: str, tenant: str, name: str, data: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Records.create`."""
        return await self._guard.write(lambda: self._records.create(kind, tenant, name, data))

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        """See :meth:`gateway.store.sharing.Records.erase`."""
        return await self._guard.read(lambda: self._records.erase(kind, tenant, name))

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        """See :meth:`gateway.store.sharing.Records.names`."""
        return await self._guard.read(lambda: self._records.names(kind, tenant), limits=LONG_CALLS)

    async def count(
        self, kind: str, tenant: str, name: str, amounts: Mapping[str, float]
    ) -> Mapping[str, float]:
        """See :meth:`gateway.store.sharing.Records.count`."""
        return await self._guard.write(lambda: self._records.count(kind, tenant, name, amounts))


class GuardedNews:
    """News behind a guard."""

    def __init__(self, news: News, guard: Guard) -> None:
        self._news = news
        self._guard = guard

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """See :meth:`gateway.store.sharing.News.tell`."""
        await self._guard.read(lambda: self._news.tell(topic, message), limits=LONG_CALLS)

    def listen(self, topic: str, listener: Listener) -> None:
        """See :meth:`gateway.store.sharing.News.listen`."""
        self._news.listen(topic, listener)
