"""Everything that a gateway keeps on one Redis or Valkey server, behind one guard."""

import secrets
from collections.abc import Callable, Mapping
from typing import Final

from gateway.flights import Tasks
from gateway.store.guarded import (
    Guard,
    Guarded,
    GuardedLeases,
    GuardedNews,
    GuardedRecords,
)
from gateway.store.redis import RedisStore
from gateway.store.redis_client import Script, connect
from gateway.store.redis_news import RedisNews
from gateway.store.redis_sharing import RedisLeases, RedisRecords
from gateway.store.store_time import MOST_LAG

TOKEN_BYTES: Final = 12
# Several keys, as our scripts use them: one that a cluster, or a user's rights, would not let pass.
PROBE: Final = Script.of(
    """#!lua flags=no-writes,allow-oom
return {redis.call('EXISTS', KEYS[1]..':a'), redis.call('EXISTS', KEYS[1]..':b')}
"""
)


class RedisPlace:
    """The client, and what lies behind it. :meth:`close` ends its connections."""

    def __init__(
        self,
        url: str,
        *,
        limit_s: float,
        clock: Callable[[], float],
        draw: Callable[[], float],
        tasks: Tasks,
        namespace: str = "kvgate",
    ) -> None:
        """Connects when first used, but for the news, which start with the first listener.

        ``clock`` is monotonic; ``tasks`` are those that end by themselves.
        """
        token = secrets.token_hex(TOKEN_BYTES)
        self._listening = Tasks()
        self._client = connect(url, limit_s=MOST_LAG * limit_s)  # the guard's limit comes first
        self._namespace = namespace
        self._guard = Guard(
            "redis", self._ping, limit_s=limit_s, clock=clock, draw=draw, tasks=tasks
        )
        self.leases = GuardedLeases(
            RedisLeases(self._client, token=token, namespace=namespace), self._guard
        )
        self.records = GuardedRecords(RedisRecords(self._client, namespace=namespace), self._guard)
        self.news = GuardedNews(
            RedisNews(self._client, token=token, tasks=self._listening, namespace=namespace),
            self._guard,
        )

    def tier(self, name: str, *, max_bytes: int, shares: Mapping[str, int]) -> Guarded:
        """The store of one tier."""
        store = RedisStore(
            name, self._client, max_bytes=max_bytes, shares=shares, namespace=self._namespace
        )
        return Guarded(store, self._guard)

    async def open(self) -> None:
        """Look whether the server can be used. A failure is logged, and shows in :attr:`ailing`."""
        await self._guard.check()

    @property
    def ailing(self) -> Mapping[str, str | None]:
        """Of each place whether it works (None), or why not."""
        return {self._guard.place: self._guard.ailing}

    async def close(self) -> None:
        """Stop listening and give the connections back."""
        await self._listening.close()
        await self._client.aclose()

    async def _ping(self) -> None:
        await PROBE.run(self._client, f"{self._namespace}:probe".encode())

    def __repr__(self) -> str:
        return f"<RedisPlace {self._namespace}: {self._guard}>"
