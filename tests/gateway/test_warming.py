"""Warm jobs: run, watched, cancelled, and taken up by who lives."""

import asyncio
from typing import Any

import pytest

from gateway.contexts import Fitted
from gateway.errors import ClientFault
from gateway.store.base import StoreError
from gateway.warming import (
    BEAT_S,
    KEPT_JOBS,
    LEASE_S,
    MAX_UNFINISHED,
    STATE,
    SWEEP_S,
    WISH,
    in_parallel,
)
from gateway.warming import OPEN as MARK
from gateway.warming_job import Job
from policies.call import RequestError
from policies.keys import Principal
from policies.rules import Limits
from policies.warming import parse_wish
from tests.kit.kitchen import OPEN, Kitchen, items, kitchen, shut
from tests.kit.scripted_backend import Gate, failed, opening, whole_answer
from tests.kit.timer import turns


async def ended(it: Kitchen, job: Job) -> dict[str, Any]:
    """Its end, as the records have it."""
    for _ in range(100):
        found = await it.jobs.find(job.principal.tenant, job.id)
        assert found is not None
        if found.ended:
            return found.shown()
        await it.timer.go_on(1)
    raise AssertionError(f"{job} does not end")


def stands(shown: dict[str, Any]) -> list[str]:
    return [item["status"] for item in shown["items"]]


async def test_a_job_answers_all_its_questions() -> None:
    async with kitchen() as it:
        job = await it.jobs.submit(OPEN, items("One?", "Two?", "Three?"))
        assert (job.id, job.status) == ("warm-0", "running")
        shown = await ended(it, job)
        assert shown["status"] == "done"
        assert stands(shown) == ["done"] * 3
        assert shown["finished_at"] is not None
        for text in ("One?", "Two?", "Three?"):
            assert (await it.user(text))[0].level == "response"
        assert it.runs == 3
        assert await it.records.names(MARK, None) == []
        assert not await it.leases.held(b"warm:default:warm-0")


async def test_a_failed_question_never_stops_the_others() -> None:
    async with kitchen((failed(400),), (RuntimeError("oops"),), whole_answer()) as it:
        job = await it.jobs.submit(
            OPEN, items("One?", "Two?", "Three?", {"question": "4", "model": "gone"})
        )
        shown = await ended(it, job)
        assert shown["counts"]["failed"] == 3
        assert shown["counts"]["done"] == 1
        assert {item["error"]["code"] for item in shown["items"] if item["error"]} == {
            "scripted", "internal_error", "model_not_found",
        }  # fmt: skip


async def test_the_second_time_nothing_is_asked() -> None:
    async with kitchen() as it:
        await ended(it, await it.jobs.submit(OPEN, items("One?", "Two?")))
        shown = await ended(it, await it.jobs.submit(OPEN, items("One?", "Two?", "Three?")))
        assert stands(shown) == ["skipped", "skipped", "done"]
        assert it.runs == 3


async def test_of_each_pattern_one_goes_first_to_compute_the_base() -> None:
    gate = Gate()
    wish = {
        "patterns": [
            {"id": name, "variations": [f"{name}{number}" for number in range(3)]}
            for name in ("a", "b")
        ]
    }
    async with kitchen((opening(), gate), concurrency=4) as it:
        await it.jobs.submit(OPEN, parse_wish(wish, {}, limits=Limits()))
        await turns()
        assert sorted(it.asked_texts()) == ["a0", "b0"]


async def test_no_more_are_computed_at_once_than_the_configuration_says() -> None:
    gate = Gate()
    async with kitchen(whole_answer(), (opening(), gate, *whole_answer()[1:]), concurrency=3) as it:
        await it.jobs.submit(OPEN, items(*map(str, range(10))))
        await it.jobs.submit(OPEN, items(*map(str, range(10, 20))))
        await turns()
        assert it.traffic.warming == 3
        assert it.runs == 1 + 3


async def test_a_job_can_be_cancelled_at_any_time() -> None:
    gate = Gate()
    async with kitchen(whole_answer(), (opening(), gate)) as it:
        job = await it.jobs.submit(OPEN, items("One?", "Two?", "Three?", "Four?"))
        await gate.reached()
        found = await it.jobs.cancel("default", job.id)
        assert found is not None
        assert found.status == "cancelled"
        shown = await ended(it, job)
        assert stands(shown) == ["done", "pending", "pending", "pending"]
        assert await it.records.names(MARK, None) == []
        await it.backend.ended(3)
        assert it.traffic.warming == 0
        again = await it.jobs.cancel("default", job.id)
        assert again is not None
        assert again.shown() == shown
        assert await it.jobs.cancel("default", "warm-unknown") is None


