"""News between gateways on one server: heard by all others, none lost without a word."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError
from structlog.testing import capture_logs

from gateway.flights import Tasks
from gateway.store.base import StoreError
from gateway.store.redis_client import connect
from gateway.store.redis_news import KEPT, SILENCE_S, RedisNews
from gateway.store.sharing import MISSED
from tests.kit import redis_server
from tests.kit.slow_wire import slow_wire


class Ear:
    """What one gateway heard."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []
        self.gaps = 0
        self._changed = asyncio.Condition()

    async def hear(self, message: Mapping[str, Any]) -> None:
        self.heard.append(message)
        await self._tell()

    async def miss(self, message: Mapping[str, Any]) -> None:
        self.gaps += 1
        await self._tell()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(wanted)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def at_once(_: float) -> None:
    """No waiting between attempts to listen again: a test's server is back soon."""
    await asyncio.sleep(0)


@asynccontextmanager
async def gateway(
    url: str, place: str, name: str, *, patience_s: float = 30, silence_s: float = SILENCE_S
) -> AsyncIterator[tuple[RedisNews, Ear, Redis]]:
    """One gateway that listens."""
    client, tasks, ear = connect(url, limit_s=10), Tasks(), Ear()
    news = RedisNews(
        client,
        token=name,
        tasks=tasks,
        namespace=place,
        patience_s=patience_s,
        silence_s=silence_s,
        sleep=at_once,
    )
    news.listen("topic", ear.hear)
    news.listen(MISSED, ear.miss)
    await news.subscribed.wait()
    try:
        yield news, ear, client
    finally:
        await tasks.close()
        await client.aclose()


async def test_what_one_tells_all_others_have_heard_when_it_returns() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with (
        gateway(url, place, "a") as (a, at_a, _),
        gateway(url, place, "b") as (_, at_b, _),
        gateway(url, place, "c") as (c, at_c, _),
    ):
        for number in range(20):
            await a.tell("topic", {"n": number})
            assert at_b.heard[-1] == at_c.heard[-1] == {"n": number}
        await c.tell("topic", {"from": "c"})
        assert at_a.heard == [{"from": "c"}], "and not what it told itself"
        assert at_b.gaps == 0
        assert repr(a) == "<RedisNews 2 topics, subscribed>"


async def test_many_tell_at_once() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with (
        gateway(url, place, "a") as (a, at_a, _),
        gateway(url, place, "b") as (b, at_b, _),
    ):
        await asyncio.gather(*(one.tell("topic", {"n": n}) for n in range(50) for one in (a, b)))
        for ear in (at_a, at_b):
            assert sorted(message["n"] for message in ear.heard) == list(range(50))
        assert not a._heard
        assert not a._waiting


async def test_a_topic_nobody_listens_to_is_told_into_the_void() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with gateway(url, place, "a") as (a, _, _):
        await a.tell("other", {"n": 1})


async def test_one_that_does_not_answer_is_waited_for_no_longer_than_patience_lasts() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with (
        gateway(url, place, "a", patience_s=0.05) as (a, _, client),
        client.pubsub() as frozen,
    ):
        await frozen.subscribe(f"{place}:news:topic")
        await frozen.get_message(timeout=10)
        await a.tell("topic", {"n": 1})


async def test_a_listener_that_fails_silences_nobody() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    with capture_logs() as log:
        async with (
            gateway(url, place, "a", patience_s=0.05) as (a, _, _),
            gateway(url, place, "b") as (b, at_b, _),
        ):

            async def fail(message: Mapping[str, Any]) -> None:
                raise ValueError("no")

            b._listeners[b._prefix + b"topic"].insert(0, fail)
            await a.tell("topic", {"n": 1})
            await a.tell("topic", {"n": 2})
            assert at_b.heard == [{"n": 1}, {"n": 2}]
    assert [line["event"] for line in log] == ["news not heard"] * 2


async def test_what_is_no_news_is_passed_over() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    with capture_logs() as log:
        async with (
            gateway(url, place, "a") as (a, _, client),
            gateway(url, place, "b") as (_, at_b, _),
        ):
            for data in (b"", b"x y", b"1 {", b"1 []", b'1 {"from": "a"}'):
                await client.publish(f"{place}:news:topic", data)
            await a.tell("topic", {"n": 1})
            assert at_b.heard == [{"n": 1}]
    assert {line["event"] for line in log} == {"news not understood"}


