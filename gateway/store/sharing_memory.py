"""Leases and records of a single process: nobody else can see them, so nobody else needs to."""

from collections.abc import Callable, Mapping


class MemoryLeases:
    """There is one possible holder, this process; a lease still ends by itself."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._until: dict[bytes, float] = {}

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        """See :meth:`gateway.store.sharing.Leases.take`."""
        now = self._now()
        self._until = {held: until for held, until in self._until.items() if until > now}
        self._until[key] = now + ttl_s
        return True

    async def release(self, key: bytes) -> None:
        """See :meth:`gateway.store.sharing.Leases.release`."""
        self._until.pop(key, None)

    async def held(self, key: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Leases.held`."""
        return self._until.get(key, 0.0) > self._now()

    def __repr__(self) -> str:
        return f"<MemoryLeases {len(self._until)} held>"


class MemoryRecords:
    """Documents that live as long as this process."""

    def __init__(self) -> None:
        self._documents: dict[tuple[str, str, str], bytes] = {}
        self._counters: dict[tuple[str, str, str], dict[str, float]] = {}

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        """See :meth:`gateway.store.sharing.Records.read`."""
        return self._documents.get((kind, tenant, name))

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        """See :meth:`gateway.store.sharing.Records.write`."""
        self._documents[kind, tenant, name] = data

    async def create(self, kind: str, tenant: str, name: str, data: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Records.create`."""
        new = (kind, tenant, name) not in self._documents
        self._documents.setdefault((kind, tenant, name), data)
        return new

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        """See :meth:`gateway.store.sharing.Records.erase`."""
        self._counters.pop((kind, tenant, name), None)
        return self._documents.pop((kind, tenant, name), None) is not None

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        """See :meth:`gateway.store.sharing.Records.names`."""
        return sorted(
            (owner, name)
            for one, owner, name in self._documents
            if one == kind and tenant in {None, owner}
        )

    async def count(
        self, kind: str, tenant: str, name: str, amounts: Mapping[str, float]
    ) -> Mapping[str, float]:
        """See :meth:`gateway.store.sharing.Records.count`."""
        counters = self._counters.get((kind, tenant, name), {})
        for counter, amount in amounts.items():
            counters[counter] = counters.get(counter, 0.0) + amount
        if counters:
            self._counters[kind, tenant, name] = counters
        return dict(counters)

    def __repr__(self) -> str:
        return f"<MemoryRecords {len(self._documents)} documents>"
