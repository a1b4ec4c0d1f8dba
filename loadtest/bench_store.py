"""What the disk tier costs, and whether it grows with what it holds.

``python -m loadtest.bench_store [--entries N] [--body BYTES] [--folder PATH]``

A tier with a thousand entries and one with N (a million) are opened side by side and asked in
turn, so that both see the same machine. They are loaded by the store's own tables, a thousand
entries to a transaction and in the order of their keys, because a million single writes measure
nothing else than the disk. All figures of reading and writing afterwards are of the store as the
gateway uses it: an event loop, threads, one transaction for each answer.
"""

import argparse
import asyncio
import gc
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from gateway.store.base import Entry
from gateway.store.disk import DiskStore, open_database
from gateway.store.disk_database import transaction
from gateway.store.disk_shelf import Shelf
from loadtest import report
from loadtest.stats import Spread, figure, percentile, ratios, spread
from policies.freshness import EntryMeta
from policies.keys import Scope

FEW: Final = 1000
BAR: Final = 1.5
ROUNDS: Final = 9
GETS: Final = 2000
PUTS: Final = 300
STARTS: Final = 5
CHURN_BYTES: Final = 24 * 2**20
NOW: Final = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class Size:
    """What was measured of a tier with so many entries. Times in microseconds."""

    entries: int
    hit_us: Spread
    hit_p99_us: Spread
    put_us: Spread
    start_ms: Spread
    file_bytes: int
    charged_bytes: int


