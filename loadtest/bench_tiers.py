"""Restore a prompt from disk, or compute it again? `python -m loadtest.bench_tiers [--model FILE] [--tokens 1024]`

One engine in this process, its thread running, its tier on disk in a fresh folder. The same prompt is asked

    computed     under a salt that nobody has used
    from disk    after the pool was filled with something else; the file is in the system's page cache
    off the disk the same, after the system was told to forget the file's pages
    in the pool  right after: what every way has to do besides

and the time to the first token is taken, from the call to the event. A restored block is one that was read,
checked, copied into the pool. Every answer's tokens are compared with those of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.config import EngineConfig
from engine.loading import make_service
from engine.request import GenerationRequest, SamplingParams
from loadtest import report

WAYS: Final = ("computed", "from disk", "off the disk", "in the pool")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request: seconds to the first token, its tokens, and where the prompt came from."""

    first_s: float
    tokens: tuple[int, ...]
    cold_tokens: int
    hot_tokens: int


class Bench:
    """An engine with a tier on disk, asked over and over."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.length = options.tokens
        config = EngineConfig(
            model=options.model,
            dtype=options.dtype,
            kernels=options.kernels,
            threads=options.threads,
            kv_memory=options.kv_memory << 20,
            kv_disk_path=str(folder),
            kv_disk_max=4 << 30,
            speculate_tokens=0,
        )
        self.service = make_service(config, wall_clock=time.time, on_fatal=print)
        self.folder = folder
        self._asked = 0
        scheduler = self.service.engine.scheduler
        self._pool = scheduler.index.pool.total_blocks * config.block_tokens
        assert self.length + 64 < self._pool <= scheduler.capacity_tokens, (
            "--kv-memory does not fit"
        )

    async def ask(self, *, salt: str, length: int | None = None, seed: int = 1) -> Seen:
        """A greedy answer of eight tokens to a prompt of this many."""
        self._asked += 1
        count = self.length + 1 if length is None else length  # the last token is always computed
        prompt = tuple(100 + (37 * at * at + 11 * seed * at) % 40_000 for at in range(count))
        request = GenerationRequest(
            id=f"r{self._asked}",
            prompt=prompt,
            sampling=SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True),
            salt=salt,
            ttl_s=0.0 if salt == "filler" else float("inf"),
        )
        began, first_s, tokens = time.perf_counter(), 0.0, []
        receipt: Any = None
        async with aclosing(self.service.engine.generate(request)) as events:
            async for event in events:
                first_s = first_s or time.perf_counter() - began
                receipt = receipt or event.receipt
                tokens.append(event.token or 0)
        return Seen(first_s, tuple(tokens), receipt.cold, receipt.hot)

    async def push_out(self, seed: int) -> None:
        """The pool has something else now, and all that was worth it is on disk."""
        await self.written()
        await self.ask(salt="filler", length=self._pool - 8, seed=seed)

    async def written(self) -> None:
        """Until the writer has nothing left."""
        before = -1
        while (count := self.cold["writes"]) != before:
            before = count
            await asyncio.sleep(0.2)

    @property
    def cold(self) -> dict[str, Any]:
        """The tier's own figures."""
        told: dict[str, Any] = self.service.stats()["tiers"]["cold"]
        return told

    def forget_pages(self) -> None:
        """Have the system read the file from the disk next time."""
        for file in self.folder.rglob("blocks"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


async def run(bench: Bench, runs: int) -> dict[str, list[float]]:
    """Seconds to the first token of each way, interleaved."""
    bench.service.engine.start()
    first = await bench.ask(salt="kept")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(runs):
        seen = {"computed": await bench.ask(salt=f"fresh {number}")}
        await bench.push_out(100 * number)
        seen["from disk"] = await bench.ask(salt="kept")
        await bench.push_out(100 * number + 50)
        bench.forget_pages()
        seen["off the disk"] = await bench.ask(salt="kept")
        seen["in the pool"] = await bench.ask(salt="kept")
        for way, one in seen.items():
            assert one.tokens == first.tokens, f"{way}: another answer"
            wanted = {"computed": (0, 0), "in the pool": (0, bench.length)}.get(way)
            told = one.cold_tokens, one.hot_tokens
            assert told == (wanted or (bench.length, 0)), f"{way}: {told}"
            seconds[way].append(one.first_s)
    return seconds


def table(medians: dict[str, float], tokens: int) -> str:
    """What people read: medians, what restoring costs beside computing, and the ratio."""
    besides = medians["in the pool"]
    compute = medians["computed"] - besides
    lines = [
        f"{tokens:,} tokens; the time to the first token, and what it is more than in the pool\n",
        "| way | first token, ms | of that restored or computed, ms | times as fast as computing |",
        "|---|---|---|---|",
    ]
    for way, seconds in medians.items():
        own = seconds - besides
        ratio = f"{compute / own:.1f}" if way != "in the pool" and own > 0 else "–"
        lines.append(f"| {way} | {seconds * 1e3:.1f} | {own * 1e3:.1f} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=1024, help="a whole number of blocks")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--kv-memory", type=int, default=48, help="MiB of the pool")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is meant")
    options = parser.parse_args()
    facts = report.facts("loadtest.bench_tiers")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(options, Path(folder))
        seconds = asyncio.run(run(bench, options.runs))
        bench.service.engine.close()
        tiers = bench.service.stats()["tiers"]
    medians = {way: statistics.median(all_of) for way, all_of in seconds.items()}
    told = bench.service.facts
    print(f"{told['kernels']} kernels, {told['dtype']}, {told['kv_token_bytes']:,} bytes a token\n")
    print(table(medians, options.tokens))
    cold = tiers["cold"]
    print(f"\nas the engine saw it: {cold['read_bytes_per_s'] / 1e6:,.0f} MB/s,", end=" ")
    print(f"{tiers['prefill_tokens_per_s']:,.0f} tokens/s of prefill")
    written = report.write("tiers", {**facts, "facts": told, "seconds": seconds, "tiers": tiers})
    print(written)


if __name__ == "__main__":
    main()
