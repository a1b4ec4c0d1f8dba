"""Warm jobs: taken, run, watched, cancelled, and taken up again after a restart.

A job is a record that all processes see, and is run by the one that holds its lease::

    warm        what was asked; written once, and again without its texts when the job ends
    warm-state  how far it is; written as it goes on, and when it ends
    warm-open   a mark while it has not ended: what a sweep looks for

A job of a tenant that the configuration does not have any more is dropped. Who dies leaves the mark and a lease that ends by itself: the next sweep of a living process takes
the job up and skips what is fresh already. Who cancels takes the mark away.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from itertools import groupby
from typing import Final, Literal, TypeVar

import cachetools
import structlog

from gateway.errors import ClientFault
from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.sharing import Leases, Records
from gateway.warming_call import Warmed, Warming
from gateway.warming_job import Job, Place, read_job
from policies.keys import Principal
from policies.warming import Item

WISH: Final = "warm"
STATE: Final = "warm-state"
OPEN: Final = "warm-open"
LEASE_S: Final = 10.0
LOOK_S: Final = 1.0
"""How often a job's record follows the job, and how soon it hears that it was cancelled."""
SWEEP_S: Final = 5.0
BEAT_S: Final = 10.0
"""The longest a watcher of a job hears nothing."""
MAX_UNFINISHED: Final = 32
SHOWN_JOBS: Final = 32
KEPT_JOBS: Final = 100
"""Of each tenant; the oldest that have ended go."""

T = TypeVar("T")
_log = structlog.get_logger("kvgate.warming")


class _Running:
    """A job that this process runs."""

    __slots__ = ("cancelled", "changed", "job", "task", "written")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.changed = asyncio.Event()
        self.cancelled = False
        self.written = b""
        self.task: asyncio.Task[None] | None = None

    def put(self, number: int, place: Place) -> None:
        """A question stands elsewhere now."""
        self.job.places[number] = place
        self.tell()

    def tell(self) -> None:
        """Wake those who watch."""
        self.changed.set()
        self.changed = asyncio.Event()


