"""Several workers behave as one gateway: processes, signals and sockets as an operator has them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import DONE, ScriptedUpstream, chat_events, stream_reply
from tests.kit.served import Served, serving

EVENTS = chat_events({"model": "m"})
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
IN_TIME_S = 60.0


def cached(**wishes: Any) -> dict[str, Any]:
    return QUESTION | {"kv_cache": {"enabled": True, **wishes}}


class Answer(NamedTuple):
    """What came back."""

    level: str
    text: str


class Gateway:
    """A running gateway with several workers, and a client that is connected to each of them."""

    def __init__(self, served: Served, workers: int) -> None:
        self.served = served
        self.workers = workers
        self.clients: dict[int, aiohttp.ClientSession] = {}
        self._sessions = AsyncExitStack()

    async def meet_all(self) -> None:
        """Connect until every worker was hit; each client keeps its one connection."""
        async with asyncio.timeout(IN_TIME_S):
            while len(self.clients) < self.workers:
                session = await self._sessions.enter_async_context(
                    aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
                )
                async with session.get(f"{self.served.url}/healthz") as answer:
                    self.clients.setdefault((await answer.json())["worker"], session)

    async def ask(self, worker: int, body: Any) -> "Answer":
        """One question to one worker, read to its end."""
        url = f"{self.served.url}/v1/chat/completions"
        async with self.clients[worker].post(url, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return Answer(answer.headers["X-Cache-Level"], await answer.text())

    async def hit(self, worker: int, body: Any) -> bool:
        return (await self.ask(worker, body)).level == "response"

    async def invalidate(self, worker: int, **wish: Any) -> int:
        url = f"{self.served.url}/v1/cache/invalidate"
        async with self.clients[worker].post(url, json=wish) as answer:
            assert answer.status == 200, await answer.text()
            return int((await answer.json())["entries"])

    async def stats(self, worker: int) -> Any:
        async with self.clients[worker].get(f"{self.served.url}/v1/cache/stats") as answer:
            return await answer.json()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.served.lines if line.get("event") == name]

    def pid(self, worker: int) -> int:
        """The latest process in this worker's place."""
        started = [line for line in self.events("worker starting") if line["worker"] == worker]
        return int(started[-1]["pid"])

    async def ends(self) -> int:
        return await asyncio.to_thread(self.served.process.wait, IN_TIME_S)

    async def close(self) -> None:
        await self._sessions.aclose()


