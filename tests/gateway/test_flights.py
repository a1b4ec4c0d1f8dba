"""One piece of work per key: whoever comes and goes, everybody who stays gets all of it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.chunks import Piece
from gateway.flights import (
    TURN,
    Flight,
    FlightBroken,
    FlightCancelled,
    Flights,
    Reader,
    Tasks,
    Work,
)
from policies.outcome import Elsewhere
from tests.kit.scripted_backend import Gate, completed, delta, failed, opening

KEY = b"k"
PIECES: list[Piece] = [opening(), delta("a"), delta("b"), completed()]


class Worked:
    """Work by script, and what became of it."""

    def __init__(self, *steps: Piece | Gate | Exception) -> None:
        self.steps = steps
        self.times = 0
        self.cancelled = False
        self.finished = False

    async def __call__(self) -> AsyncGenerator[Piece, None]:
        self.times += 1
        try:
            for step in self.steps:
                if isinstance(step, Gate):
                    await step.pass_through()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
            self.finished = True
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def flights() -> Flights:
    return Flights(Tasks())


async def all_of(reader: Reader) -> list[Piece]:
    async with reader:
        return [piece async for piece in reader]


async def landed(flight: Flight) -> None:
    assert flight.task is not None
    await asyncio.wait([flight.task])
    await asyncio.sleep(0)  # the task's callbacks run in the next turn


async def test_everybody_reads_the_same_from_the_first_piece_on() -> None:
    work = Worked(*PIECES)
    flight = flights().start(KEY, work)
    first, second = await asyncio.gather(all_of(flight.read()), all_of(flight.read()))
    assert first == second == PIECES
    assert work.times == 1


async def turns_during(work: Awaitable[object]) -> int:
    """How often another task has its turn until ``work`` is done."""
    turns = 0
    doing = asyncio.ensure_future(work)
    while not doing.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.mark.parametrize("way", ["flight", "piece by piece", "in portions"])
async def test_many_pieces_that_are_there_at_once_let_others_have_their_turn(way: str) -> None:
    pieces: list[Piece] = [opening(), *[delta("a")] * (20 * TURN), completed()]
    flight = flights().start(KEY, Worked(*pieces), finish_alone=True)
    reader = flight.read()
    portions: list[int] = []

    async def in_portions() -> None:
        portions.extend([len(some) async for some in reader.batches()])

    if way == "flight":
        assert await turns_during(landed(flight)) >= 20
        return
    await landed(flight)
    if way == "piece by piece":
        assert await turns_during(all_of(reader)) >= 20
    else:
        assert await turns_during(in_portions()) >= 20
        assert sum(portions) == len(pieces)
        assert max(portions) <= TURN


async def test_a_late_reader_starts_from_the_first_piece() -> None:
    gate = Gate()
    flight = flights().start(KEY, Worked(*PIECES[:2], gate, *PIECES[2:]))
    early = asyncio.create_task(all_of(flight.read()))
    await gate.reached()
    late = asyncio.create_task(all_of(flight.read()))
    gate.open()
    assert await early == await late == PIECES


async def test_pieces_are_read_while_the_work_goes_on() -> None:
    gate = Gate()
    flight = flights().start(KEY, Worked(*PIECES[:2], gate, *PIECES[2:]))
    async with flight.read() as reader:
        assert [await anext(reader), await anext(reader)] == PIECES[:2]
        gate.open()
        assert [piece async for piece in reader] == PIECES[2:]


async def test_a_reader_may_take_all_that_is_there_at_once() -> None:
    gate = Gate()
    flight = flights().start(KEY, Worked(*PIECES[:2], gate, *PIECES[2:]))
    await gate.reached()
    async with flight.read() as reader:
        batches = reader.batches()
        assert await anext(batches) == PIECES[:2]
        gate.open()
        rest = [piece async for batch in batches for piece in batch]
        assert rest == PIECES[2:]


async def test_a_reader_by_batches_hears_of_an_error_too() -> None:
    flight = flights().start(KEY, Worked(PIECES[0], ValueError("scripted")))
    async with flight.read() as reader:
        batches = reader.batches()
        assert await anext(batches) == PIECES[:1]
        with pytest.raises(ValueError, match="scripted"):
            await anext(batches)


async def test_the_leader_leaving_harms_nobody() -> None:
    gate = Gate()
    work = Worked(*PIECES[:2], gate, *PIECES[2:])
    flight = flights().start(KEY, work)
    leader, follower = flight.read(), asyncio.create_task(all_of(flight.read()))
    await gate.reached()
    leader.close()
    gate.open()
    assert await follower == PIECES
    assert work.finished


async def test_a_reader_whose_request_is_cancelled_leaves_the_others_waiting_undisturbed() -> None:
    gate = Gate()
    work = Worked(*PIECES[:1], gate, *PIECES[1:])
    flight = flights().start(KEY, work)
    tasks = [asyncio.create_task(all_of(flight.read())) for _ in range(3)]
    await gate.reached()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert flight.readers == 2
    gate.open()
    assert await tasks[1] == await tasks[2] == PIECES


async def test_when_the_last_reader_leaves_the_work_is_cancelled_and_the_key_is_free() -> None:
    air, gate = flights(), Gate()
    work = Worked(*PIECES[:1], gate)
    flight = air.start(KEY, work)
    readers = [flight.read(), flight.read()]
    await gate.reached()
    readers[0].close()
    readers[0].close()  # leaving twice is leaving once
    assert air.find(KEY) is flight
    readers[1].close()
    assert air.find(KEY) is None
    await landed(flight)
    assert work.cancelled
    assert len(air) == 0


async def test_work_that_should_finish_alone_does() -> None:
    air, gate = flights(), Gate()
    work = Worked(*PIECES[:1], gate, *PIECES[1:])
    flight = air.start(KEY, work, finish_alone=True)
    reader = flight.read()
    await gate.reached()
    reader.close()
    assert air.find(KEY) is flight
    gate.open()
    await landed(flight)
    assert work.finished


async def test_work_that_nobody_reads_at_all_runs_to_its_end() -> None:
    air, work = flights(), Worked(*PIECES)
    flight = air.start(KEY, work, finish_alone=True)
    await landed(flight)
    assert work.finished
    assert len(air) == 0


async def test_an_error_reaches_every_reader_and_leaves_the_key_free() -> None:
    air, gate = flights(), Gate()
    flight = air.start(KEY, Worked(*PIECES[:2], gate, ValueError("scripted")))
    readers = [asyncio.create_task(all_of(flight.read())) for _ in range(3)]
    await gate.reached()
    gate.open()
    for reader in readers:
        with pytest.raises(ValueError, match="scripted"):
            await reader
    await landed(flight)
    assert air.find(KEY) is None
    assert await all_of(air.start(KEY, Worked(*PIECES)).read()) == PIECES


async def test_a_failed_ending_reaches_every_reader() -> None:
    air = flights()
    flight = air.start(KEY, Worked(failed(503)))
    one, other = await asyncio.gather(all_of(flight.read()), all_of(flight.read()))
    assert one == other == [failed(503)]


async def test_work_cancelled_before_its_first_step_frees_the_key() -> None:
    air, work = flights(), Worked(*PIECES)
    flight = air.start(KEY, work)
    flight.read().close()  # before the loop has run a single turn of the work
    await landed(flight)
    assert work.times == 0
    assert len(air) == 0
    assert len(air._tasks) == 0


async def test_a_flight_being_given_up_is_not_joined_and_does_not_take_its_successor_down() -> None:
    air, gate = flights(), Gate()
    old = air.start(KEY, Worked(*PIECES[:1], gate))
    reader = old.read()
    await gate.reached()
    reader.close()
    new = air.start(KEY, Worked(*PIECES[:1], second := Gate(), *PIECES[1:]))
    await landed(old)
    assert air.find(KEY) is new
    second.open()
    assert await all_of(new.read()) == PIECES


async def test_until_the_answer_is_stored_the_key_stays_taken() -> None:
    """Nobody may start the same work between the ending and the storing."""
    air, storing = flights(), Gate()
    work = Worked(*PIECES, storing)
    flight = air.start(KEY, work)
    async with flight.read() as reader:
        while await anext(reader) != PIECES[-1]:
            pass
    await storing.reached()
    assert not work.cancelled  # the last reader has left, and still it is stored
    assert air.find(KEY) is flight
    late = flight.read()
    assert [await anext(late) for _ in PIECES] == PIECES
    late.close()
    storing.open()
    await landed(flight)
    assert work.finished
    assert air.find(KEY) is None


async def test_an_error_while_storing_takes_no_answer_away() -> None:
    air = flights()
    flight = air.start(KEY, Worked(*PIECES, ValueError("storing")))
    async with flight.read() as reader:
        assert [await anext(reader) for _ in PIECES] == PIECES
    await landed(flight)
    assert air.find(KEY) is None


@pytest.mark.parametrize("steps", [[], PIECES[:1], PIECES[:-1]])
async def test_half_an_answer_never_passes_for_a_whole_one(steps: list[Piece]) -> None:
    flight = flights().start(KEY, Worked(*steps))
    async with flight.read() as reader:
        assert [await anext(reader) for _ in steps] == steps
        with pytest.raises(FlightBroken):
            await anext(reader)


async def test_an_error_in_the_clean_up_of_the_work_reaches_the_readers() -> None:
    async def work() -> AsyncGenerator[Piece, None]:
        try:
            yield PIECES[0]
        finally:
            raise ValueError("in the clean-up")

    flight = flights().start(KEY, work)
    with pytest.raises(ValueError, match="clean-up"):
        await all_of(flight.read())


async def test_less_urgent_work_with_nothing_yet_gives_way_and_its_readers_are_told() -> None:
    work, in_the_air = Worked(Gate(), *PIECES), flights()
    batch = in_the_air.start(KEY, work, lane="batch")
    reading = asyncio.ensure_future(all_of(batch.read()))
    await asyncio.sleep(0)
    assert not batch.gives_way("batch")
    assert not batch.gives_way("warm")
    assert batch.gives_way("interactive")
    gate = Gate()
    urgent = in_the_air.start(KEY, Worked(gate, *PIECES))
    assert await reading == [Elsewhere()]
    await landed(batch)
    assert work.cancelled
    assert in_the_air.find(KEY) is urgent
    gate.open()
    assert await all_of(urgent.read()) == PIECES


async def test_work_that_has_begun_or_failed_gives_way_to_nobody() -> None:
    gate, in_the_air = Gate(), flights()
    begun = in_the_air.start(KEY, Worked(opening(), gate, *PIECES[1:]), lane="warm")
    await gate.reached()
    assert not begun.gives_way("interactive")
    gate.open()
    assert await all_of(begun.read()) == PIECES
    broken = in_the_air.start(KEY, Worked(RuntimeError("broken")), lane="warm")
    with pytest.raises(RuntimeError):
        await all_of(broken.read())
    assert not broken.gives_way("interactive")


async def test_without_a_key_nobody_else_can_find_it() -> None:
    air = flights()
    flight = air.start(None, Worked(*PIECES))
    assert len(air) == 0
    assert await all_of(flight.read()) == PIECES


async def test_a_reader_of_work_that_was_stopped_from_outside_is_told() -> None:
    tasks = Tasks()
    air, gate = Flights(tasks), Gate()
    work = Worked(*PIECES[:1], gate)
    reader = asyncio.create_task(all_of(air.start(KEY, work).read()))
    await gate.reached()
    await tasks.close()
    with pytest.raises(FlightCancelled):
        await reader
    assert work.cancelled
    assert (len(tasks), len(air)) == (0, 0)


async def test_once_closed_all_work_ends_and_none_begins() -> None:
    air, gate = flights(), Gate()
    readers = [
        asyncio.create_task(all_of(air.start(key, Worked(*PIECES[:1], gate)).read()))
        for key in (KEY, None)
    ]
    await gate.reached()
    air.close()
    late = air.start(b"late", Worked(*PIECES))
    for reader in (*readers, asyncio.create_task(all_of(late.read()))):
        with pytest.raises(FlightCancelled):
            await reader
    assert len(air) == 0


async def test_it_is_known_what_landed_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.flights.MAX_LANDED", 2)
    air = flights()
    mark = air.landings
    for key in (b"a", b"b", b"a", b"c"):
        await landed(air.start(key, Worked(*PIECES), finish_alone=True))
    assert [air.landed_since(key, mark) for key in (b"a", b"b", b"c")] == [True, False, True]
    assert not air.landed_since(b"c", air.landings)


async def test_the_state_can_be_read_off() -> None:
    air = flights()
    flight = air.start(KEY, Worked(*PIECES))
    reader = flight.read()
    assert repr(air) == "<Flights 1 in the air, 1 readers>"
    assert await all_of(reader) == PIECES
    await landed(flight)
    assert repr(flight) == "<Flight ended: 4 pieces, 0 readers>"
    assert repr(air) == "<Flights 0 in the air, 0 readers>"


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["join", "leave first", "leave last", "cancel first", "step"]), max_size=20
    )
)
async def test_whoever_comes_and_goes_those_who_stay_get_everything(actions: list[str]) -> None:
    air = flights()
    gates = [Gate() for _ in PIECES]
    steps = [step for pair in zip(gates, PIECES, strict=True) for step in pair]
    works: list[Worked] = []
    staying: list[tuple[Reader, asyncio.Task[list[Piece]]]] = []
    opened = 0

    def work() -> Work:
        works.append(Worked(*steps))
        return works[-1]

    async def read(reader: Reader) -> list[Piece]:
        return [piece async for piece in reader]

    for action in actions:
        if action == "join":
            flight = air.find(KEY) or air.start(KEY, work())
            reader = flight.read()
            staying.append((reader, asyncio.create_task(read(reader))))
        elif action == "step" and opened < len(gates):
            gates[opened].open()
            opened += 1
        elif staying and action != "step":
            reader, task = staying.pop(-1 if action == "leave last" else 0)
            task.cancel()
            if action != "cancel first":
                reader.close()
            await asyncio.wait([task])
            reader.close()
        await asyncio.sleep(0)
    for gate in gates:
        gate.open()
    for reader, task in staying:
        assert await task == PIECES
        reader.close()
    await asyncio.gather(*air._tasks._running, return_exceptions=True)
    await asyncio.sleep(0)
    assert len(air) == 0
    assert all(work.finished or work.cancelled or not work.times for work in works)
