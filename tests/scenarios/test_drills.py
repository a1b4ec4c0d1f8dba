"""Failure drills: backends that die, refuse, hang and dawdle, and what the clients see of it."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.store.base import Selector
from tests.kit.clock import Ticks
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    DONE,
    WORDS,
    Reply,
    ScriptedUpstream,
    Seen,
    Step,
    chat_events,
    error_reply,
    event,
    stream_reply,
    well_behaved,
)
from tests.kit.service import Answer, Service, serving

TEXT = "".join(WORDS)
MANY_WORDS = [f"word{number} " for number in range(30)]
EVENTS = chat_events({"model": "m", "stream_options": {"include_usage": True}}, MANY_WORDS)
FAILOVER = {"retries": 2, "breaker_failures": 5}
SOON_S = 0.05

KILLS: dict[str, Callable[[], Sequence[Step]]] = {
    "FIN": lambda: ("fin",),
    "RST": lambda: ("rst",),
    "timeout": lambda: (Gate(),),
    "error event": lambda: (event({"error": {"message": "engine lost", "code": "lost"}}), DONE),
}


def killed(kill: str, point: int) -> Reply:
    """A stream that is killed after ``point`` events, and half of another where that can be."""
    half = [] if kill == "error event" else [EVENTS[point][:20]]
    return stream_reply(*EVENTS[:point], *half, *KILLS[kill]())


def error_of(answer: Answer) -> dict[str, Any]:
    """The error in which a stream ended, or that came instead of one."""
    error: dict[str, Any] = orjson.loads(answer.events[-1])["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("point", range(30))
@pytest.mark.parametrize("kill", list(KILLS))
async def test_a_stream_killed_at_any_point_ends_in_an_error_and_is_never_stored(
    kill: str, point: int
) -> None:
    limit_s = SOON_S if kill == "timeout" else 30.0
    upstream = ScriptedUpstream(killed(kill, point))
    async with serving(upstream=upstream, read_timeout=limit_s) as service:
        answer = await service.chat(True, stream=True)
        assert b"[DONE]" not in answer.raw
        assert error_of(answer)["type"] == "server_error"
        if point == 0:  # nothing of the answer was out: a status can still say it
            assert answer.status == (504 if kill == "timeout" else 502)
        else:
            assert answer.status == 200
            assert len(answer.events) == point + 1
        await service.settled()
        again = await service.chat(True, stream=True)
        assert (again.text, again.headers["X-Cache-Hit"]) == (TEXT, "false")
        assert service.upstream.calls == 2
        await service.settled()
        assert (await service.chat(True)).headers["X-Cache-Level"] == "response"


def storm(status: int, every: int) -> Callable[[Seen], Reply]:
    """Of ``every`` calls one is answered, the others are refused."""
    counted = iter(range(10_000))
    told = {"Retry-After-Ms": "5", "X-RateLimit-Remaining-Requests": "0", "X-Request-ID": "up-1"}

    def answer(seen: Seen) -> Reply:
        if next(counted) % every == every - 1:
            return well_behaved(seen)
        return error_reply(status, headers=told)

    return answer


async def asked_at_once(service: Service, count: int, name: str = "q") -> list[Answer]:
    """So many different questions at the same time."""
    questions = (
        service.chat(True, messages=[{"role": "user", "content": f"{name}{number}"}])
        for number in range(count)
    )
    return await asyncio.gather(*questions)


@pytest.mark.parametrize("every", [2, 10_000])
@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("breaker", [0, 5])
async def test_a_storm_of_refusals_is_not_answered_with_a_storm_of_tries(
    status: int, every: int, breaker: int
) -> None:
    offered = 100
    failover = {"retries": 2, "breaker_failures": breaker}
    async with serving(failover=failover) as service:
        service.upstream.otherwise = storm(status, every)
        answers = await asked_at_once(service, offered)
        assert service.upstream.calls <= 1.2 * offered
        refused = [answer for answer in answers if answer.status != 200]
        assert len(answers) - len(refused) <= service.upstream.calls / every
        assert {answer.status for answer in refused} == {status}  # the last backend is never closed
        for answer in refused:
            assert answer.headers["Retry-After"]
            assert answer.headers["X-RateLimit-Remaining-Requests"] == "0"
            assert answer.headers["X-Upstream-Request-ID"] == "up-1"
        assert (await service.send("GET", "/readyz")).body["status"] == "ready"


async def down(service: Service, ticks: Ticks) -> None:
    """Let the upstream die, and wait until a check has found it out."""
    await service.upstream.stop()
    await service.chat(messages=[{"role": "user", "content": "are you there?"}])
    await ticks.slept_once()


async def test_a_dead_backend_is_left_alone_until_a_check_finds_it_alive() -> None:
    ticks = Ticks()
    async with serving(failover=FAILOVER, scripted_durations=True, sleep=ticks.sleep) as service:
        await down(service, ticks)
        for number in range(20):
            question = [{"role": "user", "content": str(number)}]
            answer = await service.chat(messages=question)
            assert (answer.status, answer.error["code"]) == (503, "backend_down")
            assert answer.headers["Retry-After"] == "5"
        await ticks.tick()
        await ticks.slept_once()
        assert (await service.chat()).status == 503
        await service.upstream.start()
        await ticks.tick()
        await ticks.slept_once()
        assert (await service.chat()).text == TEXT
        assert ticks.slept == pytest.approx([1.0] * 3)
        assert [seen.path for seen in service.upstream.checked] == ["/v1/models"] * 2


@asynccontextmanager
async def two(*first: Reply, **options: Any) -> Any:
    """A gateway over two upstreams that serve the same, asked in turn; the first has a script."""
    async with AsyncExitStack() as stack:
        broken, sound = [
            await stack.enter_async_context(ScriptedUpstream(*replies)) for replies in (first, ())
        ]
        backends = [
            {"name": name, "base_url": one.url, "models": ["m"], **options}
            for name, one in (("broken", broken), ("sound", sound))
        ]
        routing = {"strategy": "round_robin"}
        service = await stack.enter_async_context(
            serving(backends=backends, routing=routing, failover=FAILOVER)
        )
        yield service, broken, sound


async def test_when_one_of_two_dies_no_client_notices() -> None:
    async with two() as (service, broken, sound):
        await broken.stop()
        answers = [*await asked_at_once(service, 30), *await asked_at_once(service, 30, "later")]
        assert {answer.status for answer in answers} == {200}
        assert sound.calls == 60
        await service.settled()
        assert (await asked_at_once(service, 1))[0].headers["X-Cache-Level"] == "response"
        ready = await service.send("GET", "/readyz")
        assert (ready.status, ready.body["status"]) == (200, "degraded")
        assert ready.body["backends"] == {"broken": "down"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_black_hole_is_given_up_for_its_fellow(stream: bool) -> None:
    limits = {"first_token_timeout": SOON_S, "read_timeout": 0.2}
    async with two(Reply((Gate(),)), **limits) as (service, broken, sound):
        answer = await service.chat(stream=stream)
        assert answer.text == TEXT
        await broken.seen[0].gone.wait()  # and it is not left computing
        assert (broken.calls, sound.calls) == (1, 1)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ((), "backend_first_token_timeout"),
        ((b": hello\n\n",), "backend_first_token_timeout"),
        ((EVENTS[0],), "backend_timeout"),
    ],
    ids=["says nothing", "says hello", "says one word"],
)
async def test_each_wait_has_its_own_limit_and_code(said: Sequence[Step], code: str) -> None:
    upstream = ScriptedUpstream(stream_reply(*said, Gate()))
    limits = {"first_token_timeout": SOON_S, "read_timeout": 4 * SOON_S}
    async with upstream:
        backend = {"name": "up", "base_url": upstream.url, "models": ["m"], **limits}
        async with serving(backends=[backend]) as service:
            answer = await service.chat(stream=True)
            assert error_of(answer)["code"] == code
            assert answer.status == (200 if said else 504)  # what was said has been passed on


@pytest.fixture
def full_house() -> Iterator[str]:
    """An address whose queue of connections is full: the next one is not even refused."""
    with ExitStack() as stack:
        listener, *guests = [stack.enter_context(socket.socket()) for _ in range(5)]
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for guest in guests:
            guest.setblocking(False)  # positional only
            guest.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


async def test_a_connection_that_is_not_made_in_time_has_its_own_code(full_house: str) -> None:
    backend = {"name": "up", "base_url": full_house, "models": ["m"], "connect_timeout": SOON_S}
    async with serving(backends=[backend]) as service:
        answer = await service.chat()
        assert (answer.status, answer.error["code"]) == (504, "backend_connect_timeout")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_slow_trickle_is_silence(stream: bool) -> None:
    drops = [step for byte in EVENTS[1] * 9 if byte != 10 for step in (bytes([byte]), 0.002)]
    upstream = ScriptedUpstream(stream_reply(EVENTS[0], *drops))
    async with serving(upstream=upstream, read_timeout=4 * SOON_S) as service:
        answer = await service.chat(True, stream=stream)
        assert error_of(answer)["code"] == "backend_timeout"
        await upstream.seen[0].gone.wait()
        assert (await service.chat(True)).headers["X-Cache-Hit"] == "false"


async def test_with_all_backends_down_what_is_stored_goes_on_being_served() -> None:
    hot = {"enabled": True, "tier": "hot", "ttl": 100}
    ticks = Ticks()
    async with serving(failover=FAILOVER, scripted_durations=True, sleep=ticks.sleep) as service:
        computed = await service.chat(hot)
        await service.settled()
        await down(service, ticks)
        lost = await service.chat(True, messages=[{"role": "user", "content": "another"}])
        assert (lost.status, lost.error["code"]) == (503, "backend_down")
        calls = service.upstream.calls

        fresh = await service.chat(hot)
        assert (fresh.text, fresh.headers["X-Cache-Level"]) == (computed.text, "response")
        service.clock.advance(200)  # past its ttl, within stale_if_error; and past the pause
        stale = await service.chat(hot)
        assert (stale.text, stale.headers["X-Cache-Stale"]) == (computed.text, "true")
        again = await service.chat(hot, stream=True)
        assert (again.text, again.headers["X-Cache-Stale"]) == (computed.text, "true")
        assert service.upstream.calls == calls

        ready = await service.send("GET", "/readyz")
        assert (ready.status, ready.body["status"]) == (200, "degraded")
        assert ready.body["backends"] == {"up": "down"}

        await service.upstream.start()
        await ticks.tick()
        await ticks.slept_once()
        back = await service.chat(hot)
        assert (back.headers["X-Cache-Hit"], back.headers.get("X-Cache-Stale")) == ("false", None)
        assert (await service.send("GET", "/readyz")).body["status"] == "ready"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_fallback_models_answer_is_marked_and_never_stored(stream: bool) -> None:
    async with ScriptedUpstream() as large, ScriptedUpstream() as small:
        large.otherwise = lambda _: error_reply(503)
        backends = [
            {"name": name, "base_url": one.url, "models": [model]}
            for name, one, model in (("large", large, "m"), ("small", small, "s"))
        ]
        async with serving(backends=backends, fallbacks={"m": ["s"]}) as service:
            for _ in range(2):
                answer = await service.chat(True, stream=stream)
                await service.settled()
                assert answer.text == TEXT
                assert answer.headers["X-Cache-Fallback"] == "s"
                assert "detail=fallback" in answer.headers["Cache-Status"]
                assert "stored" not in answer.headers["Cache-Status"]
                assert "X-Cache-TTL" not in answer.headers
                assert answer.headers["X-Cache-Hit"] == "false"
                body = answer.chunks[0] if stream else answer.body
                assert body["model"] == "s"
            assert [seen.body["model"] for seen in small.seen] == ["s", "s"]
            assert not await service.gateway.store.scan(Selector(None), after=None, limit=1)

            large.otherwise = well_behaved
            own = await service.chat(True, stream=stream)
            assert "X-Cache-Fallback" not in own.headers
            await service.settled()
            kept = await service.chat(True)
            assert (kept.headers["X-Cache-Level"], kept.body["model"]) == ("response", "m")


async def test_what_a_fallback_model_refuses_is_not_remembered_of_the_first_model() -> None:
    async with ScriptedUpstream() as large, ScriptedUpstream() as small:
        large.otherwise = lambda _: error_reply(503)
        small.otherwise = lambda _: error_reply(422)
        backends = [
            {"name": name, "base_url": one.url, "models": [model]}
            for name, one, model in (("large", large, "m"), ("small", small, "s"))
        ]
        async with serving(backends=backends, fallbacks={"m": ["s"]}) as service:
            assert (await service.chat(True)).status == 503
            await service.settled()
            large.otherwise = well_behaved
            assert (await service.chat(True)).text == TEXT


@pytest.mark.parametrize("every", [2, 3, 10_000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_storm_of_resets_is_not_answered_with_a_storm_of_tries(
    every: int, *, at_once: bool
) -> None:
    offered = 50
    async with serving(failover={"retries": 2, "breaker_failures": 0}) as service:
        counted = iter(range(10_000))

        def answer(seen: Seen) -> Reply:
            return well_behaved(seen) if next(counted) % every == every - 1 else Reply(("rst",))

        service.upstream.otherwise = answer
        if at_once:
            answers = await asked_at_once(service, offered)
        else:
            answers = [(await asked_at_once(service, 1, f"{n} "))[0] for n in range(offered)]
        assert service.upstream.calls <= 1.2 * offered
        assert {answer.status for answer in answers} <= {200, 502}
        assert sum(answer.status == 200 for answer in answers) >= offered // every - 1


async def test_an_upstreams_own_queue_full_is_its_own_refusal() -> None:
    async with two() as (service, busy, sound):
        busy.otherwise = lambda _: error_reply(429, code="queue_full")
        answers = [(await asked_at_once(service, 1, f"{n} "))[0] for n in range(8)]
        assert {answer.status for answer in answers} == {200}
        assert sound.calls == 8
        assert busy.calls == 1  # then it is passed over for a while
        await sound.stop()
        refused = (await asked_at_once(service, 1, "last "))[0]
        assert (refused.status, refused.error["code"]) == (429, "queue_full")


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_stream_that_falls_silent_ends_long_before_the_limit_for_reading(
    pieces: int,
) -> None:
    async with ScriptedUpstream(stream_reply(*EVENTS[:pieces], Gate())) as upstream:
        limits = {"read_timeout": 300, "stream_idle_timeout": SOON_S}
        backend = {"name": "up", "base_url": upstream.url, "models": ["m"], **limits}
        async with serving(backends=[backend]) as service:
            answer = await service.chat(True, stream=True)
            assert error_of(answer)["code"] == "backend_timeout"
            assert len(answer.events) == pieces + 1
            await upstream.seen[0].gone.wait()
