"""Sockets, signals, an orderly end: run as a process, as an operator does."""

import asyncio
import errno
import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit
from urllib.request import urlopen

import aiohttp
import orjson
import pytest
from aiohttp.http_exceptions import BadHttpMessage

from gateway import serve as module
from gateway.config import Config
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import DONE, ScriptedUpstream, chat_events, stream_reply

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import sys
from gateway import logs, serve
from gateway.config import Config

logs.configure("info", "json", sys.stderr)
build = serve.build

async def announced(config):
    app = await build(config)
    async def say(_): print("cleaned up", file=sys.stderr, flush=True)
    app.on_cleanup.append(say)
    return app

serve.build = announced
sys.exit(serve.serve(Config.model_validate_json(sys.argv[1])))
"""
IN_MEMORY = {"cold": {"store": "memory"}}  # else it lies in the user's cache folder
EVENTS = chat_events({"model": "m"})


@dataclass
class Served:
    process: asyncio.subprocess.Process
    url: str

    async def rest(self) -> str:
        """What it still says, until it ends."""
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def says(self, event: str) -> None:
        """Wait until it says that."""
        assert self.process.stderr is not None
        while event.encode() not in (line := await self.process.stderr.readline()):
            assert line, f"it ended without saying {event!r}"

    def connect(self) -> Coroutine[None, None, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        url = urlsplit(self.url)
        return asyncio.open_connection(url.hostname, url.port)

    async def refuses(self) -> None:
        """Connect until nobody listens: the listener closes in one of the next turns of its loop."""
        with suppress(ConnectionError):
            while True:
                _, writer = await self.connect()
                writer.close()


@asynccontextmanager
async def served(
    upstream: ScriptedUpstream, *, grace_s: float = 30.0, before: str = "env", **backend: object
) -> AsyncIterator[Served]:
    config = {
        "server": {"port": 0, "log_format": "json", "shutdown_grace_s": grace_s},
        "backends": [{"name": "up", "base_url": upstream.url, "models": ["m"], **backend}],
        "tiers": IN_MEMORY,
    }
    process = await asyncio.create_subprocess_exec(
        before, sys.executable, "-c", PROGRAM, orjson.dumps(config).decode(),
        cwd=ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while b"listening" not in (line := await process.stderr.readline()):
            assert line, "it ended before it listened"
        yield Served(process, orjson.loads(line)["url"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def stream_of(url: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        return await response.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_it_serves_until_a_signal_and_ends_cleanly(number: signal.Signals) -> None:
    async with ScriptedUpstream() as upstream, served(upstream) as running:
        assert (await stream_of(running.url)).endswith(DONE)
        running.process.send_signal(number)
        said = await running.rest()
        assert await running.process.wait() == 0
        assert "cleaned up" in said
        assert "Traceback" not in said


async def test_at_the_first_signal_the_listener_closes_and_running_answers_finish() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*EVENTS[:2], gate, *EVENTS[2:], DONE))
    async with upstream, served(upstream) as running:
        asking = asyncio.create_task(stream_of(running.url))
        await gate.reached()
        running.process.send_signal(signal.SIGTERM)
        await running.says("stopping")
        await running.refuses()
        gate.open()
        assert (await asking).endswith(DONE)
        assert await running.process.wait() == 0


async def test_an_answer_that_outlasts_the_grace_is_broken_off_and_does_not_look_whole() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*EVENTS[:2], gate))
    async with upstream, served(upstream, grace_s=0.1) as running:
        asking = asyncio.create_task(stream_of(running.url))
        await gate.reached()
        running.process.send_signal(signal.SIGTERM)
        with suppress(aiohttp.ClientError):
            assert b"[DONE]" not in await asking
        await upstream.seen[0].gone.wait()
        assert await running.process.wait() == 0


async def test_at_the_end_of_the_grace_all_who_wait_are_told_once_and_it_ends_within_it() -> None:
    """Streams that run, calls that wait for their first piece, for their turn, or for another's flight."""
    begun, silent = Gate(), Gate()
    upstream = ScriptedUpstream(stream_reply(*EVENTS[:2], begun))
    upstream.otherwise = lambda _: stream_reply(silent)
    grace_s = 4.0
    async with (
        upstream,
        served(upstream, grace_s=grace_s, max_concurrency=2) as running,
        aiohttp.ClientSession() as session,
    ):

        async def ask(text: str, **more: object) -> tuple[int, bytes, str | None]:
            body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
            url = f"{running.url}/v1/chat/completions"
            async with session.post(url, json=body) as answer:
                return answer.status, await answer.read(), answer.headers.get("Retry-After")

        asking = [asyncio.create_task(ask("a", stream=True))]
        await begun.reached()
        cached = {"kv_cache": {"enabled": True}}
        asking += [asyncio.create_task(ask("b", **cached)) for _ in range(2)]
        await upstream.called(2)
        asking += [asyncio.create_task(ask("c", stream=True, **cached))]
        asking += [asyncio.create_task(ask("d", **cached))]
        flights = 0
        while flights < 3:  # of b, c and d
            async with session.get(f"{running.url}/v1/cache/stats") as answer:
                flights = (await answer.json())["flights"]
        began_s = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        (status, streamed, _), *others = await asyncio.gather(*asking)
        said = await running.rest()
        assert await running.process.wait() == 0
        assert time.monotonic() - began_s < 1.25 * grace_s
    assert status == 200
    assert b"[DONE]" not in streamed
    assert b"shutting_down" in streamed.split(b"\n\n")[-2]
    for status, raw, retry_after in others:
        assert (status, retry_after) == (503, "1")
        assert orjson.loads(raw)["error"]["code"] == "shutting_down"
    assert "cleaned up" in said
    assert "Traceback" not in said


