"""Processes that write KV blocks to a disk tier until they are killed.

``python -m tests.kit.doomed_kv_writer FOLDER`` reads seeds, one a line; for each it forks a writer, says its
number when it writes, and says ``ended`` when it was killed. A seed with ``forget`` behind it has the writer
forget salt "a" after a while and say ``gone``; it goes on with salt "b" alone.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, shake_128
from pathlib import Path

from engine.kv.blob import Identity, complaint, fingerprint_of, salt_digest
from engine.kv.disk import RECORD_BYTES, BlockFile, Geometry
from engine.kv.retention import Retention
from engine.kv.stock import Disk, Goods
from engine.request import Priority

GEOMETRY = Geometry(fingerprint_of(["doomed"]), 8, 20_000)
SLOTS = 40
ROOM = SLOTS * (GEOMETRY.slot_bytes + RECORD_BYTES)
NUMBERS = 100
"""More than there are slots: blocks go all the time."""
SALTS: tuple[str, ...] = ("a", "b")
PRIORITIES: tuple[Priority, ...] = ("low", "medium", "high")


def identity(salt: str, number: int) -> Identity:
    """Of a block whose parent is the number before, in chains of ten."""

    def key(of: int) -> bytes:
        return blake2b(f"{salt} {of}".encode(), digest_size=32).digest()

    parent = key(number - 1) if number % 10 else bytes(32)
    return Identity(key(number), parent, number.to_bytes(4, "little") * 8)


def payload(salt: str, number: int) -> bytes:
    """What a block of this name holds, always."""
    return shake_128(f"{salt} {number}".encode()).digest(GEOMETRY.block_bytes)


def opened(folder: Path, run: ThreadPoolExecutor | None = None) -> Disk:
    """The tier, as a process that starts finds it."""
    file = BlockFile(folder, GEOMETRY, max_bytes=ROOM)
    submit = (lambda work: work()) if run is None else run.submit
    return Disk(file, run=submit, queue_blocks=8, now=0.0)


def found_in(disk: Disk) -> tuple[int, int, set[str]]:
    """How many blocks are there, how many of them are wrong, and which salts there are."""
    there = wrong = 0
    salts: set[str] = set()
    for salt in SALTS:
        for number in range(NUMBERS):
            block = identity(salt, number)
            item = disk.shelf.get(block.key)
            if item is None:
                continue
            buffer = bytearray(GEOMETRY.block_bytes)
            header, data = disk.read(item, buffer)
            said = complaint(header, data, block, fingerprint=GEOMETRY.fingerprint)
            there += 1
            wrong += said is not None or data != payload(salt, number)
            salts.add(salt)
    return there, wrong, salts


def _write(folder: Path, seed: int, *, forgetting: bool) -> None:
    dice = random.Random(seed)
    disk = opened(folder, ThreadPoolExecutor(1))
    woken = threading.Event()
    disk.wake = woken.set
    contents = {(salt, n): payload(salt, n) for salt in SALTS for n in range(NUMBERS)}
    print(os.getpid(), flush=True)
    step, salts = 0, SALTS
    while True:
        step += 1
        if forgetting and step == 60:
            disk.forget(disk.shelf.of_salt(salt_digest("a")))
            print("gone", flush=True)
            salts = ("b",)
        while disk.spare_writes <= 0:
            woken.wait(1)
            woken.clear()
            disk.collect(now=0.0)
        salt, number = dice.choice(salts), dice.randrange(NUMBERS)
        block = identity(salt, number)
        known = disk.shelf.get(block.key)
        if known is None:
            wanted = Retention(dice.choice(PRIORITIES))
            data = contents[salt, number]
            disk.put(Goods(block, salt, wanted, 1, False, data), now=float(step))
        elif dice.random() < 0.3:
            disk.forget(disk.shelf.below([block.key]))
        else:
            disk.use(known, now=float(step))
        disk.collect(now=float(step))


def _main(folder: Path) -> None:
    for line in sys.stdin:
        seed, *more = line.split()
        child = os.fork()
        if child == 0:
            _write(folder, int(seed), forgetting=more == ["forget"])
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
