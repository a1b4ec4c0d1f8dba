"""What one gateway process costs: hits against bare aiohttp, misses against a pass-through.

``python -m loadtest.bench_gateway [--quick] [--rounds N] [--seconds S]``

Every figure is a ratio to a floor that is measured in the same run, in turn with it (floor, kvgate,
floor, kvgate ...), from a generator on another core. Server processor time per request is printed
beside it: it is what noise from neighbours disturbs least. With ``wrk`` on the PATH the hits are
also asked by it, as a check of our own generator.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.client import PATH, PLACEHOLDER, Generator, Job, Load
from loadtest.processes import Program, Server, cores
from loadtest.stats import Spread, figure, percentile, ratios, spread

CONNECTIONS: Final = (1, 16, 64)
QUESTIONS: Final = 100
CACHED: Final = {"enabled": True, "ttl": 3600}


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: what was measured of the floor and of kvgate, and their ratio."""

    what: str
    unit: str
    floor: Spread
    kvgate: Spread
    ratio: Spread
    bar: str
    floor_cpu_us: float
    kvgate_cpu_us: float
    generator_busy: float

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "what": self.what,
            "unit": self.unit,
            "floor": _spread(self.floor),
            "kvgate": _spread(self.kvgate),
            "ratio": _spread(self.ratio),
            "bar": self.bar,
            "cpu_us_per_request": {"floor": self.floor_cpu_us, "kvgate": self.kvgate_cpu_us},
            "generator_busy": round(self.generator_busy, 2),
        }


@dataclass(frozen=True, slots=True)
class Run:
    """A load and the processor time that the server spent on it."""

    load: Load
    cpu_us: float


class Bench:
    """The servers that run and how long each is asked."""

    def __init__(self, generator: Generator, *, rounds: int, seconds: float) -> None:
        self._generator = generator
        self._rounds = rounds
        self._seconds = seconds

    def ask(self, server: Program, *, seconds: float | None = None, **job: Any) -> Run:
        """One job against one server. Raises: RuntimeError when an answer was not a 200."""
        began_s = server.cpu_s()
        load = self._generator.run(Job(server.port, seconds=seconds or self._seconds, **job))
        if load.failures:
            raise RuntimeError(f"{load.failures} of {load.answers} answers were no 200")
        return Run(load, (server.cpu_s() - began_s) / load.answers * 1e6)

    def side_by_side(self, floor: Server, kvgate: Server, **job: Any) -> list[tuple[Run, Run]]:
        """Floor and kvgate in turn; the first, unmeasured round warms both."""
        for server in (floor, kvgate):
            self.ask(server, seconds=0.2, at_least=2 * QUESTIONS, **job)
        return [(self.ask(floor, **job), self.ask(kvgate, **job)) for _ in range(self._rounds)]


def chat(question: str, *, cached: bool = True, stream: bool = False) -> bytes:
    """A chat completion request of about half a kilobyte."""
    system = "You are a helpful assistant of a shop for garden tools. " * 3
    body: dict[str, Any] = {
        "model": "m",
        "messages": [
            {"role": "system", "content": system.strip()},
            {"role": "user", "content": f"{question} Please answer in one paragraph."},
        ],
        "temperature": 0,
        "max_tokens": 256,
    }
    if stream:
        body["stream"] = True
    if cached:
        body["kv_cache"] = CACHED
    return json.dumps(body).encode()


def hits(bench: Bench, floor: Server, kvgate: Server) -> list[Row]:
    """Hits per second at each number of connections, as a share of the bare server's."""
    bodies = [chat(f"How do I sharpen tool number {n}?") for n in range(QUESTIONS)]
    rows = []
    for connections in CONNECTIONS:
        pairs = bench.side_by_side(floor, kvgate, bodies=bodies, connections=connections)
        missed = sum(run.load.answers - run.load.hits for _, run in pairs)
        if missed:
            raise RuntimeError(f"{missed} answers were no hits")
        rates = [(a.load.per_second, b.load.per_second) for a, b in pairs]
        rows.append(_row(f"hits, c={connections}", "req/s", pairs, rates, bar=">= 0.5"))
    return rows


def misses(bench: Bench, floor: Server, kvgate: Server, *, cached: bool) -> list[Row]:
    """Distinct questions: the time of one at a time, and how many sixteen get through."""
    kind = "misses, stored" if cached else "misses, cache not asked for"
    bodies = [chat(PLACEHOLDER.decode(), cached=cached)]
    alone = bench.side_by_side(floor, kvgate, bodies=bodies, connections=1, unique=True)
    waits = [(_median_ms(a.load.wait_s), _median_ms(b.load.wait_s)) for a, b in alone]
    crowd = bench.side_by_side(floor, kvgate, bodies=bodies, connections=16, unique=True)
    rates = [(a.load.per_second, b.load.per_second) for a, b in crowd]
    return [
        _row(f"{kind}, c=1", "ms p50", alone, waits, bar="<= 2"),
        _row(f"{kind}, c=16", "req/s", crowd, rates, bar="<= 2"),
    ]


def streams(bench: Bench, floor: Server, kvgate: Server) -> list[Row]:
    """Time to the first word of streams that are computed, at one and at sixteen at once."""
    bodies = [chat(PLACEHOLDER.decode(), stream=True)]
    rows = []
    for connections in (1, 16):
        pairs = bench.side_by_side(
            floor, kvgate, bodies=bodies, connections=connections, unique=True
        )
        firsts = [(_median_ms(a.load.first_s), _median_ms(b.load.first_s)) for a, b in pairs]
        what = f"streams, first word, c={connections}"
        rows.append(_row(what, "ms p50", pairs, firsts, bar="<= 2"))
    return rows


