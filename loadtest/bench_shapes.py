"""How long does one body hold the event loop? `python -m loadtest.bench_shapes [--rounds 3]`

A gateway in a process of its own is asked with bodies of many shapes at the limits, and answered with
such. A probe on its event loop asks for its turn every millisecond. The longest time between two turns
is the hold. Of several rounds the smallest counts, since another process may have had the core.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import aiohttp
from aiohttp import web

from gateway.app import build
from gateway.config import Config
from loadtest.report import facts, write

BAR_MS: Final = 50.0
MIB: Final = 1024 * 1024
ROOM: Final = 4096  # for what stands around a shape
Make = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Shape:
    """A body of about so many bytes: for a request to ``path``, or for the answer to one."""

    name: str
    size_bytes: float
    make: Make
    path: str = "/v1/chat/completions"
    is_answer: bool = False


def repeated(one: bytes) -> Make:
    """A list of as many of this as fit."""
    return lambda size: b"[" + b",".join([one] * (size // (len(one) + 1))) + b"]"


def text_of(one: bytes) -> Make:
    """A text of as many of this as fit."""
    return lambda size: b'"' + one * (size // len(one)) + b'"'


def members(size: int) -> bytes:
    """An object with as many names as fit."""
    return b"{" + b",".join(b'"%06x":1' % number for number in range(size // 11)) + b"}"


def inputs(count: int, one: bytes) -> Make:
    """A list of so many texts, which all differ."""
    return lambda _: b"[" + b",".join(b'"%b %d"' % (one, n) for n in range(count)) + b"]"


def as_field(value: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"?"}],"x":%b}' % value


def as_content(value: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":%b}]}' % value


def as_messages(value: bytes) -> bytes:
    return b'{"model":"m","messages":%b}' % value


def as_prompt(value: bytes) -> bytes:
    return b'{"model":"m","prompt":%b}' % value


def as_input(value: bytes) -> bytes:
    return b'{"model":"m","input":%b}' % value


def of(make: Make, around: Callable[[bytes], bytes]) -> Make:
    return lambda size: around(make(size - ROOM))


MESSAGE: Final = b'{"role":"user","content":"What is asked here, and by whom?"}'
DEEP: Final = b"[" * 100 + b"1" + b"]" * 100
TOKENS: Final = repeated(b"12345")
VECTOR: Final = b"[" + b",".join(b"-0.0%015d" % (n * 7919 % 10**15) for n in range(1536)) + b"]"
SHAPES: Final = (
    Shape("text", 16 * MIB, of(text_of(b"a quiet word "), as_content)),
    Shape("text, line ends", 16 * MIB, of(text_of(rb"a line\n"), as_content)),
    Shape("text, four-byte characters", 16 * MIB, of(text_of("😀".encode()), as_content)),
    Shape("text, escaped", 16 * MIB, of(text_of(rb"\u00e9"), as_content)),
    Shape("messages", 4 * MIB, of(repeated(MESSAGE), as_messages)),
    Shape("token ids", MIB, of(TOKENS, as_prompt), "/v1/completions"),
    Shape("token ids", 4 * MIB, of(TOKENS, as_prompt), "/v1/completions"),
    Shape("nested lists", MIB, of(repeated(b"[]"), as_field)),
    Shape("nested lists, 100 levels", MIB, of(repeated(DEEP), as_field)),
    Shape("nested lists, too many", 10 * MIB, of(repeated(b"[]"), as_field)),
    Shape("objects", MIB, of(repeated(b'{"a":1.0}'), as_field)),
    Shape("members of one object", MIB, of(members, as_field)),
    Shape("members, too many", 16 * MIB, of(members, as_field)),
    Shape("decimals", 5 * MIB, of(repeated(b"0.12345"), as_field)),
    Shape("long decimals", 8 * MIB, of(repeated(b"0.1234567890123456789"), as_field)),
    Shape("integers of 20 digits", 8 * MIB, of(repeated(b"98765432109876543210"), as_field)),
    Shape("short texts", 2.5 * MIB, of(repeated(b'"a"'), as_field)),
    Shape("2,048 inputs", 64 * 1024, of(inputs(2048, b"text"), as_input), "/v1/embeddings"),
    Shape("2,048 long inputs", 4 * MIB, of(inputs(2048, b"t" * 2000), as_input), "/v1/embeddings"),
    Shape("answer: text", 10 * MIB, text_of(rb"a quiet word\n"), is_answer=True),
    Shape(
        "answer: vectors",
        10 * MIB,
        lambda size: b"[" + b",".join([VECTOR] * (size // len(VECTOR))) + b"]",
        "/v1/embeddings",
        is_answer=True,
    ),
)


def answer_of(path: str, value: bytes) -> bytes:
    """A plain answer that holds ``value``."""
    if path == "/v1/embeddings":
        return b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":%b}]}' % value
    message = b'{"role":"assistant","content":%b}' % value
    choice = b'{"index":0,"message":%b,"finish_reason":"stop"}' % message
    return b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[%b]}' % choice


class Upstream:
    """Answers at once: with ``answer`` if there is one, else with what the request needs."""

    def __init__(self) -> None:
        self.answer: bytes | None = None

    async def handle(self, request: web.Request) -> web.Response:
        raw = await request.read()
        answer = self.answer
        if answer is None and request.path.endswith("/embeddings"):
            data = [
                {"object": "embedding", "index": place, "embedding": [0.25, 0.5]}
                for place, _ in enumerate(json.loads(raw)["input"])
            ]
            answer = json.dumps({"object": "list", "data": data}).encode()
        elif answer is None and request.path.endswith("/v1/completions"):
            answer = (
                b'{"id":"c","object":"text_completion","created":1,"model":"m",'
                b'"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}'
            )
        return web.Response(
            body=answer or answer_of(request.path, b'"a"'), content_type="application/json"
        )


async def served(app: web.Application) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


def gateway_process(pipe: Connection, upstream: str) -> None:
    asyncio.run(gateway(pipe, upstream))


async def gateway(pipe: Connection, upstream: str) -> None:
    """Serve; at each word on ``pipe`` say the longest hold since the last one, in milliseconds."""
    config = Config.model_validate(
        {
            "backends": [{"name": "up", "base_url": upstream, "models": ["m"]}],
            "defaults": {"enabled": True},
            "tiers": {"cold": {"store": "memory"}},
            "server": {"log_level": "error"},
        }
    )
    _, port = await served(await build(config))
    gc.freeze()  # as gateway.serve does
    gc.set_threshold(20_000, 20, 20)
    pipe.send(port)
    last = time.perf_counter()
    longest = 0.0
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest = max(longest, now - last - 0.001)
        if pipe.poll():
            if pipe.recv() == "end":
                return
            pipe.send(longest * 1000)
            longest, now = 0.0, time.perf_counter()
        last = now


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the gateway's process says its longest hold, and how often each shape is sent."""

    pipe: Connection
    rounds: int


