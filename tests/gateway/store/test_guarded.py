"""A limit on every call, and a circuit that opens after a few failures in a row."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from gateway.flights import Tasks
from gateway.store.base import Selector, StoreError, StoreFull
from gateway.store.guarded import (
    FAILURES_IN_A_ROW,
    FIRST_BACKOFF_S,
    LONG_CALLS,
    LONGEST_BACKOFF_S,
    LONGEST_CALLS,
    Circuit,
    Guard,
    Guarded,
    GuardedLeases,
    GuardedNews,
    GuardedRecords,
)
from gateway.store.memory import MemoryStore
from gateway.store.sharing import Listener
from gateway.store.sharing_memory import MemoryLeases, MemoryRecords
from tests.kit.clock import Clock
from tests.kit.entries import NOW, entry_of, key_of

T = TypeVar("T")


class Place:
    """Something that can be down, stuck or full, behind a guard; and what the guard logged."""

    def __init__(self, draw: float) -> None:
        self.clock = Clock()
        self.tasks = Tasks()
        self.trouble: StoreError | None = None
        self.stuck: asyncio.Event | None = None
        self.calls = 0
        self.log: list[MutableMapping[str, Any]] = []
        self.guard = Guard(
            "place",
            self.work,
            limit_s=0.01,
            clock=self.clock.monotonic,
            draw=lambda: draw,
            tasks=self.tasks,
        )

    async def work(self) -> str:
        self.calls += 1
        if self.stuck is not None:
            await self.stuck.wait()
        if self.trouble is not None:
            raise self.trouble
        return "done"

    async def fails(self, how: Callable[..., Awaitable[str]] | None = None) -> StoreError:
        with pytest.raises(StoreError) as caught:
            await (how or self.guard.read)(self.work)
        return caught.value

    async def opened(self) -> None:
        self.trouble = StoreError("down")
        await self.probed()
        self.calls = 0

    async def filled(self) -> None:
        self.trouble = StoreFull("full")
        for _ in range(FAILURES_IN_A_ROW):
            await self.fails(self.guard.write)
        self.calls = 0

    async def probed(self) -> None:
        """A call that fails, and the end of the probes that follow."""
        await self.fails()
        await self.settled()

    async def settled(self) -> None:
        await asyncio.gather(*self.tasks._running)

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.log]


@pytest.fixture(params=[0.999])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    one = Place(request.param)
    with capture_logs() as one.log:
        yield one
    await one.tasks.close()


async def test_a_call_that_works_passes_through(place: Place) -> None:
    assert await place.guard.read(place.work) == "done"
    assert await place.guard.write(place.work) == "done"
    assert place.log == []


async def test_a_call_that_hangs_is_given_up_after_its_limit(place: Place) -> None:
    for how in (place.guard.read, place.guard.write):
        place.stuck = asyncio.Event()
        assert str(await place.fails(how)) == "place: no answer within 10 ms"
        place.stuck = None
        await place.settled()


async def test_what_a_call_held_that_was_given_up_goes_at_once(place: Place) -> None:
    """Not when the collector next looks for cycles: until then entries of megabytes pile up."""

    class Large:
        pass

    async def put(large: Large) -> None:
        await place.guard.write(lambda: _stuck_with(large))

    async def _stuck_with(_: Large) -> None:
        await asyncio.Event().wait()

    held = Large()
    seen = weakref.ref(held)
    gc.disable()
    try:
        with suppress(StoreError):
            await put(held)
        del held
        await asyncio.sleep(0)
        assert seen() is None
    finally:
        gc.enable()


async def test_a_long_call_has_a_longer_limit(place: Place) -> None:
    place.stuck = asyncio.Event()
    with pytest.raises(StoreError, match="no answer within 20 ms"):
        await place.guard.read(place.work, limits=2)


async def test_a_removal_may_take_as_long_as_its_steps_are_short() -> None:
    allowed: list[int] = []

    class Noting(Guard):
        async def read(self, work: Callable[[], Awaitable[T]], *, limits: int = 1) -> T:
            allowed.append(limits)
            return await work()

    place = Place(0.0)
    place.guard.__class__ = Noting
    store = Guarded(MemoryStore("warm", max_bytes=100_000), place.guard)
    await store.remove(Selector(None, key=key_of("a")))
    await store.remove(Selector("t"))
    await store.scan(Selector("t"), after=None, limit=1)
    assert allowed == [1, LONGEST_CALLS, LONG_CALLS]
    assert LONGEST_CALLS * 0.05 > 60, "seconds; with the usual limit"


async def test_after_failures_in_a_row_calls_fail_at_once_and_one_line_says_so(
    place: Place,
) -> None:
    await place.opened()
    for _ in range(10):
        assert str(await place.fails()) == "place does not answer"
        await place.fails(place.guard.write)
    assert place.calls == 0
    assert place.log == [
        {"event": "store down", "log_level": "warning", "store": "place", "reason": "down"}
    ]


async def test_after_a_single_failure_nobody_waits_until_a_probe_has_worked(place: Place) -> None:
    place.stuck = asyncio.Event()
    await place.fails()
    for _ in range(5):
        assert str(await place.fails()) == "place does not answer"
    place.stuck.set()
    await place.settled()
    assert place.calls == 2, "the one that hung, and a probe"
    assert await place.guard.read(place.work) == "done"
    assert place.log == []


async def test_failures_that_are_not_in_a_row_do_not_open_it(place: Place) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        place.trouble = StoreError("down")
        await place.fails()
        place.trouble = None
        await place.settled()
        await place.guard.read(place.work)
    assert place.log == []


async def test_a_probe_in_the_background_closes_it_again(place: Place) -> None:
    await place.opened()
    place.trouble = None
    await place.probed()
    assert place.calls == 0, "it is too early for a probe"
    place.clock.advance(FIRST_BACKOFF_S)
    await place.probed()
    assert place.calls == 1, "the call itself has not been made, only the probe"
    assert await place.guard.read(place.work) == "done"
    assert place.events == ["store down", "store back"]


async def test_only_one_probe_is_under_way_and_nobody_waits_for_it(place: Place) -> None:
    await place.opened()
    place.stuck = asyncio.Event()
    place.clock.advance(FIRST_BACKOFF_S)
    for _ in range(5):
        await place.fails()
    assert len(place.tasks) == 1
    await place.settled()
    assert place.calls == 1


async def test_probes_become_rarer_while_they_fail_and_soon_no_more(place: Place) -> None:
    await place.opened()
    waited: list[float] = []
    for _ in range(6):
        waited.append(0.0)
        before = place.calls
        while place.calls == before:
            place.clock.advance(0.25)
            waited[-1] += 0.25
            await place.probed()
    assert waited == [0.5, 1, 2, 4, 5, 5]
    assert place.events == ["store down"]


@pytest.mark.parametrize("place", [0.0], indirect=True)
async def test_chance_spreads_the_probes_of_many_gateways(place: Place) -> None:
    await place.opened()
    place.clock.advance(FIRST_BACKOFF_S / 2)
    await place.probed()
    assert place.calls == 1


async def test_one_that_fails_again_soon_after_waits_on_where_it_was(place: Place) -> None:
    await place.opened()
    place.trouble = None
    place.clock.advance(FIRST_BACKOFF_S)
    await place.probed()
    await place.opened()
    place.clock.advance(FIRST_BACKOFF_S)
    await place.probed()
    assert place.calls == 0
    place.trouble = None
    place.clock.advance(FIRST_BACKOFF_S)
    await place.probed()
    assert place.calls == 1
    place.clock.advance(LONGEST_BACKOFF_S + 1)  # it has held: the next time is a first time
    await place.opened()
    place.clock.advance(FIRST_BACKOFF_S)
    await place.probed()
    assert place.calls == 1


async def test_what_is_full_still_gives_back_what_it_has(place: Place) -> None:
    await place.filled()
    assert str(await place.fails(place.guard.write)) == "place takes nothing"
    assert place.calls == 0
    place.trouble = None
    assert await place.guard.read(place.work) == "done"
    assert place.events == ["store takes nothing"]
    place.clock.advance(FIRST_BACKOFF_S)
    assert await place.guard.write(place.work) == "done"
    assert place.events == ["store takes nothing", "store takes entries again"]


async def test_a_full_place_that_stays_full_is_asked_seldom(place: Place) -> None:
    await place.filled()
    place.clock.advance(FIRST_BACKOFF_S)
    for _ in range(5):
        await place.fails(place.guard.write)
    assert place.calls == 1
    assert place.events == ["store takes nothing"]


async def test_a_caller_who_goes_away_says_nothing_about_the_place(place: Place) -> None:
    place.stuck = asyncio.Event()
    for how in (place.guard.read, place.guard.write):
        for _ in range(FAILURES_IN_A_ROW + 1):
            task = asyncio.ensure_future(how(place.work))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    place.stuck = None
    assert await place.guard.read(place.work) == "done"
    assert place.log == []


async def test_a_probe_that_was_given_up_leaves_room_for_the_next(place: Place) -> None:
    await place.filled()
    place.clock.advance(FIRST_BACKOFF_S)
    place.stuck = asyncio.Event()
    probe = asyncio.ensure_future(place.guard.write(place.work))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    place.stuck = place.trouble = None
    assert await place.guard.write(place.work) == "done"


async def test_a_late_answer_to_an_old_call_closes_the_circuit_too() -> None:
    told: list[StoreError | None] = []
    circuit = Circuit(clock=Clock().monotonic, draw=lambda: 0.0, changed=told.append)
    error = StoreError("down")
    for _ in range(FAILURES_IN_A_ROW + 2):
        circuit.failed(error)
    assert told == [error]
    assert repr(circuit) == "<Circuit open, 5 failures in a row>"
    circuit.worked()
    assert told == [error, None]
    assert repr(circuit) == "<Circuit closed, 0 failures in a row>"


async def test_all_that_lies_in_one_place_shares_its_circuit(place: Place) -> None:
    store = Guarded(MemoryStore("warm", max_bytes=100_000), place.guard)
    leases = GuardedLeases(MemoryLeases(now=place.clock.now), place.guard)
    records = GuardedRecords(MemoryRecords(), place.guard)
    news = GuardedNews(Wire(), place.guard)
    await place.opened()
    calls: list[Awaitable[object]] = [
        store.get(key_of("a"), now=NOW),
        store.put(entry_of("a"), now=NOW),
        store.remove(Selector("t")),
        store.scan(Selector("t"), after=None, limit=1),
        leases.take(b"k", ttl_s=1),
        leases.release(b"k"),
        leases.held(b"k"),
        records.read("kind", "t", "n"),
        records.write("kind", "t", "n", b""),
        records.create("kind", "t", "n", b""),
        records.erase("kind", "t", "n"),
        records.names("kind", None),
        records.count("kind", "t", "n", {}),
        news.tell("topic", {}),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="place does not answer"):
            await call


async def test_all_that_lies_behind_a_guard_does_what_it_did_before(place: Place) -> None:
    inner = MemoryStore("warm", max_bytes=100_000)
    store = Guarded(inner, place.guard)
    assert (await store.put(entry_of("a"), now=NOW)).kept
    assert await store.get(key_of("a"), now=NOW) == entry_of("a")
    assert len(await store.scan(Selector("t"), after=None, limit=9)) == 1
    assert store.fill() == inner.fill()
    assert repr(store) == repr(inner)
    assert len(await store.remove(Selector(None, key=key_of("a")))) == 1
    leases = GuardedLeases(MemoryLeases(now=place.clock.now), place.guard)
    assert await leases.take(b"k", ttl_s=1)
    assert await leases.held(b"k")
    await leases.release(b"k")
    assert not await leases.held(b"k")
    records = GuardedRecords(MemoryRecords(), place.guard)
    assert await records.create("kind", "t", "n", b"1")
    await records.write("kind", "t", "n", b"2")
    assert await records.read("kind", "t", "n") == b"2"
    assert await records.names("kind", None) == [("t", "n")]
    assert await records.count("kind", "t", "n", {"x": 1}) == {"x": 1}
    assert await records.erase("kind", "t", "n")
    wire = Wire()
    news = GuardedNews(wire, place.guard)

    async def hear(message: Mapping[str, Any]) -> None:
        pass

    news.listen("topic", hear)
    await news.tell("topic", {"a": 1})
    assert wire.noted == ["topic", ("topic", {"a": 1})]
    await store.close()
    assert "answers <Circuit closed" in repr(place.guard)


class Wire:
    """News that are noted."""

    def __init__(self) -> None:
        self.noted: list[object] = []

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        self.noted.append((topic, message))

    def listen(self, topic: str, listener: Listener) -> None:
        self.noted.append(topic)