@asynccontextmanager
async def gateway(
    folder: Path, upstream: ScriptedUpstream | None, *, workers: int, **server: Any
) -> AsyncIterator[Gateway]:
    backend = {"name": "up", "base_url": upstream.url, "models": ["m"]} if upstream else None
    config = folder / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "server": {"workers": workers, **server},
                "backends": [backend] if backend else [],
                # on a busy machine a disk may be late: that is another story
                "store": {"disk_path": str(folder / "store"), "timeout_ms": 10_000},
            }
        )
    )
    stack = ExitStack()
    on_disk = {"KVGATE_TIERS__COLD__STORE": "disk"}  # as shipped; tests have it in memory
    starting = serving("--config", str(config), environ=on_disk)
    served = await asyncio.to_thread(stack.enter_context, starting)
    found = Gateway(served, workers)
    try:
        yield found
    finally:
        await found.close()
        await asyncio.to_thread(stack.close)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes do; there is no event to wait for."""
    async with asyncio.timeout(IN_TIME_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def moment(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["ts"])


async def test_what_is_invalidated_on_one_is_gone_on_all(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=3) as kvgate:
        await kvgate.meet_all()
        kept, dropped = (cached(cache_key=key, tier="hot") for key in ("kept", "dropped"))
        for worker in kvgate.clients:
            for body in (kept, dropped):
                await kvgate.ask(worker, body)
                assert await kvgate.hit(worker, body)
        assert await kvgate.invalidate(2, cache_key="dropped") == 1
        calls = upstream.calls
        url = f"{kvgate.served.url}/v1/chat/completions"
        stored_only = {"Cache-Control": "only-if-cached"}
        for worker, client in kvgate.clients.items():
            async with client.post(url, json=dropped, headers=stored_only) as answer:
                assert answer.status == 504, worker
            assert await kvgate.hit(worker, kept)
        assert upstream.calls == calls


async def test_an_entry_that_one_has_stored_is_a_hit_on_all_and_listed_by_all(
    tmp_path: Path,
) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=3) as kvgate:
        await kvgate.meet_all()
        for tier in ("hot", "cold"):
            body = cached(tier=tier, cache_key=tier)
            assert not await kvgate.hit(1, body)
            await until_stored(kvgate, 1, tier)
            assert [await kvgate.hit(worker, body) for worker in (1, 2, 3)] == [True] * 3
            for worker in (1, 2, 3):
                assert await keys_of(kvgate, worker, tier) == [tier]
        assert upstream.calls == 2


async def until_stored(kvgate: Gateway, worker: int, key: str) -> None:
    """An answer is stored after it was given."""
    async with asyncio.timeout(IN_TIME_S):
        while await keys_of(kvgate, worker, key) != [key]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def keys_of(kvgate: Gateway, worker: int, prefix: str) -> list[str]:
    url = f"{kvgate.served.url}/v1/cache/entries?prefix={prefix}"
    async with kvgate.clients[worker].get(url) as answer:
        return [entry["cache_key"] for entry in (await answer.json())["data"]]


async def test_what_is_computed_anew_on_one_replaces_the_old_answer_on_all(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=2) as kvgate:
        await kvgate.meet_all()
        body = cached(tier="hot")
        for worker in (1, 2, 2, 2, 2, 2):  # read often, so that the second one has it in memory
            await kvgate.ask(worker, body)
        upstream.otherwise = lambda seen: stream_reply(*chat_events(seen.body, ("new",)), DONE)
        renewed = body | {"stream": True, "kv_cache": body["kv_cache"] | {"reuse": False}}
        await kvgate.ask(1, renewed)
        async with asyncio.timeout(IN_TIME_S):
            for worker in (1, 2):
                while "new" not in (await kvgate.ask(worker, body)).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("tier", ["hot", "cold"])
async def test_500_identical_cold_requests_on_4_workers_make_one_backend_call(
    tmp_path: Path, tier: str
) -> None:
    gate = Gate()
    async with (
        ScriptedUpstream(stream_reply(*EVENTS[:2], gate, *EVENTS[2:], DONE)) as upstream,
        gateway(tmp_path, upstream, workers=4) as kvgate,
    ):
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int) -> tuple[bool, str]:
                body = cached(tier=tier) | {"stream": number % 2 == 0}
                url = f"{kvgate.served.url}/v1/chat/completions"
                async with session.post(url, json=body) as answer:
                    return answer.status == 200, await answer.text()

            asking = asyncio.gather(*(ask(number) for number in range(500)))
            await gate.reached()
            gate.open()
            answers = await asking
        assert all(well for well, _ in answers)
        assert all("well." in text for _, text in answers)
        assert upstream.calls == 1
        await kvgate.meet_all()
        assert (await kvgate.stats(1))["requests"] == 500


async def test_statistics_and_metrics_speak_for_all_the_dead_included(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=3) as kvgate:
        await kvgate.meet_all()
        for worker, times in ((1, 1), (2, 2), (3, 4)):
            for _ in range(times):
                await kvgate.ask(worker, QUESTION)
        assert [(await kvgate.stats(worker))["requests"] for worker in (1, 2, 3)] == [7, 7, 7]
        async with kvgate.clients[2].get(f"{kvgate.served.url}/metrics") as answer:
            page = await answer.text()
        counts = [line for line in page.splitlines() if line.startswith("kvgate_requests_total{")]
        assert [line.rpartition(" ")[2] for line in counts] == ["7.0"]
        os.kill(kvgate.pid(3), signal.SIGKILL)
        await until(lambda: len(kvgate.events("worker serving")) == 4)
        assert (await kvgate.stats(1))["requests"] == 7
        kvgate.clients.pop(3)
        await kvgate.meet_all()
        await kvgate.ask(3, QUESTION)
        assert (await kvgate.stats(2))["requests"] == 8


async def test_each_line_of_the_log_says_whose_it_is(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=2) as kvgate:
        await kvgate.meet_all()
        for worker in (1, 2):
            await kvgate.ask(worker, QUESTION)
        await until(lambda: len(kvgate.events("request")) == 2)
        assert sorted(line["worker"] for line in kvgate.events("request")) == [1, 2]
        (line,) = kvgate.events("listening")
        assert line["url"] == kvgate.served.url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_in_the_middle_of_a_stream_lets_it_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    gate = Gate()
    async with (
        ScriptedUpstream(stream_reply(*EVENTS[:2], gate, *EVENTS[2:], DONE)) as upstream,
        gateway(tmp_path, upstream, workers=2) as kvgate,
    ):
        await kvgate.meet_all()
        loop = asyncio.get_running_loop()
        asking = loop.create_task(kvgate.ask(1, QUESTION | {"stream": True}))
        await gate.reached()
        kvgate.served.process.send_signal(number)
        await refused(*address(kvgate.served.url))
        gate.open()
        assert (await asking).text.endswith(DONE.decode())
        assert await kvgate.ends() == 0
        assert "Traceback" not in kvgate.served.log()


async def refused(host: str, port: int) -> None:
    """Connect until nobody listens any more."""
    async with asyncio.timeout(IN_TIME_S):
        with suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection(host, port)
                writer.close()


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


async def test_at_the_end_of_the_grace_who_still_waits_is_told_and_all_end(tmp_path: Path) -> None:
    gates = [Gate(), Gate()]
    grace_s = 4
    async with (
        ScriptedUpstream(*(stream_reply(gate) for gate in gates)) as upstream,
        gateway(tmp_path, upstream, workers=2, shutdown_grace_s=grace_s) as kvgate,
    ):
        await kvgate.meet_all()

        async def status_and_code(worker: int) -> tuple[int, str]:
            url = f"{kvgate.served.url}/v1/chat/completions"
            async with kvgate.clients[worker].post(url, json=QUESTION) as answer:
                return answer.status, (await answer.json())["error"]["code"]

        loop = asyncio.get_running_loop()
        asking = [loop.create_task(status_and_code(worker)) for worker in kvgate.clients]
        for gate in gates:
            await gate.reached()
        began_s = loop.time()
        kvgate.served.process.send_signal(signal.SIGHUP)
        assert await asyncio.gather(*asking) == [(503, "shutting_down")] * 2
        assert await kvgate.ends() == 0
        assert loop.time() - began_s < 1.5 * grace_s
        assert "Traceback" not in kvgate.served.log()


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        ScriptedUpstream(stream_reply(*EVENTS[:2], gate)) as upstream,
        gateway(tmp_path, upstream, workers=2, shutdown_grace_s=600) as kvgate,
    ):
        await kvgate.meet_all()
        loop = asyncio.get_running_loop()
        asking = loop.create_task(kvgate.ask(1, QUESTION | {"stream": True}))
        await gate.reached()
        for _ in range(2):
            count = len(kvgate.events("stopping"))
            kvgate.served.process.send_signal(signal.SIGINT)
            await until(lambda: len(kvgate.events("stopping")) > count)  # noqa: B023
        assert await kvgate.ends() == 130
        await asyncio.wait([asking])
        assert isinstance(asking.exception(), aiohttp.ClientError)
        assert all(gone(line["pid"]) for line in kvgate.events("worker starting"))


async def test_a_killed_worker_is_replaced_in_2_s_while_the_others_serve(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=2) as kvgate:
        await kvgate.meet_all()
        await until(lambda: bool(kvgate.events("spare worker ready")))
        killed = kvgate.pid(1)
        os.kill(killed, signal.SIGKILL)
        while len(kvgate.events("worker serving")) < 3:
            await kvgate.ask(2, QUESTION)
            await asyncio.sleep(0.02)
        (ended,) = kvgate.events("worker ended")
        assert (ended["worker"], ended["pid"], ended["signal"]) == (1, killed, "SIGKILL")
        serving_again = kvgate.events("worker serving")[-1]
        assert (moment(serving_again) - moment(ended)).total_seconds() < 2.0
        kvgate.clients.pop(1)
        await kvgate.meet_all()
        await kvgate.ask(1, QUESTION)


async def test_a_killed_supervisor_leaves_nobody(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=3) as kvgate:
        pids = [kvgate.pid(worker) for worker in (1, 2, 3)]
        os.kill(pids[2], signal.SIGSTOP)  # one that cannot notice anything by itself
        kvgate.served.process.kill()
        await until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize("lines", [1, 2, 3, 4])
async def test_ctrl_c_at_any_moment_of_the_start_leaves_nobody(tmp_path: Path, lines: int) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--workers", "2", "--port", "0"]
    config = tmp_path / "config.yaml"
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    sizes = {tier: {"max_bytes": "64MiB"} for tier in ("hot", "warm", "cold")}  # chosen: no line
    document = {"backends": [backend], "server": {"log_format": "json"}, "tiers": sizes}
    config.write_text(json.dumps(document))
    environ = os.environ | {"KVGATE_STORE__DISK_PATH": str(tmp_path / "store")}
    process = await asyncio.create_subprocess_exec(
        *command, "--config", str(config), stderr=subprocess.PIPE, env=environ
    )
    assert process.stderr is not None
    said = [await process.stderr.readline() for _ in range(lines)]
    process.send_signal(signal.SIGINT)
    said += (await process.stderr.read()).splitlines()
    assert await process.wait() == 0
    events = [json.loads(line) for line in said]
    started = [line["pid"] for line in events if line["event"] == "worker starting"]
    assert started
    assert all(gone(pid) for pid in started)
    assert not any("exception" in line for line in events)


def test_a_port_that_another_gateway_of_ours_serves_is_in_use(tmp_path: Path) -> None:
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"backends": [backend], "server": {"workers": 2}}))
    environ = {"KVGATE_STORE__DISK_PATH": str(tmp_path / "store")}
    with serving("--config", str(config), environ=environ) as first:
        _, port = address(first.url)
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        second = subprocess.run(
            [*command, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | environ,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"kvgate: 127.0.0.1:{port} is in use")
        assert second.stderr.count("\n") == 1


@pytest.mark.model
async def test_the_workers_share_one_engine_which_ends_with_them(
    tmp_path: Path, smollm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVGATE_ENGINE__MODEL", str(smollm_path))
    question = {
        "model": "default",
        "messages": [{"role": "user", "content": "Count to ten, please. " * 12}],
        "max_tokens": 4,
    }
    async with gateway(tmp_path, None, workers=2) as kvgate:
        await kvgate.meet_all()
        assert len(kvgate.events("engine starting")) == 1
        (engine,) = [line["pid"] for line in kvgate.events("engine starting")]
        first, second = [await kvgate.ask(worker, question) for worker in (1, 2)]
        assert first.level == "none"
        assert second.level == "prefix"  # the same salts, the same blocks
        os.kill(engine, signal.SIGKILL)
        url = f"{kvgate.served.url}/v1/chat/completions"
        for worker in (1, 2):
            async with asyncio.timeout(IN_TIME_S):
                while True:
                    async with kvgate.clients[worker].post(url, json=question) as answer:
                        if answer.status != 200:
                            break
            assert answer.status in {502, 503}
        await until(lambda: len(kvgate.events("engine ready")) == 2)
        for worker in (1, 2):
            await kvgate.ask(worker, question)
        pids = kvgate.served.children()
        assert len(pids) == 4  # two workers, a spare one, the engine
        kvgate.served.process.kill()
        await until(lambda: all(gone(pid) for pid in pids))


async def test_the_dashboard_of_one_shows_the_numbers_of_all(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream, gateway(tmp_path, upstream, workers=2) as kvgate:
        await kvgate.meet_all()
        for worker in (1, 2):
            for _ in range(2):
                await kvgate.ask(worker, cached(tier="hot", cache_key=f"key {worker}"))
        for worker in (1, 2):
            async with asyncio.timeout(IN_TIME_S):  # an answer is stored after it was given
                while True:
                    hello, whole = await dashboard(kvgate, worker)
                    assert (hello["worker"], hello["workers"]) == (worker, 2)
                    stats = await kvgate.stats(worker)
                    assert stats["requests"] == 4
                    shown = whole["sections"]["stats"]
                    assert shown.keys() >= stats.keys() - {"backends"}
                    if all(shown[name] == stats[name] for name in stats.keys() - {"backends"}):
                        break
            keys = {one["cache_key"]: one["hits"] for one in whole["sections"]["keys"]}
            assert sum(keys.values()) == stats["levels"]["response"]["requests"]


async def dashboard(kvgate: Gateway, worker: int) -> list[Any]:
    """The first two events that this worker tells who looks."""
    url = f"{kvgate.served.url}/dashboard/live"
    async with (
        asyncio.timeout(IN_TIME_S),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        while True:
            async with session.get(url) as answer:
                told = []
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        told.append(json.loads(line[6:]))
                    if told and told[0]["worker"] != worker:
                        break  # the kernel deals connections out
                    if len(told) == 2:
                        return told
