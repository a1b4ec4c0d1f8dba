"""What stored answers take of the process's memory beside what they are charged.

Run: ``python -m loadtest.bench_memory_charge``. Each size is measured in a process of its own.
The bar is a growth within 15 % of the charged bytes.
"""

import argparse
import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import orjson

from gateway.store.base import Entry
from gateway.store.memory import MemoryStore
from policies.freshness import EntryMeta
from policies.keys import Scope, fingerprint

SIZES: tuple[tuple[float, int], ...] = ((0.5, 28_200), (5.0, 8_000), (50.0, 1_500))
"""KiB of an answer's text, and how many of them."""
KIB = 1024


class Growth(NamedTuple):
    """What so many answers added, in bytes."""

    charged: int
    resident: int

    @property
    def ratio(self) -> float:
        """Resident bytes for each charged one."""
        return self.resident / self.charged


def entry(number: int, kib: float) -> Entry:
    """An answer as the gateway stores it: serialised, with meta data of its own."""
    text = f"{number:08d}" * int(kib * KIB / 8)
    body = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
    meta = EntryMeta(
        key=fingerprint(str(number).encode()),
        scope=Scope("tenant", f"tenant-{number % 5}"),
        model="m",
        endpoint="chat",
        tier="hot",
        priority="medium",
        stored_at=1.7e9 + number * 0.37,
        ttl_s=300.0 - number / 1e6,
        stale_while_revalidate_s=30.0,
        stale_if_error_s=300.0,
        cost_s=1.0 + number * 0.01,
        size_bytes=len(body),
        prompt_tokens=500 + number,
        completion_tokens=300 + number,
    )
    return Entry(meta, body)


async def fill(store: MemoryStore, count: int, kib: float) -> None:
    """Store so many answers."""
    for number in range(count):
        await store.put(entry(number, kib), now=1.7e9 + number)


def measured(kib: float, count: int) -> Growth:
    """Fill a store in this process."""
    store = MemoryStore("hot", max_bytes=2**32)
    asyncio.run(fill(store, 10, kib))
    gc.collect()
    before, charged = resident(), store.fill().size_bytes
    asyncio.run(fill(store, count, kib))
    gc.collect()
    return Growth(store.fill().size_bytes - charged, resident() - before)


def resident() -> int:
    """Bytes of this process in memory."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in one)
    return int(line.split()[1]) * KIB


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, help="one size (KiB) and count, in this process")
    given = parser.parse_args().one
    if given is not None:
        growth = measured(float(given[0]), int(given[1]))
        print(
            f"{float(given[0]):5.1f} KiB x {given[1]:>6}: charged {growth.charged / 2**20:6.1f} MiB, "
            f"grew {growth.resident / 2**20:6.1f} MiB, ratio {growth.ratio:.3f}"
        )
        return
    for kib, count in SIZES:
        command = [
            sys.executable,
            "-m",
            "loadtest.bench_memory_charge",
            "--one",
            str(kib),
            str(count),
        ]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