async def test_a_restart_goes_on_where_the_job_was() -> None:
    gate = Gate()
    async with kitchen(whole_answer(), (opening(), gate)) as old:
        job = await old.jobs.submit(OPEN, items("One?", "Two?", "Three?"))
        await gate.reached()
        await shut(old.tasks)
        async with kitchen(of=old) as new:
            new.backend._scripts[:] = [whole_answer()]
            new.tasks.start(new.jobs.sweep(), name="sweep")
            await turns()
            shown = await ended(new, job)
            assert shown["status"] == "done"
            assert stands(shown) == ["skipped", "done", "done"]


async def test_a_job_whose_process_died_is_taken_up_when_its_lease_has_ended() -> None:
    async with kitchen() as it:
        job = Job("warm-x", OPEN, it.timer.now(), items("One?"))
        await it.jobs._write(job)
        await it.leases.take(b"warm:default:warm-x", ttl_s=LEASE_S)
        held = it.leases.take

        async def held_by_the_dead(key: bytes, *, ttl_s: float) -> bool:
            return not await it.leases.held(key) and await held(key, ttl_s=ttl_s)

        it.leases.take = held_by_the_dead  # type: ignore[method-assign]
        it.tasks.start(it.jobs.sweep(), name="sweep")
        await turns()
        assert it.runs == 0
        await it.timer.go_on(LEASE_S + SWEEP_S)
        assert it.runs == 1


@pytest.mark.parametrize("kind", [MARK, WISH, STATE])
@pytest.mark.parametrize("name", [None, "start-faq"])
async def test_a_job_that_begins_here_is_not_begun_a_second_time_meanwhile(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str | None
) -> None:
    async with kitchen() as it:
        write, written, goes_on = it.records.write, asyncio.Event(), asyncio.Event()

        async def slow(of: str, *rest: Any) -> None:
            await write(of, *rest)
            if of == kind:
                written.set()
                await goes_on.wait()

        monkeypatch.setattr(it.records, "write", slow)
        submitting = asyncio.ensure_future(
            it.jobs.submit(OPEN, items("One?"))
            if name is None
            else it.jobs.begin(name, OPEN, items("One?"))
        )
        await written.wait()
        it.tasks.start(it.jobs.sweep(), name="sweep")
        await turns()
        assert it.runs == 0
        assert len(await it.records.names(MARK, None)) == 1
        if name is not None:
            assert await it.jobs.begin(name, OPEN, items("One?")) is None
        goes_on.set()
        job = await submitting
        assert job is not None
        assert await it.jobs.find("default", job.id) is job
        assert (await ended(it, job))["status"] == "done"
        assert it.runs == 1


async def test_a_job_that_is_being_taken_up_is_not_begun_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kitchen() as it:
        await it.jobs._write(Job("start-faq", OPEN, it.timer.now(), items("One?")))
        read, goes_on = it.records.read, asyncio.Event()

        async def slow(*what: str) -> bytes | None:
            await goes_on.wait()
            return await read(*what)

        monkeypatch.setattr(it.records, "read", slow)
        it.tasks.start(it.jobs.sweep(), name="sweep")
        await turns()
        assert await it.jobs.begin("start-faq", OPEN, items("One?")) is None
        goes_on.set()
        await turns()
        assert it.runs == 1


async def test_a_job_that_cannot_be_written_may_be_begun_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kitchen() as it:

        async def down(*_: Any) -> None:
            raise StoreError("down")

        with monkeypatch.context() as for_now:
            for_now.setattr(it.records, "write", down)
            with pytest.raises(StoreError):
                await it.jobs.begin("start-faq", OPEN, items("One?"))
        assert await it.jobs.begin("start-faq", OPEN, items("One?")) is not None


