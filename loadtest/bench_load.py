"""The engine under load: streams beside long prompts, lanes, clients that leave, memory.

``python -m loadtest.bench_load [--model NAME] [--streams 64] [--seconds 20] [--kv-memory 1GiB]``

It starts ``python -m engine`` and asks it over HTTP, all prompts as token ids that nobody asked before:

* quiet: so many streams at once, each of which begins anew when it has ended; the waits between their
  tokens;
* long prompts: the same beside prompts of 1,500 tokens, one after the other: 99 of 100 waits between
  tokens should be at most three times those of quiet;
* lanes: an interactive prompt now and then, first alone, then beside batch and warm prompts that never
  end: its first token should come at most one chunk later (a chunk is measured as what computing one
  takes alone);
* leaving: all streams are closed at once; how long their blocks are held;
* memory: what the process takes more than when it was ready, against ``--kv-memory``.

Waits are of tokens as they come: those of one step come together.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table

from engine.config import size_bytes
from loadtest import report
from loadtest.neighbours import Neighbours, rss_mib
from loadtest.processes import Server
from loadtest.stats import Spread, figure, percentile, spread

READY_S: Final = 300.0
PROMPT_TOKENS: Final = 40
ANSWER_TOKENS: Final = 48
LONG_TOKENS: Final = 1500
ASKED: Final = 12
CHUNK_TOKENS: Final = 128
P99_BAR: Final = 3.0
MEMORY_BAR: Final = 1.05
SLACK_MIB: Final = 64.0
"""Of the process itself beside its pool: threads, buffers, what Python keeps."""


@dataclass(slots=True)
class Waits:
    """Seconds between tokens of all streams, from the moment `counting` on."""

    counting: bool = False
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """Waits between tokens, in ms, and tokens a second of all streams."""

    p50_ms: float
    p99_ms: float
    longest_ms: float
    per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it. `held_ms` is until the blocks of streams that left were free."""

    quiet: Pace
    beside: Pace
    chunk_ms: float
    alone_ms: Spread
    crowded_ms: Spread
    held_ms: float
    held_steps: int
    ready_mib: float
    most_mib: float
    budget_mib: float
    failures: int

    @property
    def p99_times(self) -> float:
        """How much longer the longest waits are beside long prompts."""
        return self.beside.p99_ms / self.quiet.p99_ms

    @property
    def late_chunks(self) -> float:
        """By how many chunks lower lanes delay the median first token."""
        return (self.crowded_ms.median - self.alone_ms.median) / self.chunk_ms

    @property
    def memory_share(self) -> float:
        """What the process took since it was ready, of its budget."""
        return (self.most_mib - self.ready_mib) / self.budget_mib