async def test_what_was_told_while_the_connection_was_lost_is_heard_later() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with (
        gateway(url, place, "a", patience_s=0.01) as (a, _, client),
        gateway(url, place, "b") as (_, at_b, _),
    ):
        await a.tell("topic", {"n": 0})
        for cut in range(1, 6):
            await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
            await a.tell("topic", {"n": cut})
            await at_b.until(lambda cut=cut: at_b.heard[-1] == {"n": cut})  # type: ignore[misc]
        assert at_b.heard == [{"n": number} for number in range(6)]
        assert at_b.gaps == 0


async def test_one_who_was_away_for_too_long_is_told_that_he_missed_something() -> None:
    url, place = redis_server.shared().url, redis_server.namespace()
    async with (
        gateway(url, place, "a", patience_s=0.01) as (a, _, client),
        gateway(url, place, "b") as (b, at_b, _),
    ):
        await a.tell("topic", {"n": 0})
        b._last[b._prefix + b"topic"] -= KEPT + 10  # as if it had last listened long ago
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        await at_b.until(lambda: at_b.gaps == 1)
        await b.subscribed.wait()
        await a.tell("topic", {"n": 1})
        assert at_b.heard[-1] == {"n": 1}
        assert at_b.gaps == 1


async def test_what_was_told_into_a_dead_connection_is_heard_on_the_next() -> None:
    server, place = redis_server.shared(), redis_server.namespace()
    async with (
        slow_wire(server.socket) as wire,
        gateway(server.url, place, "a", patience_s=0.01) as (a, _, _),
        gateway(wire.url, place, "b", silence_s=0.2) as (_, at_b, of_b),
    ):
        await a.tell("topic", {"n": 0})
        await of_b.connection_pool.disconnect(inuse_connections=False)  # only the listener is left
        wire.go_dead()
        await a.tell("topic", {"n": 1})
        assert at_b.heard == [{"n": 0}]
        async with asyncio.timeout(20):
            await at_b.until(lambda: at_b.heard == [{"n": 0}, {"n": 1}])
        assert at_b.gaps == 0


class Line:
    """A subscription that says what the test wants; None is a silence."""

    def __init__(self, *said: str | None) -> None:
        self._said = iter(said)
        self.pings = 0

    async def subscribe(self, *_: bytes) -> None:
        pass

    async def get_message(self, *, timeout: float | None) -> Mapping[str, Any] | None:
        assert timeout is not None, "else nobody notices that it is dead"
        said = next(self._said)
        return {"type": said, "channel": None, "data": b""} if said else None

    async def ping(self) -> None:
        self.pings += 1


async def test_a_line_that_is_only_quiet_is_kept_and_one_that_does_not_answer_is_given_up() -> None:
    place = redis_server.namespace()
    async with gateway(redis_server.shared().url, place, "a") as (a, _, _):
        line = Line(*["subscribe"] * 3, None, "pong", None, "subscribe", None, None)
        with pytest.raises(StoreError, match="dead"):
            await a._follow(line)  # type: ignore[arg-type]
        assert line.pings == 3


async def test_what_is_told_by_a_full_server_is_heard_and_kept() -> None:
    with redis_server.running("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        async with (
            gateway(server.url, "p", "a") as (a, _, client),
            gateway(server.url, "p", "b") as (_, at_b, _),
        ):
            with suppress(OutOfMemoryError):
                while True:
                    await client.append("fill", b"x" * 10_000)
            await a.tell("topic", {"n": 1})
            assert at_b.heard == [{"n": 1}]
            assert await client.llen("p:news:topic:kept") == 1


async def test_a_server_that_lost_everything_leaves_a_gap_and_then_works_again() -> None:
    with redis_server.running() as server:
        async with (
            gateway(server.url, "p", "a", patience_s=30) as (a, at_a, _),
            gateway(server.url, "p", "b") as (b, at_b, _),
        ):
            await a.tell("topic", {"n": 0})
            for news in (a, b):
                news.subscribed.clear()
            server.kill()
            with pytest.raises(StoreError):
                await a.tell("topic", {"n": 1})
            server.start()
            for news, ear in ((a, at_a), (b, at_b)):
                await ear.until(lambda ear=ear: ear.gaps == 1)  # type: ignore[misc]
                await news.subscribed.wait()
            await a.tell("topic", {"n": 2})
            assert at_b.heard == [{"n": 0}, {"n": 2}]
