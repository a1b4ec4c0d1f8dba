"""The configuration's own patterns: warmed at the start, renewed before they end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.store.base import Selector, StoreError
from gateway.warming_keep import LOOK_S, Keeper, Pattern, renew_at
from policies.keys import Principal
from tests.kit.entries import NOW, meta_of
from tests.kit.kitchen import OPEN, Kitchen, items, kitchen
from tests.kit.scripted_backend import Script, failed, whole_answer
from tests.kit.timer import turns

QUICK = whole_answer()


@asynccontextmanager
async def keeping(
    *scripts: Script,
    questions: Sequence[Any] = ("One?",),
    tenants: Sequence[str] = ("default",),
    on_start: bool = False,
    ttl: float = 600,
) -> AsyncIterator[tuple[Kitchen, Keeper]]:
    async with kitchen(*scripts) as it:
        asked = items(*questions, ttl=ttl)
        keeper = Keeper(
            patterns={"faq": Pattern(asked, on_start=on_start, keep_warm=True)},
            tenants=tenants,
            jobs=it.jobs,
            warming=it.warming,
            leases=it.leases,
            concurrency=2,
            now=it.timer.now,
            sleep=it.timer.sleep,
        )
        yield it, keeper


async def test_at_the_start_each_tenant_has_its_own_job() -> None:
    async with keeping(tenants=("a", "b"), on_start=True) as (it, keeper):
        await keeper.start()
        await turns()
        for tenant in ("a", "b"):
            (job,) = await it.jobs.all(tenant)
            assert (job.id, job.principal) == ("start-faq", Principal(tenant))
            assert job.counts()["done"] == 1
        assert it.runs == 2
        assert repr(keeper) == "<Keeper 1 patterns, 0 answers kept>"


async def test_what_is_not_wanted_at_the_start_waits_until_it_is_asked_for() -> None:
    async with keeping() as (it, keeper):
        await keeper.start()
        it.tasks.start(keeper.keep(), name="keep")
        await it.timer.go_on(10_000)
        assert it.runs == 0


async def test_a_store_that_is_down_costs_the_warming_and_not_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with keeping(on_start=True) as (it, keeper):

        async def down(*_: Any, **__: Any) -> Any:
            raise StoreError("down")

        monkeypatch.setattr(it.leases, "take", down)
        await keeper.start()
        it.tasks.start(keeper.keep(), name="keep")
        await it.timer.go_on(2 * LOOK_S)
        assert it.runs == 0


async def test_an_answer_is_renewed_shortly_before_it_ends() -> None:
    async with keeping(ttl=600) as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(539)
        assert it.runs == 1
        await it.timer.go_on(2)
        assert it.runs == 2
        await it.timer.go_on(6000)
        assert it.runs == 2 + 6000 // 540
        wish = {"enabled": True, "ttl": 600}
        assert (await it.user("One?", wish))[0].level == "response"


async def test_it_sleeps_until_something_is_due() -> None:
    async with keeping(ttl=600) as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(500)
        assert it.timer.sleepers == [pytest.approx(40.0)]


async def test_what_was_there_and_is_gone_is_computed_again() -> None:
    async with keeping() as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(LOOK_S)
        await it.store.remove(Selector(None))
        await it.timer.go_on(LOOK_S)
        assert it.runs == 2


async def test_what_finds_no_room_is_not_computed_without_end() -> None:
    async with keeping() as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(LOOK_S)
        for _ in range(60):
            await it.store.remove(Selector(None))
            await it.timer.go_on(10)
        assert it.runs <= 1 + 600 / LOOK_S + 1


async def test_a_failing_renewal_leaves_the_answer_and_is_tried_again_later() -> None:
    async with keeping(QUICK, (failed(400),), QUICK) as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(541)
        assert it.runs == 2
        wish = {"enabled": True, "ttl": 600}
        assert (await it.user("One?", wish))[0].level == "response"
        await it.timer.go_on(LOOK_S)
        assert it.runs == 3


async def test_of_several_processes_one_keeps_a_pattern_warm() -> None:
    async with keeping() as (it, keeper):
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)

        async def another_has_it(key: bytes, *, ttl_s: float) -> bool:
            return False

        it.leases.take = another_has_it  # type: ignore[method-assign]
        it.tasks.start(keeper.keep(), name="keep")
        await it.timer.go_on(3000)
        assert it.runs == 1


async def test_a_question_that_cannot_be_asked_is_left_out() -> None:
    wishes = ({"question": "?", "model": "gone"}, "One?")
    async with keeping(questions=wishes) as (it, keeper):
        it.tasks.start(keeper.keep(), name="keep")
        await it.warming.warm(items("One?", ttl=600)[0], OPEN)
        await it.timer.go_on(541)
        assert it.runs == 2


async def test_without_patterns_nobody_looks() -> None:
    async with kitchen() as it:
        keeper = Keeper(
            patterns={"faq": Pattern(items("?"), on_start=False, keep_warm=False)},
            tenants=["default"],
            jobs=it.jobs,
            warming=it.warming,
            leases=it.leases,
            concurrency=1,
            now=it.timer.now,
            sleep=it.timer.sleep,
        )
        await keeper.keep()


def test_what_took_long_is_renewed_earlier_but_never_before_half_its_life() -> None:
    assert renew_at(meta_of(ttl_s=100.0, cost_s=1.0)) == NOW + 90
    assert renew_at(meta_of(ttl_s=100.0, cost_s=20.0)) == NOW + 60
    assert renew_at(meta_of(ttl_s=100.0, cost_s=500.0)) == NOW + 50
