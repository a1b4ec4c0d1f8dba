"""The gateway beside a bare server, a pass-through, nginx and LiteLLM, all in front of one mock upstream.

All run at once on one core, the asker and the upstream on the other; each measure asks them in turn,
round after round, the same bytes (kvgate's configuration turns its store on for all calls, so no
request says anything of caching).
"""

import contextlib
import json
import secrets
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from gateway.version import installed_version
from loadtest import peers, report
from loadtest.bench_gateway import Bench, Run, chat
from loadtest.client import PATH, PLACEHOLDER, Generator
from loadtest.comparison import OURS, Better, Part, Row
from loadtest.mock_upstream import Shape
from loadtest.neighbours import Neighbours, family, rss_mib
from loadtest.processes import Program, Server, cores
from loadtest.stats import percentile

BARE: Final = "bare aiohttp"
THROUGH: Final = "pass-through"
NGINX: Final = "nginx"
LITELLM: Final = "LiteLLM"
QUESTIONS: Final = 50
CROWD: Final = 50
SHAPE: Final = Shape(chunks=20, chunk_ms=1.0)
AT_ONCE_S: Final = 1e-6
"""A job of as many questions as it has to ask."""
SLOW_MS: Final = 200
SLOW_CHUNK_MS: Final = 30


@dataclass(slots=True)
class Field:
    """The servers that run, and what went wrong with whom."""

    bench: Bench
    servers: Mapping[str, Program]
    upstream: Program
    rounds: int
    key: str
    notes: list[str] = field(default_factory=list)

    def measure(
        self,
        what: str,
        unit: str,
        better: Better,
        names: Sequence[str],
        ask: Callable[[Program], float],
    ) -> Row:
        """One row: each of ``names`` in turn, once unmeasured. Who fails is noted and left out."""
        runs: dict[str, list[float]] = {name: [] for name in names if name in self.servers}
        for number in range(self.rounds + 1):
            for name in list(runs):
                try:
                    found = ask(self.servers[name])
                except (RuntimeError, OSError, TimeoutError) as error:
                    if name == OURS:
                        raise
                    self.notes.append(f"{name}, {what}: {error}.")
                    del runs[name]
                    continue
                if number:
                    runs[name].append(found)
        return Row(what, unit, better, runs)

    def ask(self, server: Program, **job: Any) -> Run:
        """A job, with the key. Raises: RuntimeError when an answer was not a 200."""
        return self.bench.ask(server, headers=bearer(self.key), **job)

    def calls(self) -> int:
        """How many the upstream has had."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.upstream.port}/calls") as answer:
            return int(json.load(answer)["calls"])

    def shape(self, delay_ms: float, chunk_ms: float) -> None:
        """How slow the upstream is from now on."""
        url = f"http://127.0.0.1:{self.upstream.port}/shape?delay_ms={delay_ms}&chunk_ms={chunk_ms}"
        urllib.request.urlopen(urllib.request.Request(url, method="POST")).close()

    def hits_per_s(self, server: Program, connections: int) -> float:
        """Stored answers. Raises: RuntimeError when some were asked upstream all the same."""
        bodies = [chat(f"How do I oil tool {n}?", cached=False) for n in range(QUESTIONS)]
        self.ask(server, bodies=bodies, connections=1, seconds=AT_ONCE_S, at_least=QUESTIONS)
        before = self.calls()
        run = self.ask(server, bodies=bodies, connections=connections, at_least=QUESTIONS)
        if asked := self.calls() - before:
            raise RuntimeError(f"{asked} of {run.load.answers} repeated questions went upstream")
        return run.load.per_second

    def new(self, server: Program, connections: int, *, stream: bool = False) -> Run:
        """Questions that nobody has asked."""
        bodies = [chat(PLACEHOLDER.decode(), cached=False, stream=stream)]
        return self.ask(
            server, bodies=bodies, connections=connections, unique=True, at_least=connections
        )

    def crowd(self, server: Program, *, stream: bool) -> tuple[Run, int]:
        """One new question from many at once, and how often the upstream was asked it."""
        body = chat(f"crowd {server.port} {self.calls()} {stream}", cached=False, stream=stream)
        before = self.calls()
        run = self.ask(server, bodies=[body], connections=CROWD, seconds=AT_ONCE_S)
        return run, self.calls() - before


def rows(run: Field) -> list[Row]:
    """All measures."""
    caches, forwarders = (BARE, NGINX, LITELLM, OURS), (THROUGH, NGINX, LITELLM, OURS)

    def hits(at_once: int, one: Program) -> float:
        return run.hits_per_s(one, at_once)

    def miss_ms(one: Program) -> float:
        return percentile(run.new(one, 1).load.wait_s, 0.5) * 1000

    def misses(at_once: int, one: Program) -> float:
        return run.new(one, at_once).load.per_second

    def first_ms(at_once: int, one: Program) -> float:
        return percentile(run.new(one, at_once, stream=True).load.first_s, 0.5) * 1000

    found = [
        run.measure(f"hits, {n} at once", "req/s", "higher", caches, partial(hits, n))
        for n in (1, 16, 64)
    ]
    found.append(run.measure("a miss, alone", "ms", "lower", forwarders, miss_ms))
    many = partial(misses, 16)
    found.append(run.measure("misses, 16 at once", "req/s", "higher", forwarders, many))
    for n in (1, 16):
        what = f"a stream's first word, {n} at once"
        found.append(run.measure(what, "ms", "lower", forwarders, partial(first_ms, n)))
    return found + stampedes(run, forwarders)


def stampedes(run: Field, names: Sequence[str]) -> list[Row]:
    """A crowd with one question, before an upstream that takes its time."""
    calls: dict[str, list[float]] = {}

    names_of = {server.port: name for name, server in run.servers.items()}

    def crowd(one: Program) -> float:
        load, asked = run.crowd(one, stream=False)
        calls.setdefault(names_of[one.port], []).append(asked)
        return percentile(load.load.wait_s, 0.5) * 1000

    def streamed(one: Program) -> float:
        return percentile(run.crowd(one, stream=True)[0].load.first_s, 0.5) * 1000

    run.shape(SLOW_MS, SLOW_CHUNK_MS)
    try:
        what = f"{CROWD} equal questions at once ({SLOW_MS} ms upstream)"
        found = [
            run.measure(what, "ms", "lower", names, crowd),
            run.measure(f"{what}, streamed: first word", "ms", "lower", names, streamed),
        ]
    finally:
        run.shape(0, SHAPE.chunk_ms)
    kept = {name: values[1:] for name, values in calls.items() if name in found[0].runs}
    return [Row(f"{what}: calls upstream", "calls", "lower", kept), *found]


def config(upstream: str, folder: Path, key: str) -> str:
    """kvgate's: one tenant, every answer is stored, on an empty disk; as it is shipped otherwise."""
    return yaml.safe_dump(
        {
            "backends": [{"name": "up", "base_url": f"{upstream}/v1", "models": ["m"]}],
            "engine": {"enabled": False},
            "tenants": [{"name": "bench", "api_keys": [key]}],
            "defaults": {"enabled": True},
            "store": {"disk_path": str(folder / "store")},
        }
    )


