"""A worker in this process, with the test as its supervisor; and one as a process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from gateway.backends.embedded import EngineView
from gateway.config import Config
from gateway.flights import Tasks
from gateway.numbers import Numbers
from gateway.tally import Statistics
from gateway.workers import worker as module
from gateway.workers.channel import Channel
from gateway.workers.handover import Handover
from gateway.workers.team import told
from gateway.workers.worker import Worker, die_with_parent, main
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import DONE, ScriptedUpstream, chat_events, stream_reply

ROOT = Path(__file__).parent.parent.parent.parent
EVENTS = chat_events({"model": "m"})
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
CACHED = QUESTION | {"kv_cache": {"enabled": True, "tier": "hot", "cache_key": "doc"}}


class Bench:
    """The supervisor's end of the channel, and clients."""

    def __init__(self, folder: Path) -> None:
        self.tasks = Tasks()
        self.said: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.folder = folder
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.other = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.told: list[Any] = []
        self.channel: Channel | None = None
        self.running: asyncio.Task[int] | None = None
        self.session = aiohttp.ClientSession()

    async def start(self, upstream: str | None) -> Channel:
        """Hand over a configuration: one backend, or none and thus the engine."""
        ours, theirs = socket.socketpair()
        kinds = ("hears", "serving", "numbers")
        handlers: dict[str, Any] = {kind: self._note(kind) for kind in kinds}
        handlers |= {"tell": self._tell, "others": self._others}
        self.channel = await Channel.over(ours, tasks=self.tasks, handlers=handlers)
        self.tasks.start(self.channel.run(), name="channel")
        theirs.setblocking(False)
        worker = Worker()
        loop = asyncio.get_running_loop()
        self.running = loop.create_task(worker.run(theirs, {2: self.listener, 3: self.other}))
        assert (await self.said.get())[0] == "hears"
        backend = {"name": "up", "base_url": upstream, "models": ["m"]}
        config = Config.model_validate(
            {
                "backends": [backend] if upstream else [],
                "store": {"disk_path": str(self.folder)},
                "server": {"shutdown_grace_s": 5, "log_level": "error", "workers": 2},
            }
        )
        self.channel.say("handover", Handover(2, config, b"s" * 32).as_dict())
        return self.channel

    async def serving(self) -> Any:
        async with asyncio.timeout(20):
            kind, body = await self.said.get()
        assert kind == "serving"
        return body

    def _note(self, kind: str) -> Any:
        async def note(body: Any) -> None:
            await self.said.put((kind, body))

        return note

    async def _tell(self, news: Any) -> None:
        self.told.append(news)

    async def _others(self, _: Any) -> Any:
        statistics = Statistics()
        statistics.refused("chat", 400, times=7)
        return Numbers(statistics, flights=2).as_dict()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as answer:
            if answer.content_type == "application/json":
                return answer.status, await answer.json()
            return answer.status, await answer.text()

    async def ask(self, body: Any) -> aiohttp.ClientResponse:
        answer = await self.session.post(f"{self.url}/v1/chat/completions", json=body)
        await answer.read()
        return answer

    async def ended(self) -> int:
        assert self.running is not None
        async with asyncio.timeout(20):
            return await self.running

    async def close(self) -> None:
        await self.session.close()
        if self.channel is not None:
            self.channel.close()
        if self.running is not None:
            await self.ended()
        await self.tasks.close()
        self.listener.close()
        self.other.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.close()
    structlog.reset_defaults()


async def test_it_serves_and_says_which_one_it_is(bench: Bench) -> None:
    async with ScriptedUpstream() as upstream:
        await bench.start(upstream.url)
        assert (await bench.serving())["models"] == ["m"]
        assert (await bench.ask(QUESTION)).status == 200
        assert await bench.get("/healthz") == (200, {"status": "ok", "worker": 2})
        assert bench.other.fileno() < 0  # it is another one's
        assert (await bench.get("/readyz"))[0] == 200


async def test_statistics_and_metrics_speak_for_all(bench: Bench) -> None:
    async with ScriptedUpstream() as upstream:
        await bench.start(upstream.url)
        await bench.serving()
        await bench.ask(QUESTION)
        _, stats = await bench.get("/v1/cache/stats")
        assert (stats["requests"], stats["errors"]) == (1, 7)
        _, page = await bench.get("/metrics")
        assert "kvgate_flights 2.0" in page


async def test_what_it_clears_it_tells_and_what_it_is_told_it_clears(bench: Bench) -> None:
    async with ScriptedUpstream() as upstream:
        channel = await bench.start(upstream.url)
        await bench.serving()
        async with asyncio.timeout(20):  # it is stored after it was answered
            while (await bench.ask(CACHED)).headers["X-Cache-Hit"] != "true":
                pass
        invalidate = f"{bench.url}/v1/cache/invalidate"
        async with bench.session.post(invalidate, json={"cache_key": "doc"}) as answer:
            assert answer.status == 200
        before, news = bench.told  # it tells before it clears and after
        assert before == news
        assert news["message"]["cache_key"] == "doc"
        assert (await bench.ask(CACHED)).headers["X-Cache-Hit"] == "false"
        await channel.ask("news", news, within_s=10)
        async with bench.session.get(f"{bench.url}/v1/cache/stats") as answer:
            assert (await answer.json())["tiers"]["hot"]["entries"] == 0
        assert len(bench.told) == 2  # what it is told it does not tell again


