"""What gateway processes share beside entries: leases, records, news.

Three small contracts, each with an implementation per place (this process, a SQLite file, Redis):

- :class:`Leases`: one holder per key across processes, so that identical misses on several
  gateways make one backend call;
- :class:`Records`: small named documents (shared contexts, warm jobs) with one truth for all;
- :class:`News`: messages to all processes (an invalidation, a revoked context).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

MISSED: Final = "missed"
"""The topic of a message, ``{}``, that no process tells: messages of any topic may have been lost."""


class Leases(Protocol):
    """Who computes what. A lease that is not renewed ends by itself, so no dead holder blocks."""

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        """Become the holder, or stay it for ``ttl_s`` more; False: another is. Raises: StoreError."""
        ...

    async def release(self, key: bytes) -> None:
        """Give up what this process holds; another's lease is left alone. Raises: StoreError."""
        ...

    async def held(self, key: bytes) -> bool:
        """Whether anybody holds it now. Raises: StoreError."""
        ...


class Records(Protocol):
    """Documents by kind, tenant and id. The text of ``kind`` is ours; tenant and id are not."""

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        """The document. Raises: StoreError."""
        ...

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        """Put or replace it. Raises: StoreError."""
        ...

    async def create(self, kind: str, tenant: str, name: str, data: bytes) -> bool:
        """Put it unless one is there; whether it was put. Atomic. Raises: StoreError."""
        ...

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        """Drop it and its counters; whether it was there. Raises: StoreError."""
        ...

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        """Sorted ``(tenant, id)`` of one kind; ``tenant`` None means all. Raises: StoreError."""
        ...

    async def count(
        self, kind: str, tenant: str, name: str, amounts: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Add to named counters of a record, atomically; returns all of them. ``{}`` reads.

        Raises: StoreError.
        """
        ...


Listener = Callable[[Mapping[str, Any]], Awaitable[None]]


class News(Protocol):
    """Messages (small JSON objects) between the processes of one gateway."""

    async def tell(self, topic: str, message: Mapping[str, Any]) -> None:
        """Reach every other process; returns when those that live have heard. Raises: StoreError."""
        ...

    def listen(self, topic: str, listener: Listener) -> None:
        """Have ``listener`` called for what others tell. Before :meth:`tell` is used."""
        ...
