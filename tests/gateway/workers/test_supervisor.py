"""The supervisor with real processes that only pretend to be workers; delays are injected."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config import Config
from gateway.numbers import Numbers
from gateway.store.base import Fill
from gateway.tally import Group, Statistics
from gateway.workers import supervisor as module
from gateway.workers.supervisor import FAILED, INTERRUPTED, Supervisor
from policies.outcome import Outcome

KIT = Path(__file__).parent.parent.parent / "kit"
FAKE = (sys.executable, str(KIT / "fake_worker.py"))
UP = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}


def listening(address: tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen()
    return sock


class Bench:
    """A supervisor whose workers each have a port of their own, so that one can be addressed."""

    def __init__(self, workers: int = 2, **kwargs: Any) -> None:
        self.logs: list[Any] = []
        self.listeners = [listening() for _ in range(workers)]
        self.addresses = [sock.getsockname() for sock in self.listeners]
        self.delays: list[int] = []
        self.supervisor = Supervisor(
            Config.model_validate(
                {
                    "backends": [UP],
                    "server": {"shutdown_grace_s": 0.2},
                    "tiers": {"cold": {"store": "memory"}},
                }
            ),
            self.listeners,
            url="http://here",
            bind=lambda: listening(self.addresses[0]),
            **{"command": FAKE, "delay_after": self.delay_after, **kwargs},
        )
        self.running: asyncio.Task[int] | None = None
        self.delay_s = 0.0

    def delay_after(self, crashes: int) -> float:
        self.delays.append(crashes)
        return self.delay_s

    async def start(self) -> None:
        self.running = asyncio.get_running_loop().create_task(self.supervisor.run())
        await self.says("listening")

    def events(self, name: str) -> list[Any]:
        return [line for line in self.logs if line["event"] == name]

    async def says(self, event: str, times: int = 1) -> None:
        await until(lambda: len(self.events(event)) >= times)

    async def do(self, worker: int, **wish: Any) -> Any:
        reader, writer = await asyncio.open_connection(*self.addresses[worker - 1])
        writer.write(json.dumps(wish).encode() + b"\n")
        answer = await reader.readline()
        writer.close()
        return json.loads(answer) if answer else None

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        os.kill(os.getpid(), number)
        assert self.running is not None
        return await self.running

    def spare(self) -> int | None:
        """The process that waits and hears."""
        waiting = self.supervisor._spare
        return waiting[0].process.pid if waiting is not None and waiting[0].hears else None

    def pids(self) -> list[int]:
        return [line["pid"] for line in self.events("worker starting")]


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Bench]]:
    structlog.reset_defaults()
    made: list[Bench] = []

    def make(workers: int = 2, **kwargs: Any) -> Bench:
        made.append(Bench(workers, **kwargs))
        made[0].logs = logs
        return made[0]

    with capture_logs() as logs:
        yield make
        for bench in made:
            if bench.running is not None and not bench.running.done():
                bench.supervisor._stopping.set()
                bench.supervisor._halting.set()
                await bench.running
            for sock in bench.listeners:
                sock.close()
            assert not [pid for pid in bench.pids() if alive(pid)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; there is no event to wait for."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def seen_from_outside(secret: str, *, of: int) -> bool:
    """In the command line or the environment."""
    files = [Path(f"/proc/{of}/{name}") for name in ("cmdline", "environ")]
    return any(secret.encode() in file.read_bytes() for file in files)


def counted(requests: int) -> dict[str, Any]:
    statistics = Statistics()
    group = Group("chat", "none", 200, "hot", "m", "acme", "cold")
    for _ in range(requests):
        outcome = Outcome(key="k", tier="hot")
        statistics.group(group).add(outcome, seconds=0.1, seconds_saved=0.0, money=0.0)
    return Numbers(statistics, [Fill("hot", "memory", requests, 10, 100, requests)]).as_dict()


async def test_it_says_once_where_it_listens_and_ends_with_its_workers(
    make: Callable[..., Bench],
) -> None:
    bench = make(3)
    await bench.start()
    (line,) = bench.events("listening")
    assert (line["url"], line["models"], line["workers"]) == ("http://here", ["m"], 3)
    assert sorted(line["worker"] for line in bench.events("worker serving")) == [1, 2, 3]
    assert await bench.stop() == 0
    assert all(line["exit_code"] == 0 for line in bench.events("worker ended"))
    assert repr(bench.supervisor) == "<Supervisor 0/3 serving, engines None>"


async def test_all_workers_have_one_secret_and_none_is_to_be_seen_from_outside(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    await bench.start()
    states = [await bench.do(worker, do="state") for worker in (1, 2)]
    assert [state["handover"]["worker"] for state in states] == [1, 2]
    (secret,) = {state["handover"]["kv_secret"] for state in states}
    assert len(bytes.fromhex(secret)) == 32
    for state in states:
        assert state["sid"] == state["pid"]  # a Ctrl-C in our terminal does not reach it
        assert not seen_from_outside(secret, of=state["pid"])


async def test_a_killed_worker_is_replaced_at_once_on_the_same_listener(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    await bench.start()
    before = (await bench.do(1, do="state"))["pid"]
    os.kill(before, signal.SIGKILL)
    await bench.says("worker serving", 3)
    after = await bench.do(1, do="state")
    assert after["pid"] != before
    assert after["handover"]["worker"] == 1
    assert bench.events("worker ended")[0]["signal"] == "SIGKILL"
    assert not bench.events("worker restarts")
    assert len(bench.events("listening")) == 1


async def test_a_replacement_waits_loaded_and_is_itself_replaced(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    await bench.start()
    taken: list[int | None] = []
    for times in range(2):
        await until(lambda: bench.spare() not in {None, *taken})
        taken.append(bench.spare())
        await bench.do(2, do="exit", code=9)
        await bench.says("worker serving", 3 + times)
        assert (await bench.do(2, do="state"))["pid"] == taken[-1]
    await until(lambda: bench.spare() not in {None, *taken})
    last = bench.spare()
    assert await bench.stop() == 0
    assert last is not None
    await until(lambda: not alive(last))


async def test_a_spare_that_died_is_not_taken(make: Callable[..., Bench]) -> None:
    bench = make()
    await bench.start()
    await until(lambda: bench.spare() is not None)
    dead = bench.spare()
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    await until(lambda: bench.spare() is None)
    await bench.do(1, do="exit", code=9)
    await bench.says("worker serving", 3)
    await until(lambda: bench.spare() is not None)


async def test_without_a_spare_it_serves_on(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = Supervisor._spawn

    async def refuse(supervisor: Supervisor, *places: Any) -> Any:
        if len(places) > 1:
            raise OSError("no memory")
        return await spawn(supervisor, *places)

    monkeypatch.setattr(Supervisor, "_spawn", refuse)
    bench = make()
    await bench.start()
    await bench.says("no spare worker")
    await bench.do(1, do="exit", code=9)
    await bench.says("worker serving", 3)


async def test_after_several_crashes_the_next_start_waits_and_takes_no_share_meanwhile(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    bench.delay_s = 0.01
    await bench.start()
    for times in range(3):
        await bench.do(1, do="exit", code=9)
        await bench.says("worker serving", 3 + times)
    assert bench.delays == [1, 2, 3]
    assert len(bench.events("worker restarts")) == 3
    assert (await bench.do(1, do="state"))["handover"]["worker"] == 1


async def test_a_stop_does_not_wait_for_the_end_of_a_pause(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.delay_s = 3600
    await bench.start()
    await bench.do(1, do="exit", code=9)
    await bench.says("worker restarts")
    with pytest.raises(ConnectionError):
        await bench.do(1, do="state")
    assert await bench.stop() == 0


async def test_a_worker_that_ends_as_it_should_is_replaced_and_no_crash(
    make: Callable[..., Bench],
) -> None:
    bench = make()
    await bench.start()
    await bench.do(1, do="exit", code=0)
    await bench.says("worker serving", 3)
    assert bench.delays == [0]


async def test_crashes_long_ago_do_not_count(make: Callable[..., Bench]) -> None:
    now_s = 0.0
    bench = make(clock=lambda: now_s)
    await bench.start()
    await bench.do(1, do="exit", code=9)
    await bench.says("worker serving", 3)
    now_s = module.STEADY_S
    await bench.do(1, do="exit", code=9)
    await bench.says("worker serving", 4)
    assert bench.delays == [1, 1]


def test_pauses_double_up_to_half_a_minute() -> None:
    pauses = [module._delay_after(crashes) for crashes in range(12)]
    assert pauses == [0, 0, 0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert module._delay_after(10**6) == 30


async def test_a_worker_that_cannot_start_ends_everything(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_TEST_WORKER", "exit=1")
    bench = make()
    async with asyncio.timeout(20):
        assert await bench.supervisor.run() == FAILED
    assert bench.events("a worker cannot start; the reason is above")
    assert not bench.events("listening")


async def test_a_command_that_cannot_be_run_ends_everything(make: Callable[..., Bench]) -> None:
    bench = make(command=("/nonexistent/python",))
    async with asyncio.timeout(20):
        assert await bench.supervisor.run() == FAILED
    assert bench.events("worker not started")


async def test_news_reach_all_others_and_not_the_teller(make: Callable[..., Bench]) -> None:
    bench = make(3)
    await bench.start()
    news = {"topic": "clear", "message": {"tenant": "acme"}}
    answer = await bench.do(2, do="ask", kind="tell", body=news)
    assert "error" not in answer
    heard = [(await bench.do(worker, do="state"))["heard"] for worker in (1, 2, 3)]
    assert heard == [[news], [], [news]]


async def test_the_dead_need_not_hear(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.delay_s = 3600
    await bench.start()
    await bench.do(1, do="exit", code=9)
    await bench.says("worker ended")
    answer = await bench.do(2, do="ask", kind="tell", body={"topic": "clear", "message": {}})
    assert "error" not in answer


async def test_one_that_lives_and_does_not_hear_is_named(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_TEST_WORKER", "deaf")
    monkeypatch.setattr(module, "HEARD_WITHIN_S", 0.05)
    bench = make()
    await bench.start()
    answer = await bench.do(2, do="ask", kind="tell", body={"topic": "clear", "message": {}})
    assert "worker 1: no answer within 0.05 s" in answer["error"]


async def test_the_numbers_of_the_others_are_of_now_and_those_of_the_dead_the_last_they_told(
    make: Callable[..., Bench],
) -> None:
    bench = make(3)
    await bench.start()

    async def others(asking: int) -> Numbers:
        return Numbers.of((await bench.do(asking, do="ask", kind="others", body=None))["body"])

    for worker, requests in ((1, 1), (2, 20), (3, 300)):
        await bench.do(worker, do="count", numbers=counted(requests))
    assert (await others(1)).statistics.total.requests == 320
    assert (await others(3)).statistics.total.requests == 21
    await bench.do(2, do="push", numbers=counted(50))
    await bench.do(2, do="exit", code=9)
    await bench.says("worker serving", 4)
    found = await others(1)
    assert found.statistics.total.requests == 350
    (fill,) = found.fills
    assert (fill.entries, fill.evictions) == (300, 350)  # the dead one's memory went with it


async def test_running_answers_may_finish_and_not_for_ever(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_TEST_WORKER", "stubborn")
    monkeypatch.setattr(module, "BEYOND_GRACE_S", 0.05)
    monkeypatch.setattr(module, "HALT_S", 0.05)
    bench = make()
    await bench.start()
    assert await bench.stop() == 0
    assert {line["signal"] for line in bench.events("worker ended")} == {"SIGKILL"}


async def test_a_second_signal_ends_at_once(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_TEST_WORKER", "stubborn")
    monkeypatch.setattr(module, "BEYOND_GRACE_S", 3600)
    monkeypatch.setattr(module, "HALT_S", 0.05)
    bench = make()
    await bench.start()
    os.kill(os.getpid(), signal.SIGINT)
    await bench.says("stopping")
    assert await bench.stop(signal.SIGINT) == INTERRUPTED


async def test_a_signal_while_the_workers_start_leaves_none(make: Callable[..., Bench]) -> None:
    bench = make(command=(sys.executable, "-c", "import time; time.sleep(3600)"))
    bench.running = asyncio.get_running_loop().create_task(bench.supervisor.run())
    await bench.says("worker starting", 2)
    assert await bench.stop() == 0
    assert {line["signal"] for line in bench.events("worker ended")} == {"SIGTERM"}
