"""Which failures are asked anew, of whom, how often, and what a fallback's answer says."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from gateway.backends.group import Group
from gateway.backends.health import Health
from gateway.backends.retrying import CREDIT, MOST_SAVED, Budget, Manner, Retrying, RetryingRouter
from gateway.chunks import Opening, Piece, Whole
from gateway.router import Served, Target
from policies.call import Call
from policies.outcome import Completed, Failed
from policies.plan import Plan
from tests.kit.clock import Clock
from tests.kit.entries import asked
from tests.kit.scripted_backend import (
    Gate,
    Script,
    ScriptedBackend,
    body_of,
    completed,
    delta,
    failed,
    opening,
    streamed_answer,
    whole_answer,
)

LOST = (failed(502, cause="unreachable"),)
BUSY = (failed(503),)


class Bench:
    """Scripted backends behind a Retrying; the last one may serve a fallback model."""

    def __init__(
        self,
        *scripts: Sequence[Script],
        fallback: Sequence[Script] | None = None,
        failures: int = 5,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.slept: list[float] = []
        self.health = Health(clock=self.clock.monotonic, draw=lambda: 0.0, failures=failures)
        self.manner = Manner(
            self.health, self.clock.monotonic, lambda: 1.0, sleep=self.sleep, **options
        )
        names = "abc"[: len(scripts)]
        self.members = [
            ScriptedBackend(*own, name=name) for own, name in zip(scripts, names, strict=True)
        ]
        self.other = ScriptedBackend(*(fallback or ()), name="other")
        backend: Any = self.members[0]
        if len(self.members) > 1:
            self.health.together(names)
            backend = Group(
                self.members,
                dict.fromkeys(names, 1_000_000),
                strategy="least_busy",
                is_open=self.health.is_open,
            )
        others = [Target(self.other, "small")] if fallback is not None else []
        self.retrying = Retrying(backend, self.manner, others=lambda: others)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)

    async def ask(self, request: tuple[Call, Plan] | None = None) -> list[Piece]:
        return [piece async for piece in self.retrying.run(*(request or asked()))]

    @property
    def calls(self) -> int:
        return sum(len(member.runs) for member in self.members)


def answer_of(pieces: Sequence[Piece]) -> tuple[str | None, str]:
    """Who answered, and what."""
    first, second, last = pieces
    assert isinstance(first, Opening)
    assert isinstance(second, Whole)
    assert isinstance(last, Completed)
    return first.backend, second.body["choices"][0]["message"]["content"]


async def test_what_goes_well_passes_as_it_is() -> None:
    bench = Bench([streamed_answer("a", "b")])
    first, *rest = await bench.ask()
    assert first == Opening(headers={}, backend="a")
    assert rest == list(streamed_answer("a", "b"))[1:]
    assert bench.calls == 1


@pytest.mark.parametrize("script", [LOST, BUSY, (opening(), failed(502, code="backend_cut"))])
async def test_what_fails_before_its_first_piece_is_answered_by_a_fellow(script: Script) -> None:
    bench = Bench([script], [whole_answer("from b")])
    assert answer_of(await bench.ask()) == ("b", "from b")
    assert bench.slept == []


async def test_what_fails_after_its_first_piece_is_not_asked_anew() -> None:
    broken = (opening(), delta("half"), failed(502, code="backend_cut"))
    bench = Bench([broken], [whole_answer()], fallback=[whole_answer()])
    pieces = await bench.ask()
    assert [type(piece) for piece in pieces[1:]] == [type(piece) for piece in broken[1:]]
    assert bench.calls == 1
    assert bench.other.runs == []


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_what_the_client_must_mend_is_asked_of_nobody_else(status: int) -> None:
    bench = Bench([(failed(status),)], [whole_answer()], fallback=[whole_answer()])
    assert await bench.ask() == [failed(status)]
    assert bench.calls == 1
    assert bench.health.is_open("a")


async def test_one_backend_alone_is_asked_again_after_a_moment_that_grows() -> None:
    bench = Bench([BUSY, BUSY, whole_answer()])
    assert answer_of(await bench.ask())[0] == "a"
    assert bench.slept == [0.05, 0.1]


async def test_it_is_asked_no_more_than_retries_says_and_its_last_word_stands() -> None:
    bench = Bench([BUSY, BUSY, (failed(500, message="the last"),), whole_answer()])
    assert await bench.ask() == [failed(500, message="the last")]
    assert bench.calls == 3


async def test_without_retries_the_first_word_stands() -> None:
    bench = Bench([BUSY, whole_answer()], retries=0)
    assert await bench.ask() == [failed(503)]


async def test_what_reached_nobody_goes_to_a_fellow_though_no_tries_are_left() -> None:
    bench = Bench([LOST], [whole_answer()], retries=0)
    assert answer_of(await bench.ask())[0] == "b"


@pytest.mark.parametrize(
    "failure",
    [failed(504, code="backend_timeout"), failed(501), failed(503, cause="not_asked")],
)
async def test_what_another_try_would_not_mend_is_not_asked_of_the_same(failure: Failed) -> None:
    bench = Bench([(failure,), whole_answer()])
    assert await bench.ask() == [failure]


@pytest.mark.parametrize(
    ("told_s", "lane", "waits"),
    [(0.5, None, True), (2.0, None, False), (2.0, "batch", True), (60.0, "batch", False)],
)
async def test_retry_after_is_waited_for_if_the_lane_has_the_patience(
    told_s: float, lane: str | None, waits: bool
) -> None:
    bench = Bench([(failed(429, retry_after_s=told_s),), whole_answer()])
    headers = {"X-Cache-Batch": "true"} if lane else {}
    pieces = await bench.ask(asked(headers=headers))
    assert bench.slept == ([told_s] if waits else [])
    assert isinstance(pieces[-1], Completed if waits else Failed)


async def test_a_wait_that_is_broken_off_leaves_nothing_behind() -> None:
    bench = Bench([BUSY])

    async def broken_off(_: float) -> None:
        raise asyncio.CancelledError

    bench.retrying._manner = Manner(
        bench.health, bench.clock.monotonic, lambda: 1.0, sleep=broken_off
    )
    with pytest.raises(asyncio.CancelledError):
        await bench.ask()
    assert bench.health.state("a") == "up"


async def test_one_that_says_429_is_passed_over_for_as_long_as_it_says() -> None:
    bench = Bench([(failed(429, retry_after_s=20.0),)], [whole_answer()])
    assert answer_of(await bench.ask())[0] == "b"
    assert not bench.health.is_open("a")
    for _ in range(4):
        assert answer_of(await bench.ask())[0] == "b"
    assert len(bench.members[0].runs) == 1
    bench.clock.advance(20.0)
    assert bench.health.is_open("a")


async def test_429_does_not_bring_the_only_backend_down() -> None:
    bench = Bench([(failed(429, retry_after_s=20.0),)])
    for _ in range(20):
        assert await bench.ask() == [failed(429, retry_after_s=20.0)]


async def test_a_storm_is_answered_with_few_tries_and_then_with_none() -> None:
    bench = Bench([BUSY], failures=0)
    for _ in range(200):
        await bench.ask()
    assert 200 < bench.calls <= 240
    bench = Bench([BUSY])
    for _ in range(200):
        await bench.ask()
    assert 200 < bench.calls <= 240  # it answers: it is not closed
    bench = Bench([LOST])
    for _ in range(200):
        await bench.ask()
    assert bench.calls == 5 + CREDIT  # its tries count for nothing: five calls bring it down


async def test_a_backend_that_is_down_is_not_asked_and_says_when_to_come_back() -> None:
    bench = Bench([LOST], retries=0)
    for _ in range(5):
        await bench.ask()
    (ending,) = await bench.ask()
    assert isinstance(ending, Failed)
    assert (ending.status, ending.code, ending.fault) == (503, "backend_down", "backend")
    assert ending.retry_after_s == 5.0
    assert bench.calls == 5
    bench.clock.advance(5.0)
    bench.members[0]._scripts = [whole_answer()]
    assert answer_of(await bench.ask())[0] == "a"
    assert bench.health.state("a") == "up"


async def test_a_caller_who_leaves_frees_the_probe() -> None:
    gate = Gate()
    bench = Bench([*[LOST] * 5, (opening(), gate), whole_answer()], retries=0)
    for _ in range(5):
        await bench.ask()
    bench.clock.advance(5.0)
    probe = asyncio.ensure_future(bench.ask())
    await gate.reached()
    assert bench.health.state("a") == "probing"
    probe.cancel()
    await asyncio.wait([probe])
    assert answer_of(await bench.ask())[0] == "a"


async def test_the_queue_of_our_own_says_nothing_about_the_backend() -> None:
    full = failed(429, cause="not_asked", retry_after_s=1.0)
    bench = Bench([(full,)], [(full,)])
    for _ in range(10):
        assert await bench.ask() == [full]
    assert bench.health.is_open("a")
    assert bench.health.is_open("b")


async def test_a_defect_of_ours_is_asked_of_nobody_else() -> None:
    bench = Bench([(failed(500, fault="ours"),)], [whole_answer()])
    assert await bench.ask() == [failed(500, fault="ours")]


async def test_a_fallback_model_answers_when_no_backend_does_and_is_named() -> None:
    bench = Bench([BUSY], [LOST], fallback=[whole_answer("from the small one", model="small")])
    pieces = await bench.ask()
    assert answer_of(pieces) == ("other", "from the small one")
    assert pieces[0].fallback == "small"  # type: ignore[union-attr]  # an opening
    assert bench.other.runs[0].plan.model == "small"
    assert {run.plan.model for member in bench.members for run in member.runs} == {"m"}


async def test_when_the_fallback_fails_too_the_first_models_failure_is_told() -> None:
    bench = Bench([(failed(500, message="first"),)], fallback=[(failed(404),)])
    assert await bench.ask() == [failed(500, message="first")]


async def test_what_is_computed_to_be_kept_is_not_asked_of_a_fallback() -> None:
    bench = Bench([BUSY], fallback=[whole_answer()])
    assert await bench.ask(asked(kv_cache={"preload": True})) == [failed(503)]
    assert bench.other.runs == []


async def test_vectors_of_two_models_never_meet() -> None:
    bench = Bench([BUSY], fallback=[whole_answer()])
    assert await bench.ask(asked(endpoint="embeddings", input="text")) == [failed(503)]
    assert bench.other.runs == []


async def test_the_caller_who_leaves_ends_the_work() -> None:
    gate = Gate()
    bench = Bench([(opening(), delta("x"), gate)])
    pieces: AsyncGenerator[Piece, None] = bench.retrying.run(*asked())
    assert isinstance(await anext(pieces), Opening)
    await pieces.aclose()
    assert bench.members[0].runs[0].cancelled


async def test_what_is_no_call_goes_to_the_backend_itself() -> None:
    bench = Bench([whole_answer()])
    member, retrying = bench.members[0], bench.retrying
    member.listed, member.stats = [{"id": "m"}], {"blocks": 1}
    assert await retrying.models() == [{"id": "m"}]
    assert await retrying.kv_stats() == {"blocks": 1}
    assert await retrying.invalidate_kv("s") == 7
    assert await retrying.forward("GET", "/x", b"") == member.answer
    assert await retrying.prefill_kv([], salt="", priority="low", ttl_s=1.0) == 0
    assert repr(retrying) == "<Retrying a <Budget 5.0 tries>>"


class Prefilling(ScriptedBackend):
    """One that computes prompts ahead."""

    async def prefill_kv(self, messages: Sequence[Any], **how: Any) -> int:
        return len(messages) + len(how)


async def test_prompts_are_computed_ahead_where_that_can_be_done() -> None:
    retrying = Retrying(Prefilling(), Bench([()]).manner)
    assert await retrying.prefill_kv([{}], salt="", priority="low", ttl_s=1.0) == 4


def test_a_budget_lends_a_few_tries_and_then_gives_a_share() -> None:
    budget, tries = Budget(0.2), 0
    for _ in range(100):
        budget.offered()
        while budget.spend():
            tries += 1
    assert tries == 20
    for _ in range(1000):
        budget.offered()
    assert sum(budget.spend() for _ in range(100)) == MOST_SAVED
    assert not Budget(0.0).spend()
    assert sum(Budget(0.2).spend() for _ in range(1)) == 1
    assert CREDIT >= 1


def test_a_router_gives_the_same_wrapper_for_the_same_backend_and_fallbacks() -> None:
    clock = Clock()
    manner = Manner(
        Health(clock=clock.monotonic, draw=lambda: 0.0), clock.monotonic, draw=lambda: 0.0
    )
    big, small = ScriptedBackend(name="big"), ScriptedBackend(name="small")
    router = RetryingRouter(
        [Served(big, ["m", "n"]), Served(small, ["s"])],
        {"alias": "m"},
        manner=manner,
        fallbacks={"m": ["s"]},
    )
    assert router.target("m").backend is router.target("alias").backend
    assert router.target("m").backend is not router.target("n").backend
    assert router.target("alias").model == "m"
    assert router.target("m").backend.name == "big"


def test_the_members_of_a_routers_groups_are_measured_by_each_other() -> None:
    clock = Clock()
    health = Health(clock=clock.monotonic, draw=lambda: 0.0)
    manner = Manner(health, clock.monotonic, draw=lambda: 0.0)
    served = [Served(ScriptedBackend(name=name), ["m"]) for name in "ab"]
    RetryingRouter(served, {}, manner=manner, fallbacks={}, is_open=health.is_open)
    health.rest("a", 1.0)
    assert not health.is_open("a")


async def test_a_routers_fallback_is_found_by_the_clients_name_or_the_models() -> None:
    clock = Clock()
    manner = Manner(
        Health(clock=clock.monotonic, draw=lambda: 0.0),
        clock.monotonic,
        draw=lambda: 0.0,
        retries=0,
    )
    big = ScriptedBackend(BUSY, name="big")
    small = ScriptedBackend((opening(), Whole(body_of(model="s")), completed()), name="small")
    router = RetryingRouter(
        [Served(big, ["m"]), Served(small, ["s"])],
        {"alias": "m", "tiny": "s"},
        manner=manner,
        fallbacks={"m": ["tiny"]},
    )
    for name in ("m", "alias", "default"):
        pieces = [piece async for piece in router.target(name).backend.run(*asked())]
        assert answer_of(pieces)[0] == "small"
        assert pieces[0].fallback == "s"  # type: ignore[union-attr]  # an opening
