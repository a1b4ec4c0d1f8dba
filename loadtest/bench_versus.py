"""The bundled engine beside llama.cpp's server, or any other OpenAI-compatible one, over HTTP.

``python -m loadtest.bench_engine --vs llama.cpp``   starts it, from the package ``xllamacpp``
``python -m loadtest.bench_engine --vs URL``         asks one that runs already

Each measure is taken of both in turn, as often as ``--repeat`` says; the table has medians, the ratios of
neighbours and the goals that were set on another machine (2 cores with AMX), of which the ratio to the
best build of llama.cpp there is the part that carries over. Before that the quality of the arithmetic
against fp32 (``bench_modes.kernels``); at the end what only our engine has: restoring from disk.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest import report, versus
from loadtest.neighbours import Neighbours, rss_mib
from loadtest.processes import Server
from loadtest.stats import Spread, figure, ratios, spread
from loadtest.versus import Measure, Peer

MODEL: Final = "smollm2-135m-instruct"
READY_S: Final = 120.0
SLOTS: Final = 8
CONTEXT_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure: where it comes from, whether more is better, and what was aimed at elsewhere.

    ``ratio`` is the goal over llama.cpp's figure on the machine where both were set.
    """

    title: str
    name: str
    more: bool
    there: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Part:
    """A measure, how often at most, and its figures."""

    key: str
    measure: Measure
    goals: tuple[Goal, ...]
    most: int = 9


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both servers."""

    title: str
    ours: Spread
    theirs: Spread
    ratio: Spread
    goal: Goal


PARTS: Final = (
    Part(
        "nim",
        versus.two_questions,
        (
            Goal("table of 890 tokens: first token, cold, ms", "cold_ms", False, 220, 0.25),
            Goal("the same table, another question, ms", "warm_ms", False, 15, 0.41),
        ),
    ),
    *(
        Part(
            f"prefill{tokens}",
            partial(versus.prefill, tokens=tokens),
            (Goal(f"prefill of {tokens}, tokens/s", "tokens_per_s", True, there, ratio),),
            most=5 if tokens < 6000 else 2,
        )
        for tokens, there, ratio in ((512, 4200, 3.4), (2048, 4300, 6.0), (6000, 2600, 8.1))
    ),
    *(
        Part(
            f"decode{tokens}",
            partial(versus.decode, tokens=tokens, answer=128),
            (Goal(f"one stream after {tokens}, tokens/s", "tokens_per_s", True, there, ratio),),
            most=5,
        )
        for tokens, there, ratio in ((128, 300, 1.08), (2048, 220, 2.7))
    ),
    *(
        Part(
            f"streams{count}",
            partial(versus.together, streams=count, answer=96),
            (Goal(f"{count} streams together, tokens/s", "tokens_per_s", True, there, ratio),),
            most=5,
        )
        for count, there, ratio in ((4, 480, 1.14), (8, 700, 1.34))
    ),
    Part(
        "talk",
        versus.conversation,
        (
            Goal("ten turns: first token of turns 2-10, ms", "later_ms", False, 15, 0.41),
            Goal("ten turns: all, s", "total_s", False, 1.3, 0.78),
        ),
        most=5,
    ),
    Part(
        "systems",
        versus.system_prompts,
        (
            Goal("8 system prompts of 1,500: round 1, ms", "round_1_ms", False, 335, 0.19),
            Goal("8 system prompts of 1,500: rounds 2-5, ms", "later_ms", False, 20, 0.21),
        ),
        most=1,
    ),
)


def compare(ours: Peer, theirs: Peer, part: Part, *, repeat: int) -> list[Line]:
    """A part's figures, of both servers in turn."""
    count = min(repeat, part.most)
    found = [(part.measure(ours), part.measure(theirs)) for _ in range(count)]
    return [_line(found, goal) for goal in part.goals]


def _line(found: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], goal: Goal) -> Line:
    mine = [one[goal.name] for one, _ in found]
    other = [one[goal.name] for _, one in found]
    return Line(goal.title, spread(mine), spread(other), ratios(mine, other), goal)


@contextmanager
def engine(folder: Path, model: str) -> Iterator[tuple[Server, float, float]]:
    """Our engine, the seconds until it was ready, and its MiB then."""
    server = Server(
        "engine", "--port", "{port}", "--model", model, "--kv-disk-path", str(folder / "kv"),
        ready_path="/healthz", ready_s=READY_S, log=folder / "engine.log",
    )  # fmt: skip
    began_s = time.perf_counter()
    with server:
        yield server, time.perf_counter() - began_s, rss_mib(server.pid)


@contextmanager
def llama(folder: Path, model: str) -> Iterator[str]:
    """llama.cpp's server on all cores; gives its URL."""
    server = Server(
        "loadtest.llama_server", model, "--port", "{port}", "--threads",
        str(len(os.sched_getaffinity(0))), "--slots", str(SLOTS), "--context",
        str(SLOTS * CONTEXT_TOKENS), ready_path="/health", ready_s=READY_S,
        log=folder / "llama.log",
    )  # fmt: skip
    with server:
        yield f"http://127.0.0.1:{server.port}"


def run(vs: str, *, repeat: int, only: Sequence[str], model: str) -> None:
    """Measure, print, write."""
    console = Console(width=120)
    content: dict[str, Any] = report.facts("loadtest.bench_engine")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = _path_of(model)
        server, ready_s, ready_mib = stack.enter_context(engine(folder, path))
        url = stack.enter_context(llama(folder, path)) if vs == "llama.cpp" else vs
        ours, theirs = Peer(f"http://127.0.0.1:{server.port}"), Peer(url)
        for one in (ours, theirs):
            one.ask(versus.said("Hello!"), tokens=4)  # not measured: memory is touched
        began_s, neighbours = time.perf_counter(), Neighbours(server.pid)
        lines: list[Line] = []
        for part in PARTS:
            if not only or part.key in only:
                lines += compare(ours, theirs, part, repeat=repeat)
                show(console, vs, lines[-len(part.goals) :])
        seconds = time.perf_counter() - began_s
        others = neighbours.cores(seconds)
        after = rss_mib(server.pid)
    show(console, vs, lines)
    console.print(
        f"ready after {ready_s:.1f} s with {ready_mib:.0f} MiB; {after:.0f} MiB after all"
    )
    console.print(f"others (and the peer) used {others} cores meanwhile")
    content |= {
        "vs": vs,
        "lines": [asdict(line) for line in lines],
        "ready_s": ready_s,
        "ready_mib": ready_mib,
        "after_mib": after,
        "others": others,
    }
    console.print(f"written to loadtest/results/{report.write('versus', content).name}")


def _path_of(model: str) -> str:
    from engine.kernels import path_of

    return str(path_of(model))


def show(console: Console, vs: str, lines: Sequence[Line]) -> None:
    """What people read."""
    table = Table(title=f"Our engine beside {vs}: median (least to greatest)")
    for name in ("", "ours", "theirs", "ours / theirs", "goal there", "goal as a ratio", ""):
        table.add_column(name, justify="left" if not name else "right")
    for line in lines:
        goal = line.goal
        met = line.ratio.median >= goal.ratio if goal.more else line.ratio.median <= goal.ratio
        shown = [_shown(value) for value in (line.ours, line.theirs, line.ratio)]
        sign = ">=" if goal.more else "<="
        there = f"{sign} {figure(goal.there)}"
        table.add_row(
            line.title, *shown, there, f"{sign} {goal.ratio:g}", "met" if met else "not met"
        )
    console.print(table)


def _shown(value: Spread) -> str:
    return f"{figure(value.median)} ({figure(value.low)}-{figure(value.high)})"
