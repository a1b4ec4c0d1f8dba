"""What the gateway adds to each event of a stream, with a hundred streams at once.

``python -m loadtest.bench_streams [--streams 100] [--per-second 20] [--seconds 5] [--rounds 5]``

A mock upstream stamps each event with the moment it leaves (one monotonic clock serves all processes
of a machine); the reader subtracts. Streams go directly and through the gateway in turn; what the
gateway adds is the difference of the medians of neighbouring rounds. The gateway has a core of its
own, upstream and reader share the other. Streams begin spread over one interval, as users do.
"""

import argparse
import asyncio
import os
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, cast

import orjson
from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.client import PATH, pin
from loadtest.processes import Server, cores
from loadtest.stats import Spread, figure, percentile, spread

BAR_MS: Final = 1.0
WARM_UP_S: Final = 1.0
"""Of each round's beginning, when all streams open, that is not counted."""
GIVE_UP_S: Final = 60.0
_STAMP: Final = re.compile(rb"at=(\d+) ")
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_LONGEST_EVENT: Final = 1024


@dataclass(frozen=True, slots=True)
class Job:
    """``streams`` at once of the server at ``port``, each with an event every ``every_s``."""

    port: int
    streams: int
    every_s: float
    wish: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Read:
    """What was read: milliseconds from an event's leaving to its coming, and what went wrong."""

    waits_ms: Sequence[float]
    failures: int


@dataclass(frozen=True, slots=True)
class Round:
    """A direct run and the one through the gateway beside it, in milliseconds."""

    direct_p50: float
    direct_p99: float
    kvgate_p50: float
    kvgate_p99: float
    events: int
    cpu_us_per_event: float

    @property
    def added_p50(self) -> float:
        """What the gateway adds to an event in the middle."""
        return self.kvgate_p50 - self.direct_p50


class _Stream(asyncio.Protocol):
    """One stream, read to its end."""

    def __init__(self, request: bytes, waits_ms: list[float], count_from_ns: int) -> None:
        self._request = request
        self._waits_ms = waits_ms
        self._count_from_ns = count_from_ns
        self._unread = b""
        self._start = b""
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.perf_counter_ns()
        if len(self._start) < _LONGEST_EVENT:
            self._start += data[:_LONGEST_EVENT]
        self._unread += data
        after = 0
        for found in _STAMP.finditer(self._unread):
            after = found.end()
            if (sent_ns := int(found[1])) >= self._count_from_ns:
                self._waits_ms.append((now_ns - sent_ns) / 1e6)
        over = self._unread.endswith(_LAST_CHUNK)
        self._unread = self._unread[after:][-_LONGEST_EVENT:]
        if over and not self.ended.done():
            self.ended.set_result(self._start.startswith(b"HTTP/1.1 200"))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio calls it so
        if not self.ended.done():
            self.ended.set_result(False)


async def _read(job: Job) -> Read:
    loop = asyncio.get_running_loop()
    waits_ms: list[float] = []
    count_from_ns = time.perf_counter_ns() + int(WARM_UP_S * 1e9)
    streams = []
    for number in range(job.streams):
        make = partial(_Stream, _request(job, number), waits_ms, count_from_ns)
        _, stream = await loop.create_connection(make, "127.0.0.1", job.port)
        streams.append(stream)
        await asyncio.sleep(job.every_s / job.streams)
    async with asyncio.timeout(GIVE_UP_S):
        ended = await asyncio.gather(*(stream.ended for stream in streams))
    return Read(waits_ms, ended.count(False))