async def test_a_hangup_is_nothing_under_nohup() -> None:
    async with ScriptedUpstream() as upstream, served(upstream, before="nohup") as running:
        running.process.send_signal(signal.SIGHUP)
        assert (await stream_of(running.url)).endswith(DONE)
        running.process.send_signal(signal.SIGTERM)
        assert "SIGHUP" not in await running.rest()
        assert await running.process.wait() == 0


async def test_a_second_signal_ends_at_once_and_still_cleans_up() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(stream_reply(*EVENTS[:2], gate))
    async with upstream, served(upstream) as running:
        asking = asyncio.create_task(stream_of(running.url))
        await gate.reached()
        running.process.send_signal(signal.SIGINT)
        await running.says("stopping")
        running.process.send_signal(signal.SIGINT)
        said = await running.rest()
        assert await running.process.wait() == module.INTERRUPTED
        assert "cleaned up" in said
        assert "Traceback" not in said
        await asyncio.wait([asking])
        assert asking.exception() is not None or b"[DONE]" not in asking.result()


async def test_a_request_that_is_no_http_leaves_none_of_its_bytes_in_the_log() -> None:
    async with ScriptedUpstream() as upstream, served(upstream) as running:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\n"
        for request in (
            b"canary canary canary\r\n\r\n",
            head + b"Authorization: canary\x00\r\n\r\n",
            head + b'Transfer-Encoding: chunked\r\n\r\n{"messages": "canary"}\r\n\r\n',
            head + b"Content-Encoding: gzip\r\nContent-Length: 6\r\n\r\ncanary",
        ):
            reader, writer = await running.connect()
            writer.write(request)
            assert b" 400 " in await reader.readline()
            writer.close()
        running.process.send_signal(signal.SIGTERM)
        said = await running.rest()
        assert "no valid HTTP" in said
        assert "canary" not in said
        assert "Traceback" not in said


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_at_any_moment_is_no_error(*, reset: bool) -> None:
    gates = [Gate() for _ in range(3)]
    upstream = ScriptedUpstream(
        stream_reply(*EVENTS[:2], gates[0]), stream_reply(gates[1]), stream_reply(gates[2])
    )
    ask = b'{"model": "m", "messages": [{"role": "user", "content": "?"}]'
    bodies = [(ask + b', "stream": true}', 0), (ask + b', "stream": true}', 1), (ask + b"}", 2)]
    paths = ("chat/completions", "cache/invalidate", "cache/warm", "cache/explain", "embeddings")
    async with upstream, served(upstream, grace_s=2) as running:

        async def leaves(path: str, body: bytes, length: int, gate: Gate | None = None) -> None:
            reader, writer = await running.connect()
            head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            await writer.drain()
            if gate is not None:
                await gate.reached()
            elif length == len(body):  # in the midst of an answer
                await reader.read(1)
            if reset:
                linger = struct.pack("ii", 1, 0)
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            writer.close()

        for body, number in bodies:
            await leaves("chat/completions", body, len(body), gates[number])
            await upstream.seen[number].gone.wait()
        for path in paths:
            await leaves(path, ask, len(ask) + 1000)
        upstream.otherwise = lambda _: stream_reply(*EVENTS[:2], *[EVENTS[1] * 50] * 200, DONE)
        for _ in range(30):
            await leaves("chat/completions", bodies[0][0], len(bodies[0][0]))
        upstream.otherwise = lambda _: stream_reply(*EVENTS, DONE)
        assert (await stream_of(running.url)).endswith(DONE)
        running.process.send_signal(signal.SIGTERM)
        lines = [orjson.loads(line) for line in (await running.rest()).splitlines()[:-1]]
        assert await running.process.wait() == 0
    assert [line for line in lines if line["severity"] in {"warning", "error", "critical"}] == []
    assert not [line for line in lines if "exception" in line]


