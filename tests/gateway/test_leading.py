"""Identical misses on several processes: one computes, the others read what it stored."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.flights import Flights, Tasks
from gateway.leading import ENDED, ENDED_S, FIRST_WAIT_S, LEASE_S, LONGEST_WAIT_S, Leading
from gateway.pipeline import Pipeline
from gateway.store.base import StoreError
from tests.kit.bench import Bench, read
from tests.kit.entries import asked

KEY = b"k" * 32


class OneLease:
    """Leases of one key that several processes see; ``holder`` names who has it."""

    def __init__(self) -> None:
        self.holder: str | None = None
        self.ended = False
        """A leader has said that it ended, lately."""
        self.broken = False
        self.taken = 0

    def of(self, name: str) -> "Seen":
        return Seen(self, name)


class Seen:
    """One process's view of it."""

    def __init__(self, lease: OneLease, name: str) -> None:
        self.lease, self.name = lease, name

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        assert ttl_s == (ENDED_S if key.startswith(ENDED) else LEASE_S), key
        if self.lease.broken:
            raise StoreError("scripted")
        if key.startswith(ENDED):
            self.lease.ended = True
            return True
        if self.lease.holder not in {None, self.name}:
            return False
        self.lease.holder = self.name
        self.lease.taken += 1
        return True

    async def release(self, key: bytes) -> None:
        if self.lease.broken:
            raise StoreError("scripted")
        if self.lease.holder == self.name:
            self.lease.holder = None

    async def held(self, key: bytes) -> bool:
        return self.lease.ended if key.startswith(ENDED) else self.lease.holder is not None


async def no(_: float = 0.0) -> bool:
    return False


async def until(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until it holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


async def never() -> bool:
    raise AssertionError("nobody should look")


class Sleeper:
    """Sleeps that end when ``then`` was called; what was slept is kept."""

    def __init__(self, then: Callable[[int], None] = lambda _: None) -> None:
        self.slept: list[float] = []
        self._then = then

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._then(len(self.slept))
        await asyncio.sleep(0)


async def test_the_first_leads_and_gives_the_lease_back() -> None:
    lease, tasks = OneLease(), Tasks()
    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, no) as leads:
        held_by = [leads, lease.holder]
    assert held_by == [True, "a"]
    assert lease.holder is None
    await tasks.close()


async def test_who_waits_looks_less_and_less_often_and_then_reads() -> None:
    lease, tasks = OneLease(), Tasks()
    lease.holder = "b"
    sleeper = Sleeper()

    async def there() -> bool:
        return len(sleeper.slept) == 6

    async with Leading(lease.of("a"), tasks, sleep=sleeper).of(KEY, there) as leads:
        assert not leads
    assert sleeper.slept == [FIRST_WAIT_S, 0.02, 0.04, 0.08, LONGEST_WAIT_S, LONGEST_WAIT_S]
    assert lease.holder == "b"


async def test_a_leader_that_is_gone_is_followed_by_one_who_waited() -> None:
    lease, tasks = OneLease(), Tasks()
    lease.holder = "dead"

    def expire(slept: int) -> None:
        if slept == 3:
            lease.holder = None

    async with Leading(lease.of("a"), tasks, sleep=Sleeper(expire)).of(KEY, no) as leads:
        state = [leads, lease.holder]
    assert state == [True, "a"]  # the others who wait go on waiting
    await tasks.close()


async def test_a_leader_whose_callers_left_is_followed_by_one_and_not_by_all() -> None:
    lease, tasks = OneLease(), Tasks()
    with pytest.raises(asyncio.CancelledError):
        async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, no):
            raise asyncio.CancelledError
    assert (lease.holder, lease.ended) == (None, False)
    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, no):
        pass
    assert (lease.holder, lease.ended) == (None, True)
    await tasks.close()


async def test_where_the_leader_stored_nothing_nobody_waits_for_the_next_one() -> None:
    lease, tasks = OneLease(), Tasks()
    lease.holder = "b"

    def fail(slept: int) -> None:
        if slept == 2:
            lease.holder, lease.ended = None, True

    async with Leading(lease.of("a"), tasks, sleep=Sleeper(fail)).of(KEY, no) as leads:
        state = [leads, lease.holder]
    assert state == [True, None]