async def test_a_defect_in_a_question_does_not_have_the_job_taken_up_for_ever() -> None:
    async with kitchen() as it:
        asked = 0

        async def broken(*_: Any) -> Fitted:
            nonlocal asked
            asked += 1
            raise ValueError("oops")

        it.warming._fit = broken
        it.tasks.start(it.jobs.sweep(), name="sweep")
        job = await it.jobs.submit(OPEN, items("One?", "Two?"))
        await it.timer.go_on(20 * SWEEP_S)
        assert stands(await ended(it, job)) == ["failed", "failed"]
        assert await it.records.names(MARK, None) == []
        assert asked == 2


async def test_marks_without_a_job_are_swept_away() -> None:
    async with kitchen() as it:
        await it.records.write(MARK, "t", "gone", b"1")
        done = Job("warm-done", OPEN, 1.0, items("One?"))
        done.end("done", 2.0)
        await it.jobs._write(done)
        it.tasks.start(it.jobs.sweep(), name="sweep")
        await turns()
        assert await it.records.names(MARK, None) == []
        assert it.runs == 0


async def test_a_job_is_run_by_one_process_and_cancelled_from_another() -> None:
    gate = Gate()
    async with kitchen((opening(), gate)) as one, kitchen(of=one) as other:
        job = await one.jobs.submit(OPEN, items("One?", "Two?"))
        await gate.reached()
        seen = await other.jobs.find("default", job.id)
        assert seen is not None
        assert not seen.ended
        cancelled = await other.jobs.cancel("default", job.id)
        assert cancelled is not None
        assert cancelled.status == "cancelled"
        await one.timer.go_on(2)
        assert one.backend.runs[0].cancelled
        assert job.status == "cancelled"
        assert repr(one.jobs) == "<WarmJobs 0 running>"


async def test_who_has_lost_its_lease_stops_and_leaves_the_job_to_the_other() -> None:
    gate = Gate()
    async with kitchen((opening(), gate)) as it:
        job = await it.jobs.submit(OPEN, items("One?"))
        await gate.reached()

        async def lost(key: bytes, *, ttl_s: float) -> bool:
            return False

        it.leases.take = lost  # type: ignore[method-assign]
        await it.timer.go_on(2)
        assert it.backend.runs[0].cancelled
        assert await it.records.names(MARK, None) == [("default", job.id)]
        found = await it.jobs.find("default", job.id)
        assert found is not None
        assert not found.ended


async def test_progress_is_written_for_the_other_processes() -> None:
    gate = Gate()
    async with kitchen(whole_answer(), (opening(), gate)) as one, kitchen(of=one) as other:
        job = await one.jobs.submit(OPEN, items("One?", "Two?"))
        await gate.reached()
        await one.timer.go_on(1)
        seen = await other.jobs.find("default", job.id)
        assert seen is not None
        assert stands(seen.shown()) == ["done", "running"]


async def test_a_watcher_sees_each_change_and_the_end() -> None:
    gate = Gate()
    async with kitchen(whole_answer(), (opening(), gate, *whole_answer()[1:])) as it:
        job = await it.jobs.submit(OPEN, items("One?", "Two?"))

        async def watch() -> list[tuple[str, int]]:
            states = it.jobs.watch("default", job.id)
            return [(state.status, state.counts()["done"]) async for state in states]

        watching = asyncio.create_task(watch())
        await turns()
        await gate.reached()
        gate.open()
        await ended(it, job)
        seen = await watching
        assert ("running", 1) in seen
        assert seen[-1] == ("done", 2)
        assert await watch() == [("done", 2)]
        assert [state async for state in it.jobs.watch("default", "warm-unknown")] == []


async def test_a_watcher_of_another_process_looks_now_and_then() -> None:
    gate = Gate()
    async with kitchen((opening(), gate, *whole_answer()[1:])) as one, kitchen(of=one) as other:
        job = await one.jobs.submit(OPEN, items("One?"))

        async def watch() -> list[str]:
            return [state.status async for state in other.jobs.watch("default", job.id)]

        watching = asyncio.create_task(watch())
        await turns()
        gate.open()
        await one.timer.go_on(3)
        seen = await watching
        assert (seen[0], seen[-1]) == ("running", "done")


async def test_watchers_are_let_go_when_the_process_ends() -> None:
    async with kitchen((opening(), Gate())) as it:
        job = await it.jobs.submit(OPEN, items("One?"))

        async def watch() -> list[str]:
            return [state.status async for state in it.jobs.watch("default", job.id)]

        watching = asyncio.create_task(watch())
        await turns()
        it.jobs.let_watchers_go()
        assert set(await watching) == {"running"}


