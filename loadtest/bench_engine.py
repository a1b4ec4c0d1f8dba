"""What the engine's prefix reuse and the response store save, through the whole of kvgate.

``python -m loadtest.bench_engine [--quick] [--repeat N]``
``python -m loadtest.bench_engine --model deepseek-tiny`` the engine alone, see ``bench_modes``
``python -m loadtest.bench_engine --kv-dtype fp8``        what eight bits do to the answers, same
``python -m loadtest.bench_engine --vs llama.cpp``        beside a peer, see ``bench_versus``

It starts kvgate with the bundled engine (the model of ``KVGATE_ENGINE__MODEL`` or the default one),
then once more with ``KVGATE_ENGINE__PREFIX_CACHE=0``, and asks both the same:

* the example of NVIDIA's guide to KV cache reuse: a long table and a question about it, then the
  same table and another question, the response store not asked for. A nonce in the table's title
  makes each first question cold.
* the same question twice with ``kv_cache.enabled``;
* long answers, one stream alone, four and eight at once: tokens per second;
* a conversation of ten turns: the time to the first word of each.

Nothing else should run: the matrix products wait for the slowest of their threads, so that one
other busy process makes them many times slower. How much of the machine others used is printed and
kept with the figures.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtest import report
from loadtest.asking import Answer, Asker
from loadtest.neighbours import Neighbours, family, rss_mib
from loadtest.processes import Server
from loadtest.prompts import TURNS, Messages, example
from loadtest.stats import Spread, figure, ratios, spread

READY_S: Final = 300.0
QUIET: Final = 0.5
STREAMS: Final = (1, 4, 8)
HITS: Final = 20
EXAMPLE: Final = {"max_tokens": 15, "top_p": 1, "frequency_penalty": 1.0}
"""What the guide's script sends beside its messages."""


@dataclass(frozen=True, slots=True)
class Row:
    """Something measured before and after, their ratio, and what is expected of it."""

    what: str
    before: Spread
    after: Spread
    ratio: Spread
    bar: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the conversation."""

    prompt_tokens: int
    hit_tokens: int
    first_ms: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of one kvgate; ``others`` is what else ran meanwhile, in cores."""

    rows: Sequence[Row]
    tokens_per_s: Mapping[int, Spread]
    turns: Sequence[Turn]
    ready_s: float
    rss_mib: Mapping[str, float]
    others: float | None
    engine: Mapping[str, Any]


def new_nonce() -> str:
    """Not seen before by any engine; always as many characters."""
    return uuid.uuid4().hex[:8]


def two_questions(asker: Asker, *, repeat: int, bar: str) -> Row:
    """Time to the first token of the first and of the second question about one table."""
    colds, warms = [], []
    for _ in range(repeat):
        nonce = new_nonce()
        colds.append(asker.stream(example(nonce, "What is the age of John Doe?"), **EXAMPLE))
        warms.append(
            asker.stream(example(nonce, "What is the occupation of Jane Smith?"), **EXAMPLE)
        )
    what = (
        f"first token, ms: table of {colds[-1].prompt_tokens} tokens, "
        f"{colds[-1].hit_tokens} and then {warms[-1].hit_tokens} reused"
    )
    before = [answer.first_s * 1000 for answer in colds]
    after = [answer.first_s * 1000 for answer in warms]
    return Row(what, spread(before), spread(after), ratios(before, after), bar)


def same_question(asker: Asker, *, repeat: int) -> Row:
    """A computed answer and the same from the store. Raises: RuntimeError when they differ."""
    computed, stored = [], []
    for _ in range(repeat):
        messages = example(new_nonce(), "What is the age of John Doe?")
        fields = {**EXAMPLE, "kv_cache": {"enabled": True, "ttl": 3600}}
        first = asker.plain(messages, **fields)
        hits = [asker.plain(messages, **fields) for _ in range(HITS)]
        if {hit.heard.level for hit in hits} != {"response"}:
            raise RuntimeError("a repeated question was not answered from the store")
        if {hit.heard.text for hit in hits} != {first.heard.text}:
            raise RuntimeError("the store gave another answer than the engine")
        computed.append(first.total_s * 1000)
        # The second answer itself, not the best of many: what a user sees.
        stored.append(hits[0].total_s * 1000)
    what = "whole answer, ms: the same question twice, kv_cache.enabled"
    return Row(what, spread(computed), spread(stored), ratios(computed, stored), ">= 100")