class WarmJobs:
    """All warm jobs of all tenants. ``now`` is unix time in seconds."""

    def __init__(
        self,
        *,
        warming: Warming,
        records: Records,
        leases: Leases,
        tasks: Tasks,
        tenants: Collection[str],
        concurrency: int,
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        new_id: Callable[[], str],
    ) -> None:
        self._tenants = tenants
        self._warming = warming
        self._records = records
        self._leases = leases
        self._tasks = tasks
        self._concurrency = concurrency
        self._now = now
        self._sleep = sleep
        self._new_id = new_id
        self._running: dict[tuple[str, str], _Running] = {}
        self._beginning: set[tuple[str, str]] = set()
        # Of jobs that ended here, what is shown of their questions.
        self._ended: cachetools.LRUCache[tuple[str, str], Job] = cachetools.LRUCache(SHOWN_JOBS)
        self._closing = False

    async def submit(self, principal: Principal, items: Sequence[Item]) -> Job:
        """Take a job and begin with it.

        Raises: RequestError for wishes that this principal may not have, ClientFault 429
        ``too_many_jobs``, StoreError.
        """
        for number, item in enumerate(items):
            self._warming.check(item, principal)
            if number % 32 == 31:
                await asyncio.sleep(0)  # others wait meanwhile
        unfinished = await self._records.names(OPEN, principal.tenant)
        if len(unfinished) >= MAX_UNFINISHED:
            raise ClientFault(
                f"{len(unfinished)} warm jobs have not ended yet; wait for one, or cancel one.",
                code="too_many_jobs",
                status=429,
                retry_after_s=10.0,
            )
        job = Job(f"warm-{self._new_id()}", principal, self._now(), items)
        with self._beginning_of(principal.tenant, job.id):
            await self._leases.take(_lease(principal.tenant, job.id), ttl_s=LEASE_S)
            await self._write(job)
            self._launch(job)
        await self._forget_old(principal.tenant)
        return job

    async def begin(self, name: str, principal: Principal, items: Sequence[Item]) -> Job | None:
        """A job under a name of its own, anew each time; None where another process has it."""
        tenant = principal.tenant
        if self._has(tenant, name):
            return None
        with self._beginning_of(tenant, name):
            if not await self._leases.take(_lease(tenant, name), ttl_s=LEASE_S):
                return None
            job = Job(name, principal, self._now(), items)
            await self._write(job)
            self._launch(job)
        return job

    async def find(self, tenant: str, name: str) -> Job | None:
        """The job as far as it is known here. Raises: StoreError."""
        if (running := self._running.get((tenant, name))) is not None:
            return running.job
        wish = await self._records.read(WISH, tenant, name)
        if wish is None:
            return None
        job = read_job(wish, await self._records.read(STATE, tenant, name))
        ours = self._ended.get((tenant, name))
        same = job is not None and ours is not None and job.created_at == ours.created_at
        return ours if same else job

    async def all(self, tenant: str) -> list[Job]:
        """The tenant's jobs, the latest first. Raises: StoreError."""
        named = await self._records.names(WISH, tenant)
        found = [await self.find(tenant, name) for _, name in named]
        jobs = [job for job in found if job is not None]
        return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)

    async def names(self) -> list[tuple[str, str]]:
        """Tenant and id of all jobs of all tenants. Raises: StoreError."""
        return await self._records.names(WISH, None)

    async def cancel(self, tenant: str, name: str) -> Job | None:
        """End a job wherever it runs; one that has ended is left as it is. Raises: StoreError."""
        job = await self.find(tenant, name)
        if job is None or job.ended:
            return job
        running = self._running.get((tenant, name))
        await self._records.erase(OPEN, tenant, name)
        if running is not None and running.task is not None:
            running.cancelled = True
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)
        else:
            job.end("cancelled", self._now())
            await self._write_ended(job)
        return job

    async def watch(self, tenant: str, name: str) -> AsyncGenerator[Job, None]:
        """The job each time something has changed, at least every ``BEAT_S``, until it ended."""
        while True:
            running = self._running.get((tenant, name))
            changed = running.changed if running is not None else None
            job = running.job if running is not None else await self.find(tenant, name)
            if job is None:
                return
            yield job
            if job.ended or self._closing:
                return
            if changed is None:  # another process runs it
                await self._sleep(LOOK_S)
                continue
            try:
                async with asyncio.timeout(BEAT_S):
                    await changed.wait()
            except TimeoutError:
                pass

    def let_watchers_go(self) -> None:
        """The process ends: nobody who watches should hold it up."""
        self._closing = True
        for running in self._running.values():
            running.tell()

    async def sweep(self) -> None:
        """For ever: take up what nobody runs."""
        while True:
            try:
                for tenant, name in await self._records.names(OPEN, None):
                    if not self._has(tenant, name):
                        with self._beginning_of(tenant, name):
                            await self._take_up(tenant, name)
            except StoreError as error:
                _log.warning("warm jobs not looked at", reason=str(error)[:200])
            await self._sleep(SWEEP_S)

    def _has(self, tenant: str, name: str) -> bool:
        return (tenant, name) in self._running or (tenant, name) in self._beginning

    @contextmanager
    def _beginning_of(self, tenant: str, name: str) -> Iterator[None]:
        """Until the job runs, nobody else here begins it: the lease keeps out other processes only."""
        self._beginning.add((tenant, name))
        try:
            yield
        finally:
            self._beginning.discard((tenant, name))

    async def _take_up(self, tenant: str, name: str) -> None:
        if not await self._leases.take(_lease(tenant, name), ttl_s=LEASE_S):
            return
        if tenant not in self._tenants:
            _log.warning("warm job of a removed tenant dropped", id=name, tenant=tenant)
            for kind in (WISH, STATE):
                await self._records.erase(kind, tenant, name)
        job = await self.find(tenant, name)
        if job is None or job.ended:
            if job is not None:  # its process died before it had let the texts go
                await self._write_ended(job)
            await self._records.erase(OPEN, tenant, name)
            await self._leases.release(_lease(tenant, name))
            return
        _log.info("warm job goes on", id=name, tenant=tenant, items=len(job.items))
        job.places = ["pending"] * len(job.items)
        self._launch(job)

    def _launch(self, job: Job) -> None:
        running = self._running[job.principal.tenant, job.id] = _Running(job)
        running.task = self._tasks.start(self._run(running), name=job.id)

    async def _run(self, running: _Running) -> None:
        job = running.job
        tenant = job.principal.tenant
        ended: Literal["done", "cancelled"] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                follower = group.create_task(self._follow(running))
                await self._answer_all(running)
                follower.cancel()
            ended = "done"
        except* _NoLongerOurs:
            pass
        finally:
            if running.cancelled:
                ended = "cancelled"
            await self._leave(running, ended)
        if ended is not None:
            counts = job.counts()
            _log.info("warm job ended", id=job.id, tenant=tenant, status=ended, **counts)

    async def _leave(self, running: _Running, ended: Literal["done", "cancelled"] | None) -> None:
        """Say how it ended; without an end, leave it to others."""
        job, tenant = running.job, running.job.principal.tenant
        if ended is not None:
            job.end(ended, self._now())
        try:
            if ended is not None:
                self._ended[tenant, job.id] = job
                await self._write_ended(job)
                await self._records.erase(OPEN, tenant, job.id)
            await self._leases.release(_lease(tenant, job.id))
        except StoreError as error:
            _log.warning("warm job not written", id=job.id, reason=str(error)[:200])
        finally:
            self._running.pop((tenant, job.id), None)
            running.tell()

    async def _follow(self, running: _Running) -> None:
        """Keep lease and record up to date; stop the job when it is no longer wanted."""
        job, tenant = running.job, running.job.principal.tenant
        while True:
            await self._sleep(LOOK_S)
            try:
                if not await self._leases.take(_lease(tenant, job.id), ttl_s=LEASE_S):
                    raise _NoLongerOurs
                if await self._records.read(OPEN, tenant, job.id) is None:
                    running.cancelled = True
                    raise _NoLongerOurs
                if (state := job.state()) != running.written:
                    await self._records.write(STATE, tenant, job.id, state)
                    running.written = state
            except StoreError as error:
                _log.warning("warm job not written", id=job.id, reason=str(error)[:200])

    async def _answer_all(self, running: _Running) -> None:
        """The questions. Of each pattern one first: it computes the base for all others."""
        items = running.job.items
        numbers = sorted(range(len(items)), key=lambda number: items[number].pattern)
        patterns = [
            iter(list(group)) for _, group in groupby(numbers, lambda number: items[number].pattern)
        ]

        async def lead(pattern: Iterator[int]) -> None:
            for number in pattern:
                if (await self._answer(running, number)).status != "skipped":
                    return

        async def follow(number: int) -> None:
            await self._answer(running, number)

        await in_parallel(self._concurrency, patterns, lead)
        rest = (number for pattern in patterns for number in pattern)
        await in_parallel(self._concurrency, rest, follow)

    async def _answer(self, running: _Running, number: int) -> Warmed:
        running.put(number, "running")
        warmed = await self._warming.warm(running.job.items[number], running.job.principal)
        running.put(number, warmed)
        return warmed

    async def _write(self, job: Job) -> None:
        """The mark first: a wish without one would never be taken up."""
        tenant = job.principal.tenant
        await self._records.write(OPEN, tenant, job.id, b"1")
        await self._records.write(WISH, tenant, job.id, job.wish())
        await self._records.write(STATE, tenant, job.id, job.state())

    async def _write_ended(self, job: Job) -> None:
        """The state first: a wish without texts must not be run."""
        tenant = job.principal.tenant
        await self._records.write(STATE, tenant, job.id, job.state())
        await self._records.write(WISH, tenant, job.id, job.wish())

    async def _forget_old(self, tenant: str) -> None:
        try:
            if len(await self._records.names(WISH, tenant)) <= KEPT_JOBS:
                return
            for job in (await self.all(tenant))[KEPT_JOBS:]:
                if job.ended:
                    for kind in (WISH, STATE):
                        await self._records.erase(kind, tenant, job.id)
        except StoreError as error:
            _log.warning("old warm jobs not forgotten", reason=str(error)[:200])

    def __repr__(self) -> str:
        return f"<WarmJobs {len(self._running)} running>"


class _NoLongerOurs(Exception):
    """Cancelled elsewhere, or run by another process by now."""


async def in_parallel(
    places: int, things: Iterable[T], work: Callable[[T], Awaitable[None]]
) -> None:
    """``work`` on all things, on at most ``places`` at once; the first error ends all."""
    waiting = iter(things)

    async def one_place() -> None:
        for thing in waiting:
            await work(thing)

    async with asyncio.TaskGroup() as group:
        for _ in range(places):
            group.create_task(one_place())


def _lease(tenant: str, name: str) -> bytes:
    return f"warm:{tenant}:{name}".encode()