async def test_a_watcher_hears_something_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BEAT_S <= 15
    monkeypatch.setattr("gateway.warming.BEAT_S", 0.0)
    async with kitchen((opening(), Gate())) as it:
        job = await it.jobs.submit(OPEN, items("One?"))
        await turns()
        states = it.jobs.watch("default", job.id)
        assert [(await anext(states)).status for _ in range(3)] == ["running"] * 3
        await states.aclose()


async def test_jobs_are_listed_by_tenant_the_latest_first() -> None:
    async with kitchen() as it:
        for number in range(3):
            await ended(it, await it.jobs.submit(OPEN, items(f"{number}")))
            it.timer.advance(1)
        await ended(it, await it.jobs.submit(Principal("other"), items("?")))
        await it.records.write("warm", "default", "warm-broken", b"x")
        own = await it.jobs.all("default")
        assert [job.items[0].body["messages"][0]["content"] for job in own] == ["2", "1", "0"]
        assert len(await it.jobs.all("other")) == 1
        assert await it.jobs.all("nobody") == []


async def test_old_jobs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_JOBS >= 20
    monkeypatch.setattr("gateway.warming.KEPT_JOBS", 2)
    async with kitchen() as it:
        for number in range(4):
            await ended(it, await it.jobs.submit(OPEN, items(f"{number}")))
            it.timer.advance(1)
        assert len(await it.jobs.all("default")) == 3 - 1
        assert len(await it.records.names("warm-state", None)) == 2


async def test_a_tenant_has_so_many_jobs_at_a_time_and_no_more() -> None:
    async with kitchen((opening(), Gate())) as it:
        for number in range(MAX_UNFINISHED):
            await it.jobs.submit(OPEN, items(f"{number}"))
        with pytest.raises(ClientFault) as caught:
            await it.jobs.submit(OPEN, items("one more"))
        assert (caught.value.status, caught.value.code) == (429, "too_many_jobs")
        await it.jobs.submit(Principal("other"), items("another tenant's"))


async def test_what_nobody_may_ask_is_refused_before_anything_is_asked() -> None:
    async with kitchen() as it:
        forbidden = items(*["?"] * 40, {"question": "?", "kv_cache": {"user": "bob"}})
        with pytest.raises(RequestError) as caught:
            await it.jobs.submit(Principal("t", user="alice"), forbidden)
        assert caught.value.param == "questions[40].kv_cache.user"
        assert it.runs == 0
        assert await it.jobs.all("t") == []


async def test_a_job_with_a_name_is_begun_once_at_a_time_and_anew_each_time() -> None:
    gate = Gate()
    async with kitchen((opening(), gate, *whole_answer()[1:])) as it:
        job = await it.jobs.begin("start-faq", OPEN, items("One?"))
        assert job is not None
        await gate.reached()
        assert await it.jobs.begin("start-faq", OPEN, items("One?")) is None
        gate.open()
        assert stands(await ended(it, job)) == ["done"]
        again = await it.jobs.begin("start-faq", OPEN, items("One?"))
        assert again is not None
        assert stands(await ended(it, again)) == ["skipped"]

        async def taken(key: bytes, *, ttl_s: float) -> bool:
            return False

        it.leases.take = taken  # type: ignore[method-assign]
        assert await it.jobs.begin("start-faq", OPEN, items("One?")) is None


async def test_a_store_that_fails_meanwhile_costs_the_record_not_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    async with kitchen((opening(), gate, *whole_answer()[1:])) as it:
        job = await it.jobs.submit(OPEN, items("One?"))
        await gate.reached()

        async def down(*_: Any, **__: Any) -> Any:
            raise StoreError("down")

        for name in ("read", "write", "names", "erase"):
            monkeypatch.setattr(it.records, name, down)
        it.tasks.start(it.jobs.sweep(), name="sweep")
        await it.timer.go_on(2)
        gate.open()
        await turns()
        assert job.status == "done"
        with pytest.raises(StoreError):
            await it.jobs.submit(OPEN, items("Two?"))
        await it.jobs._forget_old("default")


async def test_work_in_parallel_keeps_to_its_places() -> None:
    at_once, most, done = 0, 0, []

    async def work(thing: int) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        done.append(thing)

    await in_parallel(3, range(10), work)
    assert sorted(done) == list(range(10))
    assert most == 3