def decode(port: int, streams: int, *, tokens: int) -> float:
    """Tokens per second of all streams together, while all of them run."""
    heard: list[tuple[float, Answer]] = []

    def listen(number: int) -> None:
        with Asker(port) as asker:
            story = f"Write a long story about {number + 3} animals. It is number {new_nonce()}."
            at_s = time.perf_counter()
            heard.append(
                (at_s, asker.stream([{"role": "user", "content": story}], max_tokens=tokens))
            )

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(heard) < streams:
        raise RuntimeError("a stream failed")
    words = [[at_s + word_s for word_s in answer.word_s] for at_s, answer in heard]
    return rate(words, [answer.completion_tokens for _, answer in heard])


def rate(words: Sequence[Sequence[float]], tokens: Sequence[int]) -> float:
    """Tokens per second of the time from the last stream's start to the first one's end.

    ``words`` has the moments at which each stream's pieces of text came, ``tokens`` how many tokens
    each had: a piece may hold more than one. Raises: ValueError when no time is common to all.
    """
    begin, end = max(each[0] for each in words), min(each[-1] for each in words)
    if begin >= end:
        raise ValueError("the streams did not run at the same time")
    pieces = (
        sum(begin < moment <= end for moment in each) * count / len(each)
        for each, count in zip(words, tokens, strict=True)
    )
    return sum(pieces) / (end - begin)


def conversation(asker: Asker, turns: int) -> list[Turn]:
    """A talk in which every request repeats all that was said."""
    said: Messages = [{"role": "system", "content": f"You help gardeners. Talk {new_nonce()}."}]
    heard = []
    for question in TURNS[:turns]:
        said.append({"role": "user", "content": question})
        answer = asker.stream(said, max_tokens=48)
        said.append({"role": "assistant", "content": answer.heard.text})
        first_ms = round(answer.first_s * 1000, 1)
        heard.append(Turn(answer.prompt_tokens, answer.hit_tokens, first_ms))
    return heard


def measure(*, reuse: bool, repeat: int, tokens: int, log: Path) -> Measured:
    """Start kvgate, measure, end it."""
    began_s = time.perf_counter()
    server = Server(
        "gateway", "serve", "--port", "{port}",
        ready_path="/readyz", ready_s=READY_S, log=log,
        environment={"KVGATE_ENGINE__PREFIX_CACHE": "1" if reuse else "0"},
    )  # fmt: skip
    with server:
        ready_s = time.perf_counter() - began_s
        neighbours = Neighbours(server.pid)
        with Asker(server.port) as asker:
            two_questions(asker, repeat=1, bar="")  # not measured: memory is touched, code is warm
            rows = [two_questions(asker, repeat=repeat, bar=">= 4" if reuse else "about 1")]
            if reuse:
                rows.append(same_question(asker, repeat=repeat))
            turns = conversation(asker, len(TURNS))
        tokens_per_s: dict[int, Spread] = {}
        for streams in STREAMS if reuse else ():
            rates = [decode(server.port, streams, tokens=tokens) for _ in range(min(3, repeat))]
            tokens_per_s[streams] = spread(rates)
        others = neighbours.cores(time.perf_counter() - began_s - ready_s)
        return Measured(
            rows, tokens_per_s, turns, ready_s, memory(server), others, engine_of(server)
        )


def memory(server: Server) -> dict[str, float]:
    """Resident memory of the gateway and of its engine; nothing where the system does not say."""
    found = {}
    with contextlib.suppress(OSError):
        gateway, *engine = family(server.pid)
        found = {"gateway": rss_mib(gateway), "engine": sum(map(rss_mib, engine))}
    return found


