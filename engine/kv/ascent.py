"""Blocks on their way up: read by a thread, checked there, and counted on only when they are whole.

    seek ──► Fetch of Parts ──read, checked──► done ──arrived, land──► in the pool
                               │
                               └─ wrong: quarantined by its tier, computed anew

Two sequences that want the same block share one Part. A Part keeps its block where it lies until the
last of them is done with it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from engine.kv.blob import Bytes, Identity, complaint
from engine.kv.shelf import Item
from engine.kv.stock import Run, Stock
from engine.request import Tier

_LEFT: Final = "nobody waits for it any more"
_log = logging.getLogger("engine")


class BlockStore(Protocol):
    """The pool's bytes: what every cache class offers."""

    def export_block(self, block: int, /) -> Bytes:
        """A copy of a block, as one opaque run of bytes, `KvLayout.block_bytes` long."""

    def import_block(self, block: int, blob: Bytes, /) -> None:
        """Put back what `export_block` gave."""


@dataclass(slots=True, eq=False)
class Part:
    """One block on its way up. The reader's thread sets `done` last."""

    stock: Stock
    item: Item
    identity: Identity
    buffer: bytearray
    users: int = 0
    payload: Bytes = b""
    wrong: str | None = None
    seconds: float = 0.0
    noted: bool = False
    landed: bool = False
    done: bool = False

    @property
    def measures(self) -> bool:
        """Whether its time says something of its tier: not when it was still waiting to be written."""
        return self.wrong is None and (self.stock.name == "warm" or self.payload is self.buffer)

    @property
    def usable(self) -> bool:
        """It is there, to the bit, and nobody has invalidated it."""
        return self.done and self.wrong is None and not self.item.gone


@dataclass(slots=True, eq=False)
class Fetch:
    """The blocks of one sequence that are on their way up: parts[i] is its block first + i.

    compute_s  what computing them would take, as far as that is known
    probes     tiers that this request finds out about
    """

    first: int
    parts: list[Part]
    compute_s: float | None = None
    probes: tuple[Tier, ...] = ()
    settled: bool = False

    @property
    def done(self) -> bool:
        """Whether all reads have ended, well or not."""
        return all(part.done for part in self.parts)

    def part(self, number: int) -> Part | None:
        """What came up for block `number`, if it is usable."""
        at = number - self.first
        found = self.parts[at] if 0 <= at < len(self.parts) else None
        return found if found is not None and found.usable else None


@dataclass(slots=True, eq=False)
class Fetcher:
    """Has parts read, and knows what is under way. Used by the engine's thread alone."""

    fingerprint: bytes
    block_bytes: int
    clock: Callable[[], float]
    run: Run
    wake: Callable[[], None] = lambda: None
    _coming: dict[bytes, Part] = field(default_factory=dict)
    _leaving: list[Part] = field(default_factory=list)
    _buffers: deque[bytearray] = field(default_factory=deque)  # fresh ones cost a page fault a page
    _there: int = 0

    @property
    def blocks(self) -> int:
        """Parts that are being read, or were and are not given up yet."""
        return self._there

    def under_way(self, key: bytes) -> Part | None:
        """A part of this block that somebody has asked for already."""
        part = self._coming.get(key)
        return None if part is None or part.item.gone or part.wrong is not None else part

    def begin(self, stock: Stock, item: Item, identity: Identity) -> Part:
        """Have a block read. `release` it in the end."""
        buffer = self._buffers.pop() if self._buffers else bytearray(self.block_bytes)
        part = Part(stock, item, identity, buffer)
        self._coming[identity.key] = part
        self._there += 1
        stock.shelf.open(item)
        self.run(lambda: self._bring(part))
        return part

    def _bring(self, part: Part) -> None:
        """In the reader's thread."""
        if part.users or not part.wrong:
            began = self.clock()
            try:
                header, part.payload = part.stock.read(part.item, part.buffer)
                part.wrong = part.wrong or complaint(
                    header, part.payload, part.identity, fingerprint=self.fingerprint
                )
            except Exception as error:  # noqa: BLE001 - else who waits for it would wait for ever
                part.wrong = str(error) or type(error).__name__
            part.seconds = self.clock() - began
        part.done = True
        self.wake()

    def release(self, part: Part) -> None:
        """One user less. Without any, the block may move again once its read has ended."""
        part.users -= 1
        if part.users:
            return
        if not part.done:
            part.wrong = _LEFT
        self._leaving.append(part)
        self.sweep()

    def sweep(self) -> None:
        """Put away what nobody wants any more."""
        for part in [part for part in self._leaving if part.done]:
            self._leaving.remove(part)
            self._there -= 1
            if self._coming.get(part.identity.key) is part:
                del self._coming[part.identity.key]
            part.payload = b""
            self._buffers.append(part.buffer)
            part.stock.done_with(part.item, used=part.landed)

    def judge(self, part: Part) -> None:
        """Once, when its read has ended: what is wrong is quarantined by its tier."""
        if part.noted:
            return
        part.noted = True
        if part.wrong is None:
            part.stock.counts.reads += 1
        elif part.wrong is not _LEFT and not part.item.gone:
            _log.error("a block of the %s tier is not used: %s", part.stock.name, part.wrong)
            part.stock.quarantine(part.item)

    def parts(self) -> Iterator[Part]:
        """All that is under way."""
        yield from self._coming.values()
