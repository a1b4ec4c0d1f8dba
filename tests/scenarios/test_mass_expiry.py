"""A thousand answers loaded together, asked for again when all of them are past their time."""

import asyncio
import itertools
from collections import Counter
from dataclasses import replace

import pytest

from gateway.pipeline import Answer, Kept
from tests.kit.bench import HOT, RULES, Bench, read
from tests.kit.scripted_backend import Gate, whole_answer
from tests.kit.scripted_upstream import ScriptedUpstream
from tests.kit.service import serving

COUNT = 1000
CAP = RULES.max_renewals


async def loaded(bench: Bench) -> None:
    for number in range(COUNT):
        await bench.ask(str(number), HOT)
    assert bench.runs == COUNT


async def all_asked(bench: Bench) -> list[Answer]:
    return await asyncio.gather(*[bench.start(str(number), HOT) for number in range(COUNT)])


def held_up(*, room: int = 2**24, max_renewals: int = CAP) -> tuple[Bench, Gate]:
    """A bench whose backend answers the first ``COUNT`` runs and holds up all that come after."""
    gate = Gate()
    scripts = [*itertools.repeat(whole_answer("old"), COUNT), [gate, *whole_answer("new")]]
    return Bench(*scripts, rules=replace(RULES, max_renewals=max_renewals), room=room), gate


async def test_renewals_stay_under_their_cap_while_every_reader_has_an_answer_at_once() -> None:
    bench, gate = held_up()
    await loaded(bench)
    bench.clock.advance(305)  # all are stale, within the window of stale_while_revalidate
    for _ in range(3):
        answers = await all_asked(bench)
        assert Counter(type(answer) for answer in answers) == {Kept: COUNT}
        assert all(answer.outcome.stale for answer in answers)
        await gate.reached()
        assert bench.runs == COUNT + CAP
        assert len(bench.flights) == CAP
    gate.open()
    await bench.settled()
    await all_asked(bench)
    await bench.settled()
    assert bench.runs == COUNT + 2 * CAP  # the places are free again
    answers = await all_asked(bench)
    assert sum(not answer.outcome.stale for answer in answers) == 2 * CAP
    await bench.settled()


async def test_renewals_ahead_of_expiry_stay_under_it_too() -> None:
    bench, gate = held_up()
    await loaded(bench)
    bench.clock.advance(299.5)
    bench.draw = 0.99  # every reader would renew what cost a second and has half a one left
    answers = await all_asked(bench)
    assert not any(answer.outcome.stale for answer in answers)
    await gate.reached()
    assert bench.runs == COUNT + CAP
    gate.open()
    await bench.settled()


async def test_nobody_waits_for_a_renewal_so_it_goes_behind_those_who_do() -> None:
    bench, gate = held_up()
    gate.open()
    await loaded(bench)
    bench.clock.advance(305)
    await all_asked(bench)
    await bench.settled()
    lanes = [run.plan.lane for run in bench.backend.runs]
    assert Counter(lanes) == {"interactive": COUNT, "batch": CAP}


async def test_renewals_that_are_cancelled_or_fail_give_their_place_back() -> None:
    bench = Bench(whole_answer("old"), [ValueError("a defect")], rules=RULES)
    await bench.ask("one", HOT)
    bench.clock.advance(305)
    for _ in range(3 * CAP):
        outcome, _ = await bench.ask("one", HOT)
        assert outcome.stale
    assert bench.runs == 1 + 3 * CAP


async def test_without_renewals_a_stale_answer_is_served_as_it_is() -> None:
    bench, _ = held_up(max_renewals=0)
    await loaded(bench)
    bench.clock.advance(305)
    assert all(answer.outcome.stale for answer in await all_asked(bench))
    assert bench.runs == COUNT


async def test_past_the_stale_windows_identical_calls_are_computed_once_each() -> None:
    bench, gate = held_up()
    await loaded(bench)
    bench.clock.advance(10_000)
    asking = [
        asyncio.create_task(bench.start(str(number % 10), HOT), name=str(number))
        for number in range(COUNT)
    ]
    await bench.backend.started(COUNT + 10)
    gate.open()
    for task in asking:
        await read(await task)
    assert bench.runs == COUNT + 10
    await bench.settled()


async def test_a_backend_with_a_bound_is_asked_no_more_than_that_at_once() -> None:
    gate, upstream, most = Gate(), ScriptedUpstream(), 8
    async with serving(upstream=upstream, max_concurrency=most) as service:

        async def ask(number: int) -> str:
            messages = [{"role": "user", "content": str(number)}]
            answer = await service.chat({"enabled": True}, messages=messages)
            return answer.headers["X-Cache-Level"]

        asking = range(60)
        await asyncio.gather(*map(ask, asking))
        service.clock.advance(10_000)
        well_behaved = upstream.otherwise
        upstream.otherwise = lambda seen: replace(
            reply := well_behaved(seen), steps=(gate, *reply.steps)
        )
        again = asyncio.gather(*map(ask, asking))
        await upstream.called(60 + most)
        while len(service.gateway.flights) != 60:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        assert upstream.calls == 60 + most
        gate.open()
        assert set(await again) == {"none"}
        assert upstream.calls == 120
        assert set(await asyncio.gather(*map(ask, asking))) == {"response"}


@pytest.mark.parametrize("jitter", [0.0, 0.1])
async def test_jitter_spreads_what_was_loaded_together(jitter: float) -> None:
    bench = Bench(rules=replace(RULES, jitter=jitter), room=2**24)
    ttls: list[int] = []
    for number in range(COUNT):
        bench.draw = number / COUNT
        await bench.ask(str(number), {"enabled": True})
        bench.draw = 0.0
        outcome, _ = await bench.ask(str(number), {"enabled": True})
        ttls.append(int(outcome.ttl_left_s or 0))
    _, together = Counter(ttls).most_common(1)[0]
    assert together == COUNT if jitter == 0 else together <= 6  # in any one second
