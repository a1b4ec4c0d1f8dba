"""The whole of kvgate with its engine beside llama.cpp's server, with the same file of the model.

Both run with as many threads as there are cores and are asked in turn, so that only one of them
computes at a time. What is asked is what ``bench_engine`` asks: the example of NVIDIA's guide cold and
warm, long answers of one, four and eight streams, a conversation of ten turns. Neither is told
anything of caching: kvgate's response store is off, as shipped.
"""

import contextlib
import http.client
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from engine.weights.fetch import ensure_default_model
from gateway.version import installed_version
from loadtest import peers, report
from loadtest.answers import DONE, data_of, text_of
from loadtest.bench_engine import EXAMPLE, new_nonce, rate
from loadtest.comparison import OURS, Part, Row
from loadtest.neighbours import Neighbours, family, rss_mib
from loadtest.processes import Program, Server
from loadtest.prompts import TURNS, Messages, example
from loadtest.stats import spread

T = TypeVar("T")

LLAMA: Final = "llama.cpp"
PATH: Final = "/v1/chat/completions"
READY_S: Final = 300.0
WAIT_S: Final = 300.0
STREAMS: Final = (1, 4, 8)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A streamed answer: the moments of its words in seconds of one clock, and what it says of itself."""

    began_s: float
    word_s: Sequence[float]
    text: str
    tokens: int

    @property
    def first_ms(self) -> float:
        """Time to the first word."""
        return (self.word_s[0] - self.began_s) * 1000


def stream(port: int, messages: Messages, **fields: Any) -> Spoken:
    """Ask any server of this interface. Raises: OSError, RuntimeError without words or usage."""
    body = {
        "model": "default", "messages": messages, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.connect()
        raw, began_s = json.dumps(body).encode(), time.perf_counter()
        connection.request("POST", PATH, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read(300)!r}")
        return listened(iter(response.readline, b""), began_s, time.perf_counter)
    finally:
        connection.close()


def listened(lines: Any, began_s: float, now: Callable[[], float]) -> Spoken:
    """An answer out of its lines. Raises: RuntimeError."""
    word_s, texts, tokens = [], [], 0
    for line in lines:
        at_s, data = now(), data_of(line.decode())
        if data is None or data == DONE:
            continue
        if text := text_of(data):
            word_s.append(at_s)
            texts.append(text)
        usage = cast(Mapping[str, int], json.loads(data).get("usage") or {})
        tokens = usage.get("completion_tokens", tokens)
    if not word_s or not tokens:
        raise RuntimeError("an answer without words or without usage")
    return Spoken(began_s, word_s, "".join(texts), tokens)


def cold_and_warm(port: int) -> tuple[float, float]:
    """Milliseconds to the first word of a question about a new table, and of another one about it."""
    nonce = new_nonce()
    cold = stream(port, example(nonce, "What is the age of John Doe?"), **EXAMPLE)
    warm = stream(port, example(nonce, "What is the occupation of Jane Smith?"), **EXAMPLE)
    return cold.first_ms, warm.first_ms


def decoded(port: int, streams: int, *, tokens: int) -> float:
    """Tokens per second of all streams together, while all of them run."""
    heard: list[Spoken] = []

    def listen(number: int) -> None:
        story = f"Write a long story about {number + 3} animals. It is number {new_nonce()}."
        heard.append(stream(port, [{"role": "user", "content": story}], max_tokens=tokens))

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(heard) < streams:
        raise RuntimeError("a stream failed")
    return rate([one.word_s for one in heard], [one.tokens for one in heard])


def talked(port: int) -> Sequence[float]:
    """Milliseconds to the first word of each turn of a new conversation."""
    said: Messages = [{"role": "system", "content": f"You help gardeners. Talk {new_nonce()}."}]
    firsts = []
    for question in TURNS:
        said.append({"role": "user", "content": question})
        answer = stream(port, said, max_tokens=48)
        said.append({"role": "assistant", "content": answer.text})
        firsts.append(answer.first_ms)
    return firsts


@dataclass(slots=True)
class Turns:
    """Servers by their ports, asked in turn; when the time is up no further round and no measure begins."""

    ports: Mapping[str, int]
    until_s: float
    now: Callable[[], float] = time.perf_counter
    left_out: list[str] = field(default_factory=list)

    def ask(self, what: str, repeat: int, ask: Callable[[int], T]) -> dict[str, list[T]]:
        """What each said, as often as there is time for; nothing where there is none left."""
        made: dict[str, list[T]] = {name: [] for name in self.ports}
        for number in range(repeat):
            if self.now() > self.until_s:
                if not number:
                    self.left_out.append(what)
                break
            for name, port in self.ports.items():
                made[name].append(ask(port))
            print(f"{what}: { ({name: values[-1] for name, values in made.items()}) }", flush=True)
        return made


def rows(turns: Turns, *, repeat: int, tokens: int) -> list[Row]:
    """All measures; each server is asked once unmeasured before."""
    for port in turns.ports.values():
        stream(port, [{"role": "user", "content": "Hello!"}], max_tokens=4)
    first = turns.ask("first word, a table of 900 tokens", repeat, cold_and_warm)
    found = [
        Row("first word, table of 900 tokens, new", "ms", "lower", _column(first, 0)),
        Row("first word, the same table again", "ms", "lower", _column(first, 1)),
    ]
    for streams in STREAMS:

        def speed(port: int, streams: int = streams) -> float:
            return decoded(port, streams, tokens=tokens)

        what = "decoding, one stream" if streams == 1 else f"decoding, {streams} streams together"
        found.append(Row(what, "tokens/s", "higher", turns.ask(what, min(3, repeat), speed)))
    what = "first word, turns 2 to 10 of a talk"
    talks = turns.ask(what, max(1, repeat // 2), talked)
    later = {name: [spread(talk[1:]).median for talk in made] for name, made in talks.items()}
    found.append(Row(what, "ms", "lower", later))
    return [row for row in found if any(row.runs.values())]


def _column(
    pairs: Mapping[str, Sequence[tuple[float, float]]], at: int
) -> dict[str, Sequence[float]]:
    return {name: [pair[at] for pair in made] for name, made in pairs.items()}


def measure(*, repeat: int, tokens: int, seconds: float) -> Part:
    """Start both, measure for about ``seconds`` at most, end both."""
    known = report.facts("loadtest.compare")
    model = ensure_default_model()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kvgate = Server(
            "gateway", "serve", "--port", "{port}", ready_path="/readyz", ready_s=READY_S,
            log=folder / "kvgate.log", environment={"KVGATE_ENGINE__MODEL": str(model)},
        )  # fmt: skip
        servers: dict[str, Program] = {}
        versions: dict[str, str] = {}
        absent: dict[str, str] = {}
        try:
            threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
            llama, versions[LLAMA] = peers.llama_cpp(folder, model, threads=threads)
            servers[LLAMA] = stack.enter_context(llama)
        except (peers.AbsentError, RuntimeError, OSError) as error:
            versions.pop(LLAMA, None)
            absent[LLAMA] = str(error)
        servers[OURS], versions[OURS] = stack.enter_context(kvgate), installed_version()
        neighbours = Neighbours(*(one.pid for one in servers.values()))
        began_s = time.perf_counter()
        ports = {name: server.port for name, server in servers.items()}
        turns = Turns(ports, began_s + seconds)
        found = rows(turns, repeat=repeat, tokens=tokens)
        others = neighbours.cores(time.perf_counter() - began_s)
        notes = [] if others is None else [f"Others used {others:.2f} cores meanwhile."]
        if turns.left_out:
            notes.append(f"No time was left for: {', '.join(turns.left_out)}.")
        held = {name: sum(map(rss_mib, family(one.pid))) for name, one in servers.items()}
        return Part(known, versions, found, absent, notes, held)
