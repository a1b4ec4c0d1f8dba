"""Processes that write to a tier on disk until they are killed.

``python -m tests.kit.doomed_writer FOLDER`` reads seeds, one a line; for each it forks a writer,
says its number when it writes, and says ``ended`` when it was killed. Forked, because two hundred
starts of Python take longer than two hundred kills.
"""

import asyncio
import os
import random
import sys
from hashlib import blake2b
from pathlib import Path

from gateway.store.base import Entry, Selector, Store
from gateway.store.disk import DiskStore, open_database
from tests.kit.entries import NOW, entry_of, key_of

NAMES = [str(number) for number in range(40)]
MAX_BYTES = 400_000
"""Less than all answers take: entries go all the time."""


def answer(name: str, dice: random.Random) -> Entry:
    """An entry whose body says whose it is and carries a digest of itself."""
    text = f"{name}:".encode() + dice.randbytes(dice.choice([50, 2000, 30_000]))
    return entry_of(name, text + blake2b(text).digest(), cost_s=dice.random())


def is_exact(name: str, entry: Entry) -> bool:
    """Whether this is an answer of that name, to the bit."""
    text, digest = entry.body[:-64], entry.body[-64:]
    told = text.startswith(f"{name}:".encode()) and blake2b(text).digest() == digest
    return told and entry.meta.key == key_of(name) and entry.meta.size_bytes == len(entry.body)


async def found_in(store: Store) -> tuple[int, int]:
    """How many entries are there, and how many of them are wrong."""
    entries = {name: await store.get(key_of(name), now=NOW) for name in NAMES}
    there = {name: entry for name, entry in entries.items() if entry is not None}
    return len(there), sum(not is_exact(name, entry) for name, entry in there.items())


async def _write(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    store = DiskStore("warm", open_database(folder), max_bytes=MAX_BYTES)

    async def one() -> None:
        while True:
            name = dice.choice(NAMES)
            if dice.random() < 0.1:
                await store.remove(Selector("t", key=key_of(name)))
            else:
                await store.put(answer(name, dice), now=NOW)
                await store.get(key_of(dice.choice(NAMES)), now=NOW)

    await store.put(answer("0", dice), now=NOW)
    print(os.getpid(), flush=True)
    await asyncio.gather(*(one() for _ in range(3)))


def _main(folder: Path) -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(_write(folder, int(line)))
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