def _request(job: Job, number: int) -> bytes:
    question = f"Question {number} of {time.time_ns()}: what does the heron wait for?"
    asked: dict[str, Any] = {"model": "m", "stream": True}
    asked["messages"] = [{"role": "user", "content": question}]
    if job.wish is not None:
        asked["kv_cache"] = job.wish
    body = orjson.dumps(asked)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def read(job: Job) -> Read:
    """Do one job in this process."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.Loop) as runner:
        return runner.run(_read(job))


def measure(
    wish: dict[str, Any] | None, *, streams: int, per_second: float, seconds: float, rounds: int
) -> list[Round]:
    """All rounds of one kind of request. Raises: RuntimeError when a stream did not end well."""
    server_core, other_core = cores()
    chunks = int((seconds + WARM_UP_S) * per_second)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        enter = stack.enter_context
        shape = ("--stamped", "--chunks", str(chunks), "--chunk-ms", str(1000 / per_second))
        mock = enter(Server("loadtest.mock_upstream", "--port", "{port}", *shape, core=other_core))
        config = folder / "config.yaml"
        config.write_text(
            f'backends: [{{name: up, base_url: "http://127.0.0.1:{mock.port}/v1", models: [m]}}]\n'
            "engine: {enabled: false}\ntiers: {cold: {store: memory}}\n"
        )
        serve = ("serve", "--config", str(config), "--port", "{port}", "--log-level", "warning")
        kvgate = enter(Server("gateway", *serve, core=server_core, ready_path="/readyz"))
        pool = enter(
            ProcessPoolExecutor(1, get_context("spawn"), initializer=pin, initargs=(other_core,))
        )

        def one(port: int) -> Read:
            done = pool.submit(read, Job(port, streams, 1 / per_second, wish)).result()
            if done.failures or not done.waits_ms:
                raise RuntimeError(f"{done.failures} of {streams} streams did not end well")
            return done

        found = []
        for _ in range(rounds):
            direct = one(mock.port)
            before_s = kvgate.cpu_s()
            through = one(kvgate.port)
            cpu_s = kvgate.cpu_s() - before_s
            found.append(_round(direct, through, cpu_s / (chunks * streams) * 1e6))
        return found


def _round(direct: Read, through: Read, cpu_us: float) -> Round:
    return Round(
        direct_p50=percentile(direct.waits_ms, 0.5),
        direct_p99=percentile(direct.waits_ms, 0.99),
        kvgate_p50=percentile(through.waits_ms, 0.5),
        kvgate_p99=percentile(through.waits_ms, 0.99),
        events=len(through.waits_ms),
        cpu_us_per_event=cpu_us,
    )


def shown(rows: dict[str, list[Round]], title: str) -> Table:
    """The table."""
    table = Table(title=title)
    for heading in ("requests", "direct p50", "kvgate p50", "added p50", "p99", "bar", "CPU/event"):
        table.add_column(heading, justify="left" if heading == "requests" else "right")
    for name, rounds in rows.items():
        p99 = spread([one.kvgate_p99 for one in rounds]), spread([one.direct_p99 for one in rounds])
        added = spread([one.added_p50 for one in rounds])
        table.add_row(
            name,
            _ms(spread([one.direct_p50 for one in rounds])),
            _ms(spread([one.kvgate_p50 for one in rounds])),
            str(added),
            f"{_ms(p99[0])}, direct {_ms(p99[1])}",
            "met" if added.median <= BAR_MS else "missed",
            f"{spread([one.cpu_us_per_event for one in rounds]).median:.0f} us",
        )
    return table


def _ms(value: Spread) -> str:
    return f"{figure(value.median)} ms"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--per-second", type=float, default=20.0, help="events of each stream")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round, counted")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    facts = report.facts("loadtest.bench_streams")
    kinds = {"not cached": None, "cached": {"enabled": True, "ttl": 60}}
    how = vars(asked)
    rows = {name: measure(wish, **how) for name, wish in kinds.items()}
    title = f"{asked.streams} streams at once, {asked.per_second:g} events a second each"
    Console(width=130).print(shown(rows, title))
    result = {
        **facts,
        "how": how,
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "bar_ms": BAR_MS,
        "rows": {
            name: {
                "added_p50_ms": asdict(spread([one.added_p50 for one in rounds])),
                "rounds": [asdict(one) for one in rounds],
            }
            for name, rounds in rows.items()
        },
    }
    print(f"written to {report.write('streams', result).relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
