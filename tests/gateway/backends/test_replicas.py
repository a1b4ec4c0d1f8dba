"""Several engines as one: real processes, a fake engine in each."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.backends import embedded
from gateway.backends.embedded import EngineView, State
from gateway.backends.replicas import (
    Replicas,
    divided,
    follow,
    is_ready,
    locate,
    waits_for,
    watch_start,
)
from gateway.config_sections import Engine
from gateway.errors import BackendFault
from gateway.flights import Tasks
from gateway.router import Router, Served
from gateway.workers.team import FarEngines, told
from tests.kit.scripted_backend import ScriptedBackend

FAKE = Path(__file__).parents[3] / "tests" / "kit" / "fake_engine.py"
READY = EngineView("ready", "http://127.0.0.1:9")


class Bench:
    """Engines as children, and what they were started with."""

    def __init__(self, folder: Path) -> None:
        self.tasks = Tasks()
        self.starts = folder / "starts"
        self.made: list[Replicas] = []

    def engines(self, count: int = 2, **more: Any) -> Replicas:
        environ = {**os.environ, "KVGATE_TEST_FAKE": "", "KVGATE_TEST_STARTS": str(self.starts)}
        section = Engine(replicas=count)
        how = {"environ": environ, "command": (sys.executable, str(FAKE)), "cores": 4, **more}
        engines = Replicas(section, tasks=self.tasks, **how)
        self.made.append(engines)
        return engines

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.starts.read_text().splitlines()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for engines in bench.made:
        await engines.stop()
    await bench.tasks.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - about other processes
            await asyncio.sleep(0.01)


def states(engines: Replicas) -> dict[str, str]:
    return {name: view.state for name, view in engines.view().items()}


async def test_each_is_a_process_of_its_own_and_none_is_left(bench: Bench) -> None:
    engines = bench.engines()
    assert waits_for(engines) == "stopped"
    await engines.start()
    await until(lambda: set(states(engines).values()) == {"ready"})
    assert locate(engines, "embedded") != locate(engines, "embedded-2")
    pids = [line["pid"] for line in bench.lines()]
    assert len(set(pids)) == 2
    await engines.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert states(engines) == {"embedded": "stopped", "embedded-2": "stopped"}
    assert repr(engines).startswith("<Replicas <EngineProcess stopped")


async def test_one_that_is_ready_is_enough(bench: Bench) -> None:
    engines, heard = bench.engines(), list[str]()
    engines.watch(heard.append)
    await engines.start()
    await until(lambda: set(states(engines).values()) == {"ready"})
    assert set(heard) == {"embedded", "embedded-2"}
    os.kill(bench.lines()[0]["pid"], signal.SIGKILL)
    await until(lambda: min(states(engines).values(), key=lambda one: one == "ready") != "ready")
    assert waits_for(engines) is None
    down = next(name for name, state in states(engines).items() if state != "ready")
    assert not is_ready(engines, down)
    with pytest.raises(BackendFault):
        locate(engines, down)
    await until(lambda: set(states(engines).values()) == {"ready"})
    assert len(bench.lines()) == 3


async def test_that_one_does_not_stop_leaves_none_of_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = bench.engines()
    await engines.start()
    await until(lambda: set(states(engines).values()) == {"ready"})
    stop, failing = embedded.EngineProcess.stop, [True]

    async def stops(engine: embedded.EngineProcess) -> None:
        await stop(engine)
        if failing:
            raise OSError(failing.pop())

    monkeypatch.setattr(embedded.EngineProcess, "stop", stops)
    with pytest.raises(OSError, match="True"):
        await engines.stop()
    assert set(states(engines).values()) == {"stopped"}


@pytest.mark.parametrize(
    ("replicas", "threads", "each"),
    [(1, "auto", "auto"), (2, "auto", 4), (3, "auto", 2), (16, "auto", 1), (2, 3, 3)],
)
def test_the_cores_are_shared_out_unless_somebody_said_how_many(
    replicas: int, threads: Any, each: Any
) -> None:
    assert divided(Engine(replicas=replicas, threads=threads), 8).threads == each


def test_of_a_backend_that_is_no_engine_nothing_is_known() -> None:
    engines = FarEngines()
    assert is_ready(None, "up")
    assert is_ready(engines, "up")
    engines.hear(told({"embedded": READY, "embedded-2": EngineView("starting")}))
    assert is_ready(engines, "embedded")
    assert not is_ready(engines, "embedded-2")
    assert waits_for(engines) is None


def test_operators_are_told_what_the_best_engine_waits_for() -> None:
    engines = FarEngines()
    assert waits_for(engines) == "starting"
    later = EngineView("restarting", reason="no network")
    engines.hear(told({"embedded": later, "embedded-2": EngineView("failed", reason="/a/path")}))
    assert waits_for(engines) == "restarting: no network"
    engines.hear(told({"embedded": EngineView("failed", reason="/a/path")}))
    assert waits_for(engines) == "failed"  # the path is for the log: /readyz needs no key


def test_a_start_is_given_up_when_an_engine_cannot_start_and_none_was_ever_ready() -> None:
    given_up: list[bool] = []

    def heard(*states: State) -> list[bool]:
        engines = FarEngines()
        given_up.clear()
        watch_start(engines, lambda: given_up.append(True))
        for state in states:
            engines.hear(told({"embedded": EngineView(state)}))
        return given_up

    assert heard("starting", "failed") == [True]
    assert heard("starting", "restarting", "starting") == []
    assert heard("starting", "ready", "restarting", "failed") == []


async def test_the_router_hears_what_an_engine_holds_and_when_it_has_lost_it() -> None:
    one, two = ScriptedBackend(name="embedded"), ScriptedBackend(name="embedded-2")
    one.stats = {"blocks": {"total": 100, "block_tokens": 32}}
    router, engines, tasks = (
        Router([Served(b, ["m"]) for b in (one, two)], {}),
        FarEngines(),
        Tasks(),
    )
    (group,) = router.groups.values()
    engines.hear(told({"embedded": READY}))
    follow(engines, router, tasks)
    engines.hear(told({"embedded": READY, "embedded-2": READY}))
    await asyncio.gather(*tasks._running)
    assert group._affinity._capacity == {"embedded": 32, "embedded-2": 10_000}
    group._affinity.sent("embedded", [1, 2, 3])
    engines.hear(told({"embedded": EngineView("restarting"), "embedded-2": READY}))
    assert repr(group._affinity) == "<Affinity embedded 0, embedded-2 0>"


async def test_a_single_engine_needs_nobody_to_follow_it() -> None:
    router, engines = Router([Served(ScriptedBackend(), ["m"])], {}), FarEngines()
    follow(engines, router, Tasks())
    assert engines._watchers == []