def bearer(key: str) -> dict[str, str]:
    """All are sent it: LiteLLM and kvgate look at it, the others do not."""
    return {"Authorization": f"Bearer {key}"}


def answer_bytes(server: Program, key: str) -> int:
    """The size of an answer's body, so that the bare server can answer as much."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{PATH}",
        data=chat("How long is an answer?", cached=False),
        headers={"Content-Type": "application/json", **bearer(key)},
    )
    with urllib.request.urlopen(request) as answer:
        return len(answer.read())


def measure(*, rounds: int, seconds: float) -> Part:
    """Start all that are there, measure, end them."""
    known, key = report.facts("loadtest.compare"), f"sk-{secrets.token_hex(24)}"
    serving, asking = cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(peers.mock(asking, SHAPE))
        url = f"http://127.0.0.1:{upstream.port}"
        place = folder / "config.yaml"
        place.write_text(config(url, folder, key))
        kvgate = stack.enter_context(
            Server(
                "gateway", "serve", "--config", str(place), "--port", "{port}",
                core=serving, ready_path="/readyz", log=folder / "kvgate.log",
            )
        )  # fmt: skip
        bare = Server(
            "loadtest.floors", "bare", "--port", "{port}", "--body-bytes",
            str(answer_bytes(kvgate, key)), core=serving,
        )  # fmt: skip
        through = Server(
            "loadtest.floors", "pass-through", "--port", "{port}", "--upstream", url, core=serving
        )
        programs: dict[str, Program] = {
            BARE: stack.enter_context(bare),
            THROUGH: stack.enter_context(through),
        }
        versions = {BARE: aiohttp.__version__, THROUGH: aiohttp.__version__}
        absent: dict[str, str] = {}
        starts: dict[str, Callable[[], tuple[Program, str]]] = {
            NGINX: partial(peers.nginx, folder, upstream.port, serving),
            LITELLM: partial(peers.litellm, folder, url, key, serving),
        }
        for name, start in starts.items():
            try:
                program, versions[name] = start()
                programs[name] = stack.enter_context(program)
            except (peers.AbsentError, RuntimeError, OSError) as error:
                versions.pop(name, None)
                absent[name] = str(error)
        programs[OURS], versions[OURS] = kvgate, installed_version()
        bench = Bench(stack.enter_context(Generator(asking)), rounds=rounds, seconds=seconds)
        neighbours = Neighbours(upstream.pid, *(one.pid for one in programs.values()))
        run = Field(bench, programs, upstream, rounds, key)
        found, took = _timed(lambda: rows(run))
        others = neighbours.cores(took)
        if others is not None:
            run.notes.append(f"Others used {others:.2f} cores meanwhile.")
        held = {name: sum(map(rss_mib, family(one.pid))) for name, one in programs.items()}
        return Part(known, versions, found, absent, run.notes, held)


def _timed(work: Callable[[], list[Row]]) -> tuple[list[Row], float]:
    began_s = time.perf_counter()
    return work(), time.perf_counter() - began_s