@pytest.mark.parametrize("cut_in", ["take", "there"])
async def test_who_is_cancelled_while_taking_it_gives_the_lease_back(cut_in: str) -> None:
    lease, tasks = OneLease(), Tasks()
    reached, seen = asyncio.Event(), lease.of("a")

    async def stuck() -> bool:
        reached.set()
        await asyncio.Event().wait()
        return False

    class Slow(Seen):
        async def take(self, key: bytes, *, ttl_s: float) -> bool:
            assert await super().take(key, ttl_s=ttl_s)
            return await stuck()

    leading = Leading(Slow(lease, "a") if cut_in == "take" else seen, tasks, sleep=Sleeper())

    async def lead() -> None:
        async with leading.of(KEY, stuck):
            raise AssertionError("it never gets there")

    flight = asyncio.create_task(lead())
    await reached.wait()
    flight.cancel()
    await asyncio.wait([flight])
    await until(lambda: lease.holder is None)
    await tasks.close()


async def test_what_was_stored_before_the_lease_was_taken_is_read() -> None:
    lease, tasks = OneLease(), Tasks()

    async def there() -> bool:
        return True

    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, there) as leads:
        assert not leads
    assert lease.holder is None


async def test_who_only_renews_does_not_wait() -> None:
    lease, tasks = OneLease(), Tasks()
    lease.holder = "b"
    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, None) as leads:
        assert not leads
    lease.holder = None
    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, None) as leads:
        assert leads
    await tasks.close()


async def test_without_a_store_of_leases_everybody_computes() -> None:
    lease, tasks = OneLease(), Tasks()
    lease.broken = True
    async with Leading(lease.of("a"), tasks, sleep=Sleeper()).of(KEY, never) as leads:
        assert leads


async def test_a_lease_is_renewed_while_its_holder_works_and_no_longer() -> None:
    lease, tasks = OneLease(), Tasks()
    sleeper = Sleeper()
    async with Leading(lease.of("a"), tasks, sleep=sleeper).of(KEY, no):
        await until(lambda: lease.taken == 4)
        lease.broken = True  # a renewal that fails is tried again
        after = len(sleeper.slept) + 2
        await until(lambda: len(sleeper.slept) >= after)
        lease.broken = False
    taken = lease.taken
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert lease.taken == taken
    assert lease.holder is None
    await tasks.close()


def two_gateways() -> tuple[Bench, list[Pipeline], OneLease]:
    """Two pipelines as of two processes: one store, leases, flights of their own."""
    bench, lease = Bench(), OneLease()
    pipelines = [
        Pipeline(
            rules=bench.rules,
            store=bench.store,
            flights=Flights(bench.tasks),
            recall=bench.recall,
            now=bench.clock.now,
            draw=lambda: 0.0,
            leading=Leading(lease.of(name), bench.tasks, sleep=Sleeper()),
        )
        for name in ("a", "b")
    ]
    return bench, pipelines, lease


async def test_identical_misses_on_two_processes_make_one_backend_call() -> None:
    bench, pipelines, lease = two_gateways()
    call, plan = asked("?", rules=bench.rules)

    async def ask(pipeline: Pipeline) -> str:
        answer = await pipeline.answer(call, plan, bench.backend)
        await read(answer)
        return answer.outcome.level

    levels = await asyncio.gather(*(ask(pipeline) for pipeline in pipelines * 20))
    assert bench.runs == 1
    assert sorted(set(levels)) == ["none", "response"]
    await bench.tasks.close()
    assert lease.holder is None


@pytest.mark.parametrize("wish", [{"enabled": True, "reuse": False}, {"enabled": True, "ttl": 0}])
async def test_what_nobody_may_share_takes_no_lease(wish: dict[str, object]) -> None:
    bench, pipelines, lease = two_gateways()
    lease.holder = "dead"
    call, plan = asked("?", wish, rules=bench.rules)
    answer = await pipelines[0].answer(call, plan, bench.backend)
    await read(answer)
    assert bench.runs == 1