async def test_the_engine_is_where_the_supervisor_says(bench: Bench) -> None:
    async with ScriptedUpstream() as upstream:
        channel = await bench.start(None)
        (model,) = (await bench.serving())["models"]
        starting = await bench.ask(QUESTION | {"model": model})
        assert (starting.status, starting.headers["Retry-After"]) == (503, "2")
        assert (await bench.get("/readyz"))[0] == 503
        channel.say(
            "engines", told({"embedded": EngineView("ready", upstream.url.removesuffix("/v1"))})
        )
        await channel.ask("numbers", within_s=10)  # it has heard what was said before
        assert (await bench.ask(QUESTION | {"model": model})).status == 200
        channel.say("engines", told({"embedded": EngineView("restarting", None, 7.0)}))
        await channel.ask("numbers", within_s=10)
        restarting = await bench.ask(QUESTION | {"model": model})
        assert (restarting.status, restarting.headers["Retry-After"]) == (503, "7")


async def test_its_counts_are_told_regularly_and_at_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUSH_S", 0.01)
    async with ScriptedUpstream() as upstream:
        channel = await bench.start(upstream.url)
        await bench.serving()
        await bench.ask(QUESTION)

        async def counted(requests: int) -> None:
            while Numbers.of((await bench.said.get())[1]).statistics.total.requests != requests:
                pass

        await counted(1)
        monkeypatch.setattr(module, "PUSH_S", 3600)
        await bench.ask(QUESTION)
        channel.say("drain")
        await counted(2)
        assert await bench.ended() == 0


@pytest.mark.parametrize("how", ["drain", "signal"])
async def test_running_answers_finish_before_it_ends(bench: Bench, how: str) -> None:
    gate = Gate()
    async with ScriptedUpstream(stream_reply(*EVENTS[:2], gate, *EVENTS[2:], DONE)) as upstream:
        channel = await bench.start(upstream.url)
        await bench.serving()
        asking = asyncio.get_running_loop().create_task(bench.ask(QUESTION | {"stream": True}))
        await gate.reached()
        if how == "drain":
            channel.say("drain")
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            while bench.listener.fileno() >= 0:  # noqa: ASYNC110 - until it takes no more
                await asyncio.sleep(0.01)
        gate.open()
        assert (await (await asking).read()).endswith(DONE)
        assert await bench.ended() == 0


@pytest.mark.parametrize("how", ["halt", "signals", "orphaned"])
async def test_it_ends_at_once_when_it_must(bench: Bench, how: str) -> None:
    gate = Gate()
    async with ScriptedUpstream(stream_reply(*EVENTS[:2], gate)) as upstream:
        channel = await bench.start(upstream.url)
        await bench.serving()
        asking = asyncio.get_running_loop().create_task(bench.ask(QUESTION | {"stream": True}))
        await gate.reached()
        match how:
            case "halt":
                channel.say("halt")
            case "signals":
                for number in (signal.SIGTERM, signal.SIGINT):
                    os.kill(os.getpid(), number)
            case _:
                channel.close()
        assert await bench.ended() == 0
        await asyncio.wait([asking])
        assert isinstance(asking.exception(), aiohttp.ClientError)


@pytest.mark.parametrize("how", ["drain", "signal", "orphaned"])
async def test_who_is_not_wanted_any_more_starts_nothing(bench: Bench, how: str) -> None:
    ours, theirs = socket.socketpair()
    bench.channel = await Channel.over(
        ours, tasks=bench.tasks, handlers={"hears": bench._note("hears")}
    )
    bench.tasks.start(bench.channel.run(), name="channel")
    bench.running = asyncio.get_running_loop().create_task(
        Worker().run(theirs, {2: bench.listener})
    )
    await bench.said.get()
    match how:
        case "drain":
            bench.channel.say("drain")
        case "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        case _:
            bench.channel.close()
    assert await bench.ended() == 0
    assert bench.said.empty()


async def test_news_before_it_serves_are_about_nothing_it_has(bench: Bench) -> None:
    ours, theirs = socket.socketpair()
    bench.channel = await Channel.over(
        ours, tasks=bench.tasks, handlers={"hears": bench._note("hears")}
    )
    bench.tasks.start(bench.channel.run(), name="channel")
    bench.running = asyncio.get_running_loop().create_task(
        Worker().run(theirs, {2: bench.listener})
    )
    await bench.said.get()
    news = {"topic": "clear", "message": {}}
    assert await bench.channel.ask("news", news, within_s=10) is None
    assert await bench.channel.ask("numbers", within_s=10) is None


async def test_why_it_cannot_start_is_in_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def build(*_: Any, **__: Any) -> None:
        raise OSError("no room for a store")

    monkeypatch.setattr(module, "build", build)
    await bench.start("http://127.0.0.1:9/v1")
    assert await bench.ended() == 1
    assert "no room for a store" in capsys.readouterr().err


def test_as_a_process_it_ends_with_its_channel() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener:
        fds = theirs.fileno(), listener.fileno()
        command = [sys.executable, "-m", "gateway.workers.worker", str(fds[0]), f"1:{fds[1]}"]
        process = subprocess.Popen(command, pass_fds=fds, cwd=ROOT)
        assert b"hears" in ours.recv(100)
        theirs.close()
        ours.close()
        assert process.wait(timeout=30) == 0


def test_the_same_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "die_with_parent", lambda: None)
    ours, theirs = socket.socketpair()
    with ours:
        ours.shutdown(socket.SHUT_WR)
        listener = socket.create_server(("127.0.0.1", 0))
        assert main([str(theirs.detach()), f"1:{listener.detach()}"]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked")
def test_the_kernel_ends_it_with_its_parent_whatever_it_is_doing() -> None:
    child = "from gateway.workers.worker import die_with_parent as d; import sys, time; d(); print(1, flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.kill()
    assert process.stdout.read() == ""  # the child held the other end of the pipe
    process.wait()
    process.stdout.close()


def test_where_the_kernel_cannot_be_asked_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    die_with_parent()
