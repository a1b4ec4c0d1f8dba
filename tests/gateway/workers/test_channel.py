"""A line between two processes: here both ends in one."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.flights import Tasks
from gateway.workers import channel as module
from gateway.workers.channel import Channel, ChannelError, Handler


class Line:
    """Both ends, and what each has heard."""

    def __init__(self) -> None:
        self.tasks = Tasks()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.ends: list[Channel] = []

    async def connect(
        self, handlers: Mapping[str, Handler] | None = None
    ) -> tuple[Channel, Channel]:
        pair = socket.socketpair()
        for sock, table in zip(pair, ({}, handlers or {"note": self.heard.put}), strict=True):
            sock.setblocking(False)
            end = await Channel.over(sock, tasks=self.tasks, handlers=table)
            self.tasks.start(end.run(), name="channel")
            self.ends.append(end)
        return self.ends[0], self.ends[1]


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    structlog.reset_defaults()
    line = Line()
    yield line
    for end in line.ends:
        end.close()
    await line.tasks.close()


async def test_what_is_said_arrives_in_order(line: Line) -> None:
    here, _ = await line.connect()
    for number in range(3):
        here.say("note", {"number": number})
    assert [(await line.heard.get())["number"] for _ in range(3)] == [0, 1, 2]


async def test_a_question_gets_its_own_answer(line: Line) -> None:
    first_may_go = asyncio.Event()

    async def answer(number: int) -> int:
        if number == 1:
            await first_may_go.wait()
        first_may_go.set()
        return number * 10

    here, _ = await line.connect({"times": answer})
    answers = await asyncio.gather(*(here.ask("times", n, within_s=10) for n in (1, 2)))
    assert answers == [10, 20]


async def test_both_ends_may_ask(line: Line) -> None:
    async def double(number: int) -> int:
        return 2 * number

    pair = socket.socketpair()
    ends = [await Channel.over(s, tasks=line.tasks, handlers={"double": double}) for s in pair]
    line.ends += ends
    for end in ends:
        line.tasks.start(end.run(), name="channel")
    assert [await end.ask("double", 4, within_s=10) for end in ends] == [8, 8]


async def test_a_handler_that_fails_is_a_refusal_and_the_channel_lives_on(line: Line) -> None:
    async def fail(_: Any) -> None:
        raise ValueError("no such thing")

    here, there = await line.connect({"fail": fail})
    with capture_logs() as logs:
        with pytest.raises(ChannelError, match="ValueError: no such thing"):
            await here.ask("fail", within_s=10)
        with pytest.raises(ChannelError, match="KeyError"):
            await here.ask("unheard of", within_s=10)
    assert [entry["event"] for entry in logs] == ["message not handled"] * 2
    assert here.open
    assert there.open


async def test_an_answer_that_does_not_come_in_time_is_not_waited_for(line: Line) -> None:
    release = asyncio.Event()

    async def hang(_: Any) -> None:
        await release.wait()

    here, _ = await line.connect({"hang": hang})
    with pytest.raises(ChannelError, match=r"no answer within 0\.01 s"):
        await here.ask("hang", within_s=0.01)
    assert repr(here) == "<Channel open: 0 questions unanswered>"
    release.set()  # the late answer is nobody's
    with pytest.raises(ChannelError, match="KeyError"):
        await here.ask("still there?", within_s=10)


async def test_whoever_waits_learns_that_the_other_end_is_gone(line: Line) -> None:
    asked = asyncio.Event()

    async def hang(_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    here, there = await line.connect({"hang": hang})
    waiting = asyncio.gather(here.ask("hang", within_s=60), return_exceptions=True)
    await asked.wait()
    there.close()
    (error,) = await waiting
    assert isinstance(error, ChannelError)
    assert not here.open
    with pytest.raises(ChannelError, match="gone"):
        await here.ask("hang", within_s=60)
    here.say("note", "lost without a word")


async def test_what_is_no_message_ends_the_channel(line: Line) -> None:
    pair = socket.socketpair()
    end = await Channel.over(pair[0], tasks=line.tasks, handlers={})
    with capture_logs() as logs, pair[1]:
        pair[1].sendall(b"not json\n")
        await end.run()
    assert not end.open
    assert logs[0]["event"] == "channel broken"


async def test_an_end_that_never_reads_counts_as_gone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD_BYTES", 2**20)
    pair = socket.socketpair()
    end = await Channel.over(pair[0], tasks=line.tasks, handlers={})
    with pair[1]:
        for _ in range(40):
            end.say("note", "x" * 2**16)
        assert not end.open
