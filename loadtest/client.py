"""The load generator: many keep-alive connections, as little work per answer as Python allows.

It runs in a process of its own (:class:`Generator`), so that it can be pinned to another core than
the server. Requests are bytes made beforehand; of an answer only the status line, the length and
whether it says ``X-Cache-Hit: true`` are looked at.
"""

import asyncio
import os
import re
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final, Self, cast

PATH: Final = "/v1/chat/completions"
PLACEHOLDER: Final = b"0123456789abcdef"
"""Sixteen bytes of a body that each request of a ``unique`` job gets its own value for."""
GIVE_UP_S: Final = 60.0
"""An answer that takes longer than this past the end of the job is not waited for."""

_HIT: Final = b"\r\nX-Cache-Hit: true\r\n"
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_FIRST_WORD: Final = re.compile(rb'"content": ?"[^"]')
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"  # cannot be part of JSON text, where CR is escaped


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask of the server at ``port``, by ``connections`` at once.

    It ends after ``seconds``, or later when there are not ``at_least`` answers yet. ``bodies`` are sent in turn. With ``unique`` each must hold :data:`PLACEHOLDER` once.
    """

    port: int
    bodies: Sequence[bytes]
    connections: int
    seconds: float
    at_least: int = 0
    unique: bool = False
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a job. ``wait_s`` lists each answer's time, ``first_s`` that of its first word.

    ``busy`` is the share of the time that the generator itself computed: near 1 the figures are
    its own, not the server's.
    """

    answers: int
    elapsed_s: float
    wait_s: Sequence[float]
    first_s: Sequence[float]
    failures: int
    hits: int
    busy: float

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.elapsed_s


class Generator:
    """The process that asks. A context manager."""

    def __init__(self, core: int | None) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=get_context("spawn"), initializer=pin, initargs=(core,)
        )

    def run(self, job: Job) -> Load:
        """Do one job. Raises: OSError when the server cannot be reached, TimeoutError."""
        return self._pool.submit(perform, job).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def pin(core: int | None) -> None:
    """Keep this process on one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def perform(job: Job) -> Load:
    """Do one job in this process. Raises: OSError, TimeoutError."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.Loop) as runner:
        return runner.run(_perform(job))


class _Run:
    """What the connections of one job share."""

    def __init__(self, job: Job) -> None:
        self.requests = requests(job)
        self.until = time.perf_counter() + job.seconds
        self.at_least = job.at_least
        self.wait_s: list[float] = []
        self.first_s: list[float] = []
        self.failures = 0
        self.hits = 0


class _Connection(asyncio.Protocol):
    """One request after another until the time is up."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._received = b""
        self._expected = 0  # bytes of the whole answer; 0: not known yet, or chunked
        self._sent_s = 0.0
        self._first_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by name
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        if not self._done.done():
            self._run.failures += 1
            self._done.set_result(None)

    async def finished(self) -> None:
        """Wait until this connection has asked its last."""
        await self._done

    def _ask(self) -> None:
        self._received = b""
        self._expected = 0
        self._first_s = None
        request = next(self._run.requests)
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        if self._expected == 0:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return
            if (length := _LENGTH.search(received, 0, head)) is not None:
                self._expected = head + 4 + int(length[1])
        if self._expected:
            if len(received) >= self._expected:
                self._answered(received)
            return
        if self._first_s is None and _FIRST_WORD.search(received):
            self._first_s = time.perf_counter() - self._sent_s
        if received.endswith(_LAST_CHUNK):
            self._answered(received)

    def _answered(self, received: bytes) -> None:
        now = time.perf_counter()
        run = self._run
        run.wait_s.append(now - self._sent_s)
        if self._first_s is not None:
            run.first_s.append(self._first_s)
        if not received.startswith(b"HTTP/1.1 200"):
            run.failures += 1
        elif _HIT in received:
            run.hits += 1
        if now < run.until or len(run.wait_s) < run.at_least:
            self._ask()
        else:
            self._done.set_result(None)
            self._transport.close()


async def _perform(job: Job) -> Load:
    loop = asyncio.get_running_loop()
    run = _Run(job)
    began_s, began_cpu_s = time.perf_counter(), _cpu_s()
    pairs = [
        await loop.create_connection(lambda: _Connection(run), "127.0.0.1", job.port)
        for _ in range(job.connections)
    ]
    async with asyncio.timeout(job.seconds + GIVE_UP_S):
        await asyncio.gather(*(connection.finished() for _, connection in pairs))
    elapsed_s = time.perf_counter() - began_s
    return Load(
        answers=len(run.wait_s),
        elapsed_s=elapsed_s,
        wait_s=run.wait_s,
        first_s=run.first_s,
        failures=run.failures,
        hits=run.hits,
        busy=(_cpu_s() - began_cpu_s) / elapsed_s,
    )


def requests(job: Job) -> Iterator[bytes]:
    """The requests of a job, without end."""
    made = [_request(job, body) for body in job.bodies]
    if not job.unique:
        while True:
            yield from made
    halves = [request.split(PLACEHOLDER) for request in made]
    number = time.time_ns()  # so that no job ever repeats another's request
    while True:
        for before, after in halves:
            number += 1
            yield before + b"%016x" % number + after


def _request(job: Job, body: bytes) -> bytes:
    head = {
        "Host": f"127.0.0.1:{job.port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(job.headers or {}),
    }
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