def test_it_can_be_run_from_the_main_thread_of_any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process, where coverage can see it; a thread stands in for the clients."""
    listeners: Queue[socket.socket] = Queue()
    bind = module._bind

    def bind_and_tell(host: str, port: int) -> socket.socket:
        bound = bind(host, port)
        listeners.put(bound)
        return bound

    def use_and_stop() -> None:
        port = listeners.get().getsockname()[1]
        with urlopen(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
        waiting = socket.create_connection(("127.0.0.1", port))
        waiting.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        os.kill(os.getpid(), signal.SIGTERM)
        waiting.close()

    monkeypatch.setattr(module, "_bind", bind_and_tell)
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    config = Config.model_validate(
        {"server": {"port": 0}, "backends": [backend], "tiers": IN_MEMORY}
    )
    with ThreadPoolExecutor() as threads:
        client = threads.submit(use_and_stop)
        assert module.serve(config) == 0
        client.result()


def test_other_errors_of_the_server_keep_their_traceback() -> None:
    def record(error: Exception) -> logging.LogRecord:
        info = (type(error), error, None)
        return logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "oops", None, info)

    ours, theirs = record(ValueError()), record(BadHttpMessage("canary"))
    assert module._without_client_text(ours)
    assert ours.exc_info is not None
    assert module._without_client_text(theirs)
    assert (theirs.exc_info, theirs.levelno) == (None, logging.INFO)


def test_a_port_in_use_is_found_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(config: Config) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(module, "build", never)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = Config.model_validate({"server": {"port": taken.getsockname()[1]}})
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked
            module.serve(config)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_both_families_can_be_bound(host: str) -> None:
    try:
        listener = module._bind(host, 0)
    except OSError as error:
        pytest.skip(f"no such family here: {error}")
    with listener:
        assert listener.getsockname()[1] > 0
        assert not listener.getblocking()


def test_several_workers_get_a_listener_each_on_one_port() -> None:
    listeners = module._bind_several("127.0.0.1", 0, 3)
    try:
        (port,) = {listener.getsockname()[1] for listener in listeners}
        assert len(listeners) == 3
        one_more = module._beside(listeners[0])
        listeners[0].close()
        with one_more() as replaced:
            assert replaced.getsockname()[1] == port
        assert module.url_of(listeners[1]) == f"http://127.0.0.1:{port}"
    finally:
        for listener in listeners:
            listener.close()


def test_a_port_that_our_own_kind_shares_is_still_in_use() -> None:
    listeners = module._bind_several("127.0.0.1", 0, 2)
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked
            module._bind_several("127.0.0.1", listeners[0].getsockname()[1], 2)
        assert caught.value.errno == errno.EADDRINUSE
    finally:
        for listener in listeners:
            listener.close()


def test_a_listener_that_cannot_be_had_closes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[socket.socket] = []
    bind = module._bind

    def bind_twice(host: str, port: int, *, shared: bool = False) -> socket.socket:
        if len(bound) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        bound.append(bind(host, port, shared=shared))
        return bound[-1]

    monkeypatch.setattr(module, "_bind", bind_twice)
    with pytest.raises(OSError, match="Too many open files"):
        module._bind_several("127.0.0.1", 0, 3)
    assert [listener.fileno() for listener in bound] == [-1, -1]


def test_with_several_workers_a_supervisor_runs_and_its_exit_code_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, str]] = []

    class Supervisor:
        def __init__(self, _: Config, listeners: list[socket.socket], *, url: str, bind: object):
            made.append((len(listeners), url))

        async def run(self) -> int:
            return 7

    monkeypatch.setattr(module, "Supervisor", Supervisor)
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    config = Config.model_validate(
        {"server": {"port": 0, "workers": 2}, "backends": [backend], "tiers": IN_MEMORY}
    )
    assert module.serve(config) == 7
    ((count, url),) = made
    assert count == 2
    assert url.startswith("http://127.0.0.1:")
