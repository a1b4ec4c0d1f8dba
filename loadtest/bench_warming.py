"""What users feel of warming: their median time with a warm job beside them, and without.

``python -m loadtest.bench_warming [--engine] [--quick] [--rounds N] [--seconds S]``

An upstream that answers ``CAPACITY`` calls at once, ``DELAY_MS`` each, stands for a backend with no
room to spare; with ``--engine`` the bundled engine computes for real. Users ask as fast as they are
answered, nothing of it stored; without and with a job in turn. Bar: with warming the users' median
time is at most 1.5 times that without. The last column is how fast a job goes on beside them; the
line ``nobody`` how fast it goes alone.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.client import PLACEHOLDER, Generator, Job
from loadtest.processes import Server
from loadtest.stats import Spread, figure, percentile, ratios, spread

CAPACITY: Final = 4
DELAY_MS: Final = 40.0
CONCURRENCY: Final = 4
QUESTIONS: Final = 5000
BAR: Final = 1.5
TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Row:
    """Users without and with warming beside them, in ms, and questions warmed per second."""

    users: int
    without_ms: Spread
    with_ms: Spread
    p50: Spread
    p95: Spread
    warmed_per_s: float

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "users": self.users,
            "without_p50_ms": _spread(self.without_ms),
            "with_p50_ms": _spread(self.with_ms),
            "p50_ratio": _spread(self.p50),
            "p95_ratio": _spread(self.p95),
            "bar": f"<= {BAR}",
            "warmed_per_s": round(self.warmed_per_s, 2),
        }


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running one."""

    port: int

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """JSON of one request. Raises: OSError."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    @contextlib.contextmanager
    def warming(self, rates: list[float]) -> Iterator[None]:
        """A job that runs as long as the block; its rate is added to ``rates``."""
        questions = [f"Question {time.time_ns()} number {n}?" for n in range(QUESTIONS)]
        wish = {"questions": questions, "params": {"max_tokens": TOKENS, "temperature": 0}}
        name = self.ask("POST", "/v1/cache/warm", wish)["id"]
        time.sleep(0.3)
        began_s, before = time.perf_counter(), self._ended(name)
        try:
            yield
        finally:
            rates.append((self._ended(name) - before) / (time.perf_counter() - began_s))
            job = self.ask("DELETE", f"/v1/cache/warm/{name}")
            if job["counts"]["failed"]:
                raise RuntimeError(f"{job['counts']['failed']} questions failed")

    def _ended(self, name: str) -> int:
        counts = self.ask("GET", f"/v1/cache/warm/{name}")["counts"]
        return int(counts["done"] + counts["skipped"] + counts["failed"])


def body() -> bytes:
    """A user's question, another each time."""
    return json.dumps(
        {
            "model": "default",
            "messages": [{"role": "user", "content": f"{PLACEHOLDER.decode()}: what is that?"}],
            "max_tokens": TOKENS,
            "temperature": 0,
        }
    ).encode()


def measure(
    gateway: Gateway, generator: Generator, users: int, *, rounds: int, seconds: float
) -> Row:
    """Rounds of without and with."""
    job = Job(gateway.port, [body()], users, seconds, at_least=3 * users, unique=True)
    without: list[Sequence[float]] = []
    beside: list[Sequence[float]] = []
    rates: list[float] = []
    generator.run(job)  # the first round of everything is not counted
    for _ in range(rounds):
        without.append(_times(generator, job))
        with gateway.warming(rates):
            beside.append(_times(generator, job))
    p50 = [[percentile(times, 0.5) * 1000 for times in runs] for runs in (without, beside)]
    p95 = [[percentile(times, 0.95) for times in runs] for runs in (without, beside)]
    return Row(
        users,
        spread(p50[0]),
        spread(p50[1]),
        ratios(p50[1], p50[0]),
        ratios(p95[1], p95[0]),
        statistics.median(rates),
    )


def _times(generator: Generator, job: Job) -> Sequence[float]:
    load = generator.run(job)
    if load.failures:
        raise RuntimeError(f"{load.failures} of the users' calls failed")
    return load.wait_s


def alone(gateway: Gateway, seconds: float) -> float:
    """Questions warmed per second while nobody asks."""
    rates: list[float] = []
    with gateway.warming(rates):
        time.sleep(seconds)
    return rates[0]


@contextlib.contextmanager
def running(*, engine: bool) -> Iterator[Gateway]:
    """kvgate in front of the slow upstream, or with its engine."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "config.yaml"
        text = "server: {log_level: warning}\ntiers: {cold: {store: memory}}\n"
        if engine:
            text += "warm: {concurrency: 2}\n"
        else:
            mock = stack.enter_context(
                Server(
                    "loadtest.mock_upstream", "--port", "{port}",
                    "--delay-ms", str(DELAY_MS), "--capacity", str(CAPACITY),
                )
            )  # fmt: skip
            text += (
                f'backends: [{{name: up, base_url: "http://127.0.0.1:{mock.port}/v1", '
                f"models: [m]}}]\nwarm: {{concurrency: {CONCURRENCY}}}\n"
            )
        config.write_text(text)
        kvgate = stack.enter_context(
            Server(
                "gateway", "serve", "--config", str(config), "--port", "{port}",
                ready_path="/readyz", ready_s=180.0, log=folder / "kvgate.log",
            )
        )  # fmt: skip
        yield Gateway(kvgate.port)


def table(rows: Sequence[Row], alone_per_s: float, title: str) -> Table:
    """What people read."""
    made = Table(title=title)
    for name in ("users", "p50 without, ms", "p50 with, ms", "ratio", "p95 ratio", "warmed/s"):
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(
            str(row.users),
            str(row.without_ms),
            str(row.with_ms),
            f"{row.p50} {'ok' if row.p50.median <= BAR else 'OVER THE BAR'}",
            figure(row.p95.median),
            figure(row.warmed_per_s),
        )
    made.add_row("nobody", "", "", "", "", figure(alone_per_s))
    return made


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", action="store_true", help="the bundled engine computes")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs per figure")
    parser.add_argument("--seconds", type=float, default=None, help="length of one run")
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    asked = parser.parse_args()
    rounds = 2 if asked.quick else asked.rounds
    seconds = asked.seconds or (15.0 if asked.engine else 4.0)
    users = (1, 4) if asked.engine else (1, CAPACITY, 4 * CAPACITY)
    known = report.facts("loadtest.bench_warming")
    with running(engine=asked.engine) as gateway, Generator(None) as generator:
        alone_per_s = alone(gateway, seconds)
        rows = [
            measure(gateway, generator, count, rounds=rounds, seconds=seconds) for count in users
        ]
    what = (
        f"the bundled engine, {TOKENS} tokens each"
        if asked.engine
        else f"an upstream of {CAPACITY} calls at once, {DELAY_MS:g} ms each"
    )
    console = Console(width=120)
    console.print(table(rows, alone_per_s, f"Users beside warming: {what}"))
    content = {
        **known,
        "backend": what,
        "rows": [row.as_dict() for row in rows],
        "warmed_per_s_alone": round(alone_per_s, 2),
    }
    name = "warming-engine" if asked.engine else "warming"
    console.print(f"written to loadtest/results/{report.write(name, content).name}")


def _spread(value: Spread) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high, "n": value.n}


if __name__ == "__main__":
    main()