def _row(
    what: str,
    unit: str,
    pairs: Sequence[tuple[Run, Run]],
    values: Sequence[tuple[float, float]],
    *,
    bar: str,
) -> Row:
    floor, kvgate = [a for a, _ in values], [b for _, b in values]
    overhead_of_rates = bar.startswith("<=") and unit == "req/s"
    return Row(
        what,
        unit,
        spread(floor),
        spread(kvgate),
        ratios(floor, kvgate) if overhead_of_rates else ratios(kvgate, floor),
        bar,
        round(statistics.median(a.cpu_us for a, _ in pairs), 1),
        round(statistics.median(b.cpu_us for _, b in pairs), 1),
        max(run.load.busy for pair in pairs for run in pair),
    )


def _median_ms(seconds: Sequence[float]) -> float:
    return percentile(seconds, 0.5) * 1000


def _spread(value: Spread) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high, "n": value.n}


def wrk_hits(floor: Server, kvgate: Server, *, rounds: int, seconds: float) -> Spread | None:
    """The ratio of hits at c=16 as ``wrk`` sees it, when it is installed."""
    wrk = shutil.which("wrk")
    if wrk is None:
        return None
    body = chat("How do I sharpen tool number 1?").decode()
    script = (
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [==[{body}]==]\n"
    )
    core = cores()[1]
    pin = [] if core is None else ["taskset", "-c", str(core)]

    def rate(server: Server, file: str) -> float:
        url = f"http://127.0.0.1:{server.port}{PATH}"
        asked = subprocess.run(
            [*pin, wrk, "-t1", "-c16", f"-d{max(1, round(seconds))}s", "-s", file, url],
            capture_output=True,
            text=True,
            check=True,
        )
        if "Non-2xx" in asked.stdout:
            raise RuntimeError(asked.stdout)
        line = next(line for line in asked.stdout.splitlines() if line.startswith("Requests/sec"))
        return float(line.split()[1])

    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        pairs = [(rate(floor, file.name), rate(kvgate, file.name)) for _ in range(rounds)]
    return ratios([b for _, b in pairs], [a for a, _ in pairs])


def answer_bytes(server: Server) -> int:
    """The size of a hit's body, so that the bare server can answer as much."""
    size, hit = 0, None
    for _ in range(2):
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}{PATH}",
            data=chat("How long is an answer?"),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            size = len(answer.read())
            hit = answer.headers["X-Cache-Hit"]
    if hit != "true":
        raise RuntimeError("the second answer to the same question was no hit")
    return size


def measure(*, rounds: int, seconds: float) -> tuple[list[Row], Spread | None]:
    """Start everything, measure, end everything."""
    server_core, other_core = cores()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        enter = stack.enter_context
        mock = enter(
            Server("loadtest.mock_upstream", "--port", "{port}", "--chunk-ms", "1", core=other_core)
        )
        upstream = f"http://127.0.0.1:{mock.port}"
        config = folder / "config.yaml"
        config.write_text(
            f'backends: [{{name: up, base_url: "{upstream}/v1", models: [m]}}]\n'
            "engine: {enabled: false}\n"
        )
        kvgate = enter(
            Server(
                "gateway", "serve", "--config", str(config), "--port", "{port}",
                core=server_core, ready_path="/readyz", log=folder / "kvgate.log",
            )
        )  # fmt: skip
        size = answer_bytes(kvgate)
        bare = enter(
            Server(
                "loadtest.floors", "bare", "--port", "{port}", "--body-bytes", str(size),
                core=server_core,
            )
        )  # fmt: skip
        through = enter(
            Server(
                "loadtest.floors", "pass-through", "--port", "{port}", "--upstream", upstream,
                core=server_core,
            )
        )  # fmt: skip
        bench = Bench(enter(Generator(other_core)), rounds=rounds, seconds=seconds)
        rows = hits(bench, bare, kvgate)
        rows += misses(bench, through, kvgate, cached=True)
        rows += misses(bench, through, kvgate, cached=False)
        rows += streams(bench, through, kvgate)
        return rows, wrk_hits(bare, kvgate, rounds=rounds, seconds=seconds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="pairs of runs per figure")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one run")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.4 s")
    asked = parser.parse_args()
    rounds, seconds = (3, 0.4) if asked.quick else (asked.rounds, asked.seconds)
    known = report.facts("loadtest.bench_gateway")
    rows, wrk = measure(rounds=rounds, seconds=seconds)
    console = Console(width=120)
    console.print(table(rows))
    if wrk is not None:
        console.print(f"hits, c=16, asked by wrk: {wrk} of the floor")
    content = {**known, "rows": [row.as_dict() for row in rows]}
    content["wrk_hits_c16_ratio"] = None if wrk is None else _spread(wrk)
    console.print(f"written to loadtest/results/{report.write('gateway', content).name}")


def table(rows: Sequence[Row]) -> Table:
    """What people read."""
    made = Table(title="One gateway process; medians (least to greatest)")
    for name in ("", "unit", "floor", "kvgate", "ratio", "bar", "CPU us: floor", "kvgate", "asker"):
        made.add_column(name, justify="left" if name in {"", "unit"} else "right")
    for row in rows:
        made.add_row(
            row.what,
            row.unit,
            figure(row.floor.median),
            figure(row.kvgate.median),
            f"{figure(row.ratio.median)} ({figure(row.ratio.low)}-{figure(row.ratio.high)})",
            row.bar,
            figure(row.floor_cpu_us),
            figure(row.kvgate_cpu_us),
            f"{row.generator_busy:.0%}",
        )
    return made


if __name__ == "__main__":
    main()