class Client:
    """Asks the engine at a port; every prompt is new."""

    def __init__(self, session: aiohttp.ClientSession, port: int, *, vocabulary: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}"
        self._dice = random.Random(port)
        self._vocabulary = vocabulary
        self.failures = 0

    async def ask(
        self, *, prompt: int, tokens: int, lane: str = "interactive", waits: Waits | None = None
    ) -> float:
        """Stream one answer to its end; seconds until its first token."""
        ids = [self._dice.randrange(10, self._vocabulary) for _ in range(prompt)]
        body = {
            "prompt": ids,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "kv": {"lane": lane},
        }
        began_s = last_s = time.perf_counter()
        first_s: float | None = None
        async with self._session.post(f"{self._url}/v1/completions", json=body) as response:
            if response.status != 200:
                self.failures += 1
                raise RuntimeError(await response.text())
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now_s = time.perf_counter()
                text = json.loads(line[6:])["choices"]
                if not text or text[0].get("finish_reason") is not None:
                    continue
                if first_s is None:
                    first_s = now_s - began_s
                elif waits is not None and waits.counting:
                    waits.seconds.append(now_s - last_s)
                    waits.tokens += 1
                last_s = now_s
        return time.perf_counter() - began_s if first_s is None else first_s

    async def stats(self) -> dict[str, Any]:
        """The engine's own."""
        async with self._session.get(f"{self._url}/kv/stats") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def forever(self, *, waits: Waits | None = None, **how: Any) -> None:
        """One answer after the other, until cancelled."""
        while True:
            await self.ask(waits=waits, **how)

    @asynccontextmanager
    async def going_on(self, count: int, **how: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
        """So many at once for as long as the block runs."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.forever(**how)) for _ in range(count)]
            yield tasks
            for task in tasks:
                task.cancel()


async def paced(waits: Waits, seconds: float) -> Pace:
    """The waits of the streams that go on, for so long."""
    waits.seconds, waits.tokens, waits.counting = [], 0, True
    await asyncio.sleep(seconds)
    waits.counting = False
    found = [wait * 1000 for wait in waits.seconds]
    return Pace(
        percentile(found, 0.5),
        percentile(found, 0.99),
        max(found),
        waits.tokens / seconds,
    )


async def firsts(client: Client, count: int) -> list[float]:
    """Milliseconds to the first token of short prompts, one at a time, at moments of no meaning."""
    dice = random.Random(5)
    found = []
    for _ in range(count):
        await asyncio.sleep(dice.uniform(0.05, 0.4))
        found.append(await client.ask(prompt=PROMPT_TOKENS, tokens=1) * 1000)
    return found


async def leaving(client: Client, tasks: list[asyncio.Task[None]]) -> tuple[float, int]:
    """Close all streams at once: milliseconds and steps until no block is in use."""
    before = int((await client.stats())["steps"])
    began_s = time.perf_counter()
    for task in tasks:
        task.cancel()
    while True:
        found = await client.stats()
        if not found["blocks"]["in_use"]:
            return (time.perf_counter() - began_s) * 1000, int(found["steps"]) - before
        if time.perf_counter() - began_s > READY_S:
            raise RuntimeError("blocks are held for ever")


async def measure(
    server: Server, *, streams: int, seconds: float, budget_mib: float, vocabulary: int
) -> Measured:
    """One engine, from quiet to empty."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=READY_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = Client(session, server.port, vocabulary=vocabulary)
        await client.ask(prompt=LONG_TOKENS, tokens=4)  # memory is touched, kernels are chosen
        ready = rss_mib(server.pid)
        chunk = [await client.ask(prompt=n, tokens=1) for n in (8, CHUNK_TOKENS * 4 + 8) * 3]
        chunk_ms = (spread(chunk[1::2]).median - spread(chunk[::2]).median) / 4 * 1000
        alone = await firsts(client, ASKED)
        async with (
            client.going_on(6, prompt=LONG_TOKENS, tokens=8, lane="batch"),
            client.going_on(2, prompt=LONG_TOKENS, tokens=1, lane="warm"),
        ):
            await asyncio.sleep(1.0)
            crowded = await firsts(client, ASKED)
        waits = Waits()
        how = {"prompt": PROMPT_TOKENS, "tokens": ANSWER_TOKENS}
        async with client.going_on(streams, waits=waits, **how) as tasks:
            await asyncio.sleep(3.0)
            quiet = await paced(waits, seconds)
            async with client.going_on(2, prompt=LONG_TOKENS, tokens=1):
                await asyncio.sleep(1.0)
                beside = await paced(waits, seconds)
            most = rss_mib(server.pid)
            with suppress(asyncio.CancelledError):
                held_ms, held_steps = await leaving(client, tasks)
        return Measured(
            quiet,
            beside,
            chunk_ms,
            spread(alone),
            spread(crowded),
            held_ms,
            held_steps,
            ready,
            max(most, rss_mib(server.pid)),
            budget_mib,
            client.failures,
        )


def table(found: Measured) -> Table:
    """As it is printed."""
    shown = Table(title="The engine under load")
    for name in ("what", "found", "should be"):
        shown.add_column(name)
    for name, pace in {"quiet": found.quiet, "beside long prompts": found.beside}.items():
        said = f"{figure(pace.p50_ms)} / {figure(pace.p99_ms)} / {figure(pace.longest_ms)}"
        shown.add_row(f"{name}: ms between tokens, median / p99 / longest", said, "")
        shown.add_row(f"{name}: tokens a second of all streams", figure(pace.per_s), "")
    shown.add_row("p99 beside long prompts, times quiet", figure(found.p99_times), f"≤ {P99_BAR:g}")
    shown.add_row("first token alone, ms", str(found.alone_ms), "")
    shown.add_row("first token beside batch and warm, ms", str(found.crowded_ms), "")
    shown.add_row(
        f"that later, in chunks of {figure(found.chunk_ms)} ms", figure(found.late_chunks), "≤ 1"
    )
    shown.add_row("blocks free after leaving, ms", figure(found.held_ms), "")
    shown.add_row("steps until then", str(found.held_steps), "≤ 1 that ran, and one")
    share = f"{figure(found.most_mib - found.ready_mib)} of {figure(found.budget_mib)}"
    shown.add_row("MiB more than when ready, of kv_memory", share, f"≤ {MEMORY_BAR:g} times")
    shown.add_row("MiB when ready / at most", f"{found.ready_mib:g} / {found.most_mib:g}", "")
    shown.add_row("failures", str(found.failures), "0")
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--vocabulary", type=int, default=40_000, help="of the prompts' token ids")
    parser.add_argument("--kv-memory", default="1GiB")
    parser.add_argument(
        "--engine", action="append", default=[], help="a further option: --engine=--x=1"
    )
    asked = parser.parse_args()
    options = [
        "--port={port}",
        f"--model={asked.model}",
        f"--kv-memory={asked.kv_memory}",
        f"--max-sequences={asked.streams + 16}",
        *asked.engine,
    ]
    known = report.facts("loadtest.bench_load")
    budget_mib = size_bytes(asked.kv_memory) / 2**20
    with Server("engine", *options, ready_path="/healthz", ready_s=READY_S) as server:
        began_s, others = time.perf_counter(), Neighbours(server.pid)
        found = asyncio.run(
            measure(
                server,
                streams=asked.streams,
                seconds=asked.seconds,
                budget_mib=budget_mib,
                vocabulary=asked.vocabulary,
            )
        )
        cores = others.cores(time.perf_counter() - began_s)
    Console(width=120).print(table(found))
    print(f"others used {cores} cores meanwhile")
    derived = {
        "p99_times": found.p99_times,
        "late_chunks": found.late_chunks,
        "memory_share": found.memory_share,
    }
    content = {"facts": known, "others_cores": cores, **derived, "measured": asdict(found)}
    print(report.write("load", content))


if __name__ == "__main__":
    main()
