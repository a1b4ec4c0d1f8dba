"""One question: computed as a client's call would be, stored, or left alone when it is fresh."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.chunks import Whole
from gateway.contexts import Fitted
from gateway.errors import ClientFault
from gateway.store.base import StoreError
from gateway.warming_call import FIRST_PAUSE_S, STARTING, TRIES
from policies.call import RequestError
from policies.keys import Principal
from tests.kit.kitchen import OPEN, items, kitchen
from tests.kit.scripted_backend import Gate, body_of, completed, failed, opening, streamed_answer
from tests.kit.scripted_backend import whole_answer as whole
from tests.kit.timer import turns


async def test_a_later_call_of_a_client_finds_the_answer() -> None:
    async with kitchen() as it:
        (item,) = items({"question": "What?", "cache_key": "faq:1"}, params={"max_tokens": 9})
        warmed = await it.warming.warm(item, OPEN)
        assert (warmed.status, warmed.tokens, warmed.seconds) == ("done", 7, 1.0)
        wish = {"enabled": True, "cache_key": "faq:1"}
        outcome, _ = await it.user("What?", wish, max_tokens=9)
        assert (outcome.level, outcome.key) == ("response", warmed.key)
        assert it.runs == 1


async def test_a_stream_is_warmed_as_well() -> None:
    async with kitchen(streamed_answer("Hel", "lo.")) as it:
        (item,) = items("What?")
        assert (await it.warming.warm(item, OPEN)).status == "done"


async def test_what_is_fresh_is_left_alone_and_costs_no_turn() -> None:
    async with kitchen() as it:
        await it.user("What?")
        await it.settled()
        with it.traffic.of("interactive"):
            (item,) = items("What?")
            assert (await it.warming.warm(item, OPEN)).status == "skipped"
        assert it.runs == 1


async def test_who_wants_it_anew_gets_it_anew() -> None:
    async with kitchen() as it:
        await it.user("What?")
        await it.settled()
        (item,) = items("What?", kv_cache={"reuse": False})
        assert (await it.warming.warm(item, OPEN)).status == "done"
        assert it.runs == 2


async def test_what_is_stale_is_computed_anew_before_it_counts_as_done() -> None:
    async with kitchen() as it:
        await it.user("What?", {"enabled": True, "tier": "hot"})
        await it.settled()
        it.clock.advance(310)  # a user would be served the old answer
        (item,) = items("What?", tier="hot")
        assert (await it.warming.warm(item, OPEN)).status == "done"
        assert it.runs == 2
        outcome, _ = await it.user("What?", {"enabled": True, "tier": "hot"})
        assert outcome.age_s == 0


async def test_renewing_takes_the_place_of_a_fresh_answer_but_a_refusal_does_not() -> None:
    async with kitchen(whole("Old."), (failed(400),), whole("New.")) as it:
        (item,) = items("What?")
        await it.warming.warm(item, OPEN)
        asked = await it.warming.understand(item, OPEN)
        assert (await it.warming.renew(asked)).code == "scripted"
        await it.settled()
        assert (await it.user("What?"))[1] == "Old."
        assert (await it.warming.renew(asked)).status == "done"
        assert (await it.user("What?"))[1] == "New."


async def test_a_user_who_asks_meanwhile_reads_along() -> None:
    gate = Gate()
    async with kitchen((opening(), gate, *whole()[1:])) as it:
        (item,) = items("What?")
        warming = asyncio.create_task(it.warming.warm(item, OPEN))
        await gate.reached()
        user = asyncio.create_task(it.user("What?"))
        await turns()
        gate.open()
        outcome, _ = await user
        assert outcome.collapsed
        assert (await warming).status == "done"
        assert it.runs == 1


async def test_it_goes_in_the_warm_lane_and_is_no_user_traffic() -> None:
    async with kitchen() as it:
        (item,) = items("What?")
        await it.warming.warm(item, OPEN)
        assert it.backend.runs[0].plan.lane == "warm"
        it.journal.settle()
        assert it.journal.statistics.total.requests == 0
        assert '"id":"warm-id0"' in it.log.getvalue().replace(": ", ":")


async def test_who_cancels_frees_the_backend() -> None:
    gate = Gate()
    async with kitchen((opening(), gate)) as it:
        (item,) = items("What?")
        warming = asyncio.create_task(it.warming.warm(item, OPEN))
        await gate.reached()
        warming.cancel()
        await it.backend.ended()
        assert it.backend.runs[0].cancelled
        assert it.traffic.warming == 0


@pytest.mark.parametrize("error", [failed(503), failed(429), failed(502), failed(504)])
async def test_what_may_pass_is_tried_again(error: Any) -> None:
    async with kitchen((error,), (error,), whole()) as it:
        (item,) = items("What?")
        warming = asyncio.create_task(it.warming.warm(item, OPEN))
        await it.timer.go_on(1000 * FIRST_PAUSE_S)
        assert (await warming).status == "done"
        assert it.runs == 3


async def test_what_does_not_pass_is_given_up_and_the_next_question_does_not_wait_for_it() -> None:
    async with kitchen((failed(503),)) as it:
        one, two = items("One?", "Two?")
        warming = asyncio.create_task(it.warming.warm(one, OPEN))
        await it.timer.go_on(1000)
        assert (await warming).code == "scripted"
        assert it.runs == TRIES
        assert (await it.warming.warm(two, OPEN)).status == "failed"
        assert it.runs == TRIES + 1
        await it.settled()
        it.backend._scripts.append(whole())
        assert (await it.warming.warm(two, OPEN)).status == "done"
        it.backend._scripts[:] = [(failed(503),)]
        warming = asyncio.create_task(it.warming.warm(one, OPEN))
        await turns()
        assert not warming.done()  # it is waited for again
        warming.cancel()


async def test_an_engine_that_is_loading_is_waited_for() -> None:
    starting = (failed(503, code=STARTING, retry_after_s=2.0),)
    async with kitchen(*[starting] * (5 * TRIES), whole()) as it:
        (item,) = items("What?")
        warming = asyncio.create_task(it.warming.warm(item, OPEN))
        await it.timer.go_on(2.0 * 5 * TRIES + 10)
        assert (await warming).status == "done"


async def test_a_refusal_is_told_and_remembered_as_for_users() -> None:
    async with kitchen((failed(400),)) as it:
        (item,) = items("What?")
        first = await it.warming.warm(item, OPEN)
        await it.settled()
        second = await it.warming.warm(item, OPEN)
        assert (first.status, first.code) == ("failed", "scripted")
        assert (second.status, second.code) == ("failed", "refused_before")
        assert it.runs == 1


async def test_a_stream_that_breaks_off_fails() -> None:
    broken = (opening(), failed(502, code="backend_cut"))
    async with kitchen(broken, (opening(),)) as it:
        one, two = items("One?", "Two?")
        it.warming._down.add("scripted")
        assert (await it.warming.warm(one, OPEN)).code == "backend_cut"
        assert (await it.warming.warm(two, OPEN)).code == "broken_off"


async def test_a_defect_fails_one_question() -> None:
    async with kitchen((RuntimeError("oops"),)) as it:
        (item,) = items("What?")
        assert (await it.warming.warm(item, OPEN)).code == "internal_error"


async def test_a_defect_before_anything_is_asked_fails_one_question_and_is_in_the_log() -> None:
    async with kitchen() as it:

        async def broken(*_: Any) -> Fitted:
            raise ValueError("oops")

        it.warming._fit = broken
        (item,) = items("What?")
        with capture_logs() as log:
            assert (await it.warming.warm(item, OPEN)).code == "internal_error"
        assert [(line["event"], line["exc_info"]) for line in log] == [
            ("defect while warming", True)
        ]


async def test_what_was_answered_but_not_stored_is_not_done() -> None:
    endless = body_of(choices=[{"index": 0, "message": {"content": "x"}}])
    async with kitchen(whole(), (opening(), Whole(endless), completed())) as it:
        never, unfinished = items({"question": "?", "ttl": 0}, "What?")
        warmed = await it.warming.warm(never, OPEN)
        assert (warmed.status, warmed.code, warmed.tokens) == ("failed", "not_stored", 7)
        assert "ttl_0" in (warmed.message or "")
        assert (await it.warming.warm(unfinished, OPEN)).code == "not_stored"


async def test_without_a_store_nothing_is_fresh_and_nothing_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kitchen() as it:

        async def down(*_: Any, **__: Any) -> Any:
            raise StoreError("down")

        for name in ("get", "put", "scan"):
            monkeypatch.setattr(it.store, name, down)
        (item,) = items("What?")
        assert (await it.warming.warm(item, OPEN)).code == "not_stored"


async def test_what_lies_in_one_tier_is_done_also_when_another_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with kitchen() as it:

        async def down(*_: Any, **__: Any) -> Any:
            raise StoreError("down")

        for name in ("get", "put", "scan"):
            monkeypatch.setattr(it.store._stores["cold"], name, down)
        hot, cold = items({"question": "?", "tier": "hot"}, {"question": "!", "tier": "cold"})
        assert (await it.warming.warm(hot, OPEN)).status == "done"
        assert (await it.warming.warm(hot, OPEN)).status == "skipped"
        assert (await it.warming.warm(cold, OPEN)).code == "not_stored"


async def test_a_question_that_cannot_be_asked_fails_alone() -> None:
    async with kitchen() as it:
        unknown, forbidden, unread = items(
            {"question": "?", "model": "gone"},
            {"question": "?", "kv_cache": {"user": "bob"}},
            {"question": "?", "kv_cache": {"shared_context": "team"}},
        )
        assert (await it.warming.warm(unread, OPEN)).code == "store_unavailable"
        assert (await it.warming.warm(unknown, OPEN)).code == "model_not_found"
        alice = Principal("t", user="alice")
        assert (await it.warming.warm(forbidden, alice)).code == "user_mismatch"
        it.warming.check(unknown, OPEN)  # a model may come: only its question fails
        with pytest.raises(RequestError) as caught:
            it.warming.check(forbidden, alice)
        assert (caught.value.status, caught.value.param) == (403, "questions[1].kv_cache.user")
        with pytest.raises(ClientFault):
            await it.warming.understand(unknown, OPEN)