def entry_of(number: int, body_bytes: int) -> Entry:
    """An answer as small as asked; its key is as random as a real one."""
    key = sha256(b"bench %d" % number).digest()
    meta = EntryMeta(
        key=key,
        scope=Scope("tenant", "default"),
        model="m",
        endpoint="chat",
        tier="cold",
        priority="low",
        stored_at=NOW,
        ttl_s=7200.0,
        stale_while_revalidate_s=0.0,
        stale_if_error_s=0.0,
        cost_s=0.1 + number % 97 / 10,
        size_bytes=body_bytes,
        prompt_tokens=100,
        completion_tokens=50,
    )
    return Entry(meta, (key * (body_bytes // len(key) + 1))[:body_bytes])


def load(folder: Path, entries: int, body_bytes: int) -> float:
    """Fill a new tier; returns how long it took in seconds."""
    began = time.perf_counter()
    shelf = Shelf("cold", 2**40)
    database = open_database(folder)
    database.expects(shelf.schema())
    asyncio.run(_loaded(database.work, shelf, entries, body_bytes))
    asyncio.run(database.close())
    return time.perf_counter() - began


async def _loaded(
    work: Callable[[Callable[[sqlite3.Connection], None]], Awaitable[None]],
    shelf: Shelf,
    entries: int,
    body_bytes: int,
) -> None:
    numbers = sorted(range(entries), key=lambda number: sha256(b"bench %d" % number).digest())

    def job(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA cache_size=-262144")
        for first in range(0, entries, FEW):
            with transaction(connection):
                for number in numbers[first : first + FEW]:
                    shelf.put(connection, entry_of(number, body_bytes), {}, now=NOW)
            if first % (20 * FEW) == 0:
                connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    await work(job)


async def start_ms(folder: Path) -> float:
    """From nothing to the first answer."""
    began = time.perf_counter()
    database = open_database(folder)
    store = DiskStore("cold", database, max_bytes=2**40)
    found = await store.get(entry_of(1, 0).meta.key, now=NOW)
    took = time.perf_counter() - began
    assert found is not None
    await database.close()
    return 1000 * took


async def gets_us(store: DiskStore, keys: Sequence[bytes]) -> list[float]:
    """How long each read took, one after the other."""
    took = []
    for key in keys:
        began = time.perf_counter()
        found = await store.get(key, now=NOW)
        took.append(1e6 * (time.perf_counter() - began))
        assert found is not None
    return took


async def puts_us(store: DiskStore, entries: Sequence[Entry]) -> list[float]:
    """How long each write took, one after the other."""
    took = []
    for entry in entries:
        began = time.perf_counter()
        await store.put(entry, now=NOW)
        took.append(1e6 * (time.perf_counter() - began))
    return took


async def measured(folders: Sequence[Path], sizes: Sequence[int], body_bytes: int) -> list[Size]:
    """Both tiers, in turn."""
    dice = random.Random(1)
    starts = [[await start_ms(folder) for folder in folders] for _ in range(STARTS)]
    databases = [open_database(folder) for folder in folders]
    stores = [DiskStore("cold", database, max_bytes=2**40) for database in databases]
    hits: list[list[list[float]]] = [[] for _ in stores]
    puts: list[list[float]] = [[] for _ in stores]
    gc.disable()
    for round_ in range(ROUNDS + 1):
        for at, store in enumerate(stores):
            numbers = [dice.randrange(sizes[at]) for _ in range(GETS)]
            took = await gets_us(store, [entry_of(number, 0).meta.key for number in numbers])
            if round_:  # the first one warms up
                hits[at].append(took)
        for at, store in enumerate(stores):
            again = [entry_of(dice.randrange(sizes[at]), body_bytes) for _ in range(PUTS)]
            puts[at] += await puts_us(store, again)
        gc.collect()
    gc.enable()
    found = []
    for at, store in enumerate(stores):
        fill = store.fill()
        await store.close()
        await databases[at].close()
        found.append(
            Size(
                entries=sizes[at],
                hit_us=spread([percentile(took, 0.5) for took in hits[at]]),
                hit_p99_us=spread([percentile(took, 0.99) for took in hits[at]]),
                put_us=spread([percentile(puts[at], 0.5)]),
                start_ms=spread([start[at] for start in starts]),
                file_bytes=_taken(folders[at]),
                charged_bytes=fill.size_bytes,
            )
        )
    return found


async def churned(folder: Path, body_bytes: int) -> dict[str, float]:
    """A tier that was written three times over: what its file takes, against its limit."""
    database = open_database(folder)
    store = DiskStore("cold", database, max_bytes=CHURN_BYTES)
    dice, number, evicted = random.Random(2), 0, 0
    while evicted < 2 * max(1, store.fill().entries):
        batch = []
        for _ in range(64):
            size = int(body_bytes * dice.lognormvariate(0.0, 1.0))
            batch.append(store.put(entry_of(number, size), now=NOW + number / 1000))
            number += 1
        evicted += sum(len(stored.gone) for stored in await asyncio.gather(*batch))
    fill = store.fill()
    await store.close()
    await database.close()
    taken = _taken(folder)
    return {
        "max_bytes": CHURN_BYTES,
        "charged_bytes": fill.size_bytes,
        "file_bytes": taken,
        "file_to_max": taken / CHURN_BYTES,
        "entries": fill.entries,
        "evictions": fill.evictions,
    }


def _taken(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def rss_bytes() -> int:
    """What this process takes of memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return 0


def _as_dict(size: Size) -> dict[str, Any]:
    times = {
        name: {"median": one.median, "low": one.low, "high": one.high, "n": one.n}
        for name in ("hit_us", "hit_p99_us", "put_us", "start_ms")
        if isinstance(one := getattr(size, name), Spread)
    }
    return {
        "entries": size.entries,
        **times,
        "file_bytes": size.file_bytes,
        "charged_bytes": size.charged_bytes,
    }


def _show(found: Sequence[Size], ratio: float, churn: dict[str, float], rss: int) -> None:
    table = Table("entries", "hit µs", "hit p99 µs", "put µs", "start ms", "file MiB")
    for one in found:
        table.add_row(
            f"{one.entries:,}",
            str(one.hit_us),
            figure(one.hit_p99_us.median),
            figure(one.put_us.median),
            str(one.start_ms),
            figure(one.file_bytes / 2**20),
        )
    console = Console()
    console.print(table)
    console.print(f"hit at many entries / at few: {figure(ratio)} (bar {BAR})")
    console.print(f"file / max_bytes after churn: {figure(churn['file_to_max'])} (bar 0.9 to 1.1)")
    console.print(f"memory of the process with both tiers open: {figure(rss / 2**20)} MiB")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--body", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folders = [Path(name) / "few", Path(name) / "many"]
        sizes = [FEW, asked.entries]
        facts = report.facts("loadtest.bench_store")
        loads = [
            load(folder, size, asked.body) for folder, size in zip(folders, sizes, strict=True)
        ]
        before = rss_bytes()
        found = asyncio.run(measured(folders, sizes, asked.body))
        rss = rss_bytes()
        churn = asyncio.run(churned(Path(name) / "churn", asked.body))
    ratio = ratios([found[1].hit_us.median], [found[0].hit_us.median]).median
    _show(found, ratio, churn, rss)
    path = report.write(
        "store",
        {
            **facts,
            "body_bytes": asked.body,
            "sizes": [_as_dict(one) for one in found],
            "hit_ratio": ratio,
            "bar": BAR,
            "churn": churn,
            "rss_bytes": {"before_reading": before, "after": rss},
            "load_s": loads,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