def engine_of(server: Server) -> dict[str, Any]:
    """What the engine says of itself: model, dtype, blocks, tokens reused."""
    url = f"http://127.0.0.1:{server.port}/v1/cache/stats"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)["backends"]["embedded"]["kv"]
        return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="times that each figure is taken")
    parser.add_argument("--tokens", type=int, default=96, help="length of the streamed answers")
    parser.add_argument("--quick", action="store_true", help="2 times, 32 tokens")
    parser.add_argument("--model", help="deepseek-tiny, or a model: modes and reuse without HTTP")
    parser.add_argument("--kv-dtype", choices=("bf16", "fp8"), help="its quality, without HTTP")
    parser.add_argument("--threads", type=int, default=0, help="with --model; 0: all cores")
    parser.add_argument("--vs", help="llama.cpp, or the URL of a server with the same model")
    parser.add_argument("--only", nargs="*", default=(), help="with --vs: parts by their keys")
    asked = parser.parse_args()
    if asked.vs:
        from loadtest import bench_versus

        rounds = 2 if asked.quick else asked.repeat
        model = asked.model or bench_versus.MODEL
        bench_versus.run(asked.vs, repeat=rounds, only=asked.only, model=model)
        return
    if asked.model or asked.kv_dtype:
        rounds = 2 if asked.quick else asked.repeat
        alone(asked.model, asked.kv_dtype, repeat=rounds, threads=asked.threads)
        return
    repeat, tokens = (2, 32) if asked.quick else (asked.repeat, asked.tokens)
    known = report.facts("loadtest.bench_engine")
    console = Console(width=110)
    load = os.getloadavg()[0]
    if load > QUIET:
        console.print(
            f"The load average is {load:.2f}: other work is running. Expect worse figures."
        )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "kvgate.log"
        on = measure(reuse=True, repeat=repeat, tokens=tokens, log=log)
        off = measure(reuse=False, repeat=repeat, tokens=tokens, log=log)
    show(console, on, off)
    content = {**known, "reuse_on": asdict(on), "reuse_off": asdict(off)}
    console.print(f"written to loadtest/results/{report.write('engine', content).name}")


def alone(model: str | None, kv_dtype: str | None, *, repeat: int, threads: int) -> None:
    """The engine in this process: modes of latent attention, reuse, the quality of a KV dtype."""
    from loadtest import bench_modes, tiny_deepseek

    console = Console(width=110)
    content: dict[str, Any] = report.facts("loadtest.bench_engine")
    with tempfile.TemporaryDirectory() as folder:
        tiny = model == "deepseek-tiny"
        name = model or os.environ.get("KVGATE_ENGINE__MODEL", "smollm2-135m-instruct")
        path = str(tiny_deepseek.write(Path(folder) / name)) if tiny else name
        if kv_dtype:
            judged = bench_modes.quality(path, kv_dtype)
            bench_modes.show_quality(console, judged)
            content["quality"] = bench_modes.as_json(judged)
        else:
            modes = bench_modes.modes(path, repeat=repeat, threads=threads) if tiny else []
            if modes:
                bench_modes.show_modes(console, modes)
            talks = bench_modes.talks(path, threads=threads)
            bench_modes.show_talks(console, Path(name).name, talks)
            content |= {
                "modes": bench_modes.as_json(modes),
                "talks": bench_modes.as_json(talks),
            }
    kind = "kv-dtype" if kv_dtype else "modes"
    console.print(f"written to loadtest/results/{report.write(kind, content).name}")


def show(console: Console, on: Measured, off: Measured) -> None:
    """What people read."""
    compared = Table(
        title=f"{on.engine['model']}, {on.engine['dtype']}; median (least to greatest)"
    )
    for name in ("", "reuse", "before", "after", "ratio", "bar"):
        compared.add_column(name, justify="left" if name in {"", "reuse", "bar"} else "right")
    for reuse, measured in (("on", on), ("off", off)):
        for row in measured.rows:
            shown = [_shown(value) for value in (row.before, row.after, row.ratio)]
            compared.add_row(row.what, reuse, *shown, row.bar)
    console.print(compared)
    rates = Table(title="Decoding")
    for name in ("streams", "tokens/s together", "tokens/s each"):
        rates.add_column(name, justify="right")
    for streams, found in on.tokens_per_s.items():
        rates.add_row(str(streams), _shown(found), figure(found.median / streams))
    console.print(rates)
    talk = Table(title="A conversation: time to the first token, ms")
    for name in ("turn", "prompt tokens", "reused", "reuse on", "reuse off", "ratio"):
        talk.add_column(name, justify="right")
    for number, (one, other) in enumerate(zip(on.turns, off.turns, strict=True), 1):
        times = (
            figure(one.first_ms),
            figure(other.first_ms),
            figure(other.first_ms / one.first_ms),
        )
        talk.add_row(str(number), str(one.prompt_tokens), str(one.hit_tokens), *times)
    console.print(talk)
    starts = statistics.mean((on.ready_s, off.ready_s))
    held = ", ".join(f"{name} {figure(mib)} MiB" for name, mib in on.rss_mib.items())
    console.print(f"ready {figure(starts)} s after the start; resident: {held}")
    if on.others is not None and off.others is not None:
        console.print(f"others used {max(on.others, off.others):.2f} cores meanwhile")


def _shown(value: Spread) -> str:
    return f"{figure(value.median)} ({figure(value.low)}-{figure(value.high)})"


if __name__ == "__main__":
    main()
