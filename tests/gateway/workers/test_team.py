"""A worker's view of the others: the supervisor's side is played by the test."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from gateway.backends.embedded import EngineView
from gateway.backends.replicas import locate, waits_for
from gateway.errors import BackendFault
from gateway.flights import Tasks
from gateway.numbers import Numbers
from gateway.store.base import StoreError
from gateway.tally import Statistics
from gateway.workers.channel import Channel, ChannelError, Handler
from gateway.workers.team import FarEngines, Team, told
from tests.kit.clock import Clock


class Bench:
    """A team and the other end of its channel."""

    def __init__(self) -> None:
        self.tasks = Tasks()
        self.asked: list[Any] = []

    async def team(self, **handlers: Handler) -> Team:
        ends = [
            await Channel.over(sock, tasks=self.tasks, handlers=table)
            for sock, table in zip(socket.socketpair(), ({}, handlers), strict=True)
        ]
        for end in ends:
            self.tasks.start(end.run(), name="channel")
        return Team(2, kv_secret=b"s", channel=ends[0], engines=None)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.tasks.close()


async def test_news_go_to_the_supervisor_and_return_when_all_have_heard(bench: Bench) -> None:
    all_heard = asyncio.Event()

    async def tell(news: Any) -> None:
        bench.asked.append(news)
        await all_heard.wait()

    team = await bench.team(tell=tell)
    telling = bench.tasks.start(team.news.tell("clear", {"tenant": "acme"}), name="telling")
    while not bench.asked:  # noqa: ASYNC110 - it comes through a socket
        await asyncio.sleep(0)
    assert not telling.done()
    all_heard.set()
    await telling
    assert bench.asked == [{"topic": "clear", "message": {"tenant": "acme"}}]


async def test_that_one_has_not_heard_is_a_failure_of_the_store(bench: Bench) -> None:
    async def tell(_: Any) -> None:
        raise ChannelError("worker 3: no answer within 5 s")

    team = await bench.team(tell=tell)
    with pytest.raises(StoreError, match=r"'clear'.*worker 3: no answer"):
        await team.news.tell("clear", {})


async def test_each_listener_of_a_topic_hears_it(bench: Bench) -> None:
    heard: list[tuple[str, Mapping[str, Any]]] = []

    async def one(message: Mapping[str, Any]) -> None:
        heard.append(("one", message))

    async def two(message: Mapping[str, Any]) -> None:
        heard.append(("two", message))

    team = await bench.team()
    team.news.listen("clear", one)
    team.news.listen("clear", two)
    team.news.listen("context", one)
    await team.news.hear({"topic": "clear", "message": {"a": 1}})
    await team.news.hear({"topic": "nobody's", "message": {}})
    assert heard == [("one", {"a": 1}), ("two", {"a": 1})]


async def test_what_the_others_counted_is_asked_for(bench: Bench) -> None:
    async def others(_: Any) -> Any:
        return Numbers(Statistics(), flights=3).as_dict()

    found = await (await bench.team(others=others)).others()
    assert found is not None
    assert found.flights == 3


async def test_when_nobody_can_say_what_the_others_counted_there_is_no_answer(bench: Bench) -> None:
    assert await (await bench.team()).others() is None


def test_an_engine_is_starting_until_something_else_is_said() -> None:
    engines = FarEngines()
    assert waits_for(engines) == "starting"
    with pytest.raises(BackendFault) as caught:
        locate(engines, "embedded")
    assert (caught.value.status, caught.value.code) == (503, "engine_starting")
    engines.hear(told({"embedded": EngineView("ready", "http://127.0.0.1:9")}))
    assert locate(engines, "embedded") == "http://127.0.0.1:9/v1"
    assert repr(engines) == "<FarEngines embedded=ready>"


def test_who_watches_hears_of_each_engine_that_is_not_what_it_was() -> None:
    engines, heard = FarEngines(), list[str]()
    engines.watch(heard.append)
    one, two = EngineView("ready", "http://127.0.0.1:9"), EngineView("starting")
    engines.hear(told({"embedded": one, "embedded-2": two}))
    assert heard == ["embedded", "embedded-2"]
    engines.hear(told({"embedded": one, "embedded-2": EngineView("starting", retry_s=9.0)}))
    assert heard == ["embedded", "embedded-2"]
    engines.hear(told({"embedded": EngineView("ready", "http://127.0.0.1:8"), "embedded-2": two}))
    assert heard == ["embedded", "embedded-2", "embedded"]


@pytest.mark.parametrize(
    ("passed_s", "retry_s"),
    [(0.0, 10.0), (4.0, 6.0), (60.0, 2.0)],
    ids=["now", "later", "long ago"],
)
def test_the_time_to_ask_again_goes_on_after_it_was_said(passed_s: float, retry_s: float) -> None:
    clock = Clock()
    engines = FarEngines(clock.monotonic)
    engines.hear(told({"embedded": EngineView("restarting", None, 10.0)}))
    clock.advance(passed_s)
    with pytest.raises(BackendFault) as caught:
        locate(engines, "embedded")
    assert caught.value.retry_after_s == retry_s


async def test_starting_and_stopping_the_engines_is_the_supervisors_affair() -> None:
    engines = FarEngines()
    engines.hear(told({"embedded": EngineView("ready", "http://127.0.0.1:9")}))
    await engines.start()
    await engines.stop()
    assert waits_for(engines) is None