async def measured(rounds: int, named: str) -> list[dict[str, Any]]:
    upstream = Upstream()
    app = web.Application(client_max_size=64 * MIB)
    app.router.add_post("/{path:.*}", upstream.handle)
    runner, port = await served(app)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=gateway_process, args=(theirs, f"http://127.0.0.1:{port}/v1"), daemon=True
    )
    process.start()
    try:
        url = f"http://127.0.0.1:{await asyncio.to_thread(ours.recv)}"
        async with aiohttp.ClientSession(url) as session:

            async def ask(path: str, body: bytes, name: str) -> int:
                headers = {"Content-Type": "application/json", "X-Cache-ID": name}
                async with session.post(path, data=body, headers=headers) as response:
                    await response.read()
                    return response.status

            bench = Bench(ours, rounds)
            asked = [shape for shape in SHAPES if named in shape.name]
            return [await one(shape, ask, upstream, bench) for shape in asked]
    finally:
        ours.send("end")
        await asyncio.to_thread(process.join, 10)
        await runner.cleanup()


async def one(
    shape: Shape, ask: Callable[[str, bytes, str], Awaitable[int]], upstream: Upstream, bench: Bench
) -> dict[str, Any]:
    made = shape.make(int(shape.size_bytes))
    upstream.answer = answer_of(shape.path, made) if shape.is_answer else None
    plain = as_input(b'"a"') if shape.path == "/v1/embeddings" else as_content(b'"?"')
    body = plain if shape.is_answer else made
    holds, status = [], 0
    for number in range(bench.rounds):
        bench.pipe.send("hold")
        await asyncio.to_thread(bench.pipe.recv)
        status = await ask(shape.path, body, f"{shape.name} {number}")
        await asyncio.sleep(0.2)  # what is done after the answer holds the loop as well
        bench.pipe.send("hold")
        holds.append(await asyncio.to_thread(bench.pipe.recv))
    return {
        "shape": shape.name,
        "mib": round(len(made) / MIB, 2),
        "status": status,
        "hold_ms": round(min(holds), 1),
        "rounds_ms": [round(hold, 1) for hold in holds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="shapes whose name holds this")
    asked = parser.parse_args()
    rows = asyncio.run(measured(asked.rounds, asked.only))
    print("| shape | MiB | status | longest hold, ms |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['shape']} | {row['mib']} | {row['status']} | {row['hold_ms']} |")
    over = [row["shape"] for row in rows if row["hold_ms"] >= BAR_MS]
    print(write("shapes", {**facts("loadtest.bench_shapes"), "bar_ms": BAR_MS, "rows": rows}))
    if over:
        raise SystemExit(f"over {BAR_MS:.0f} ms: {', '.join(over)}")


if __name__ == "__main__":
    main()
