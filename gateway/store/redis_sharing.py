"""Leases and records in Redis or Valkey: one truth for all gateways on one server.

A lease is a key with a time to live and its holder's token as value, so a dead holder's ends by
itself and nobody ends another's. The documents of a kind and tenant are the fields of one hash.
"""

from collections.abc import Mapping
from typing import Final

from redis.asyncio import Redis

from gateway.store.redis_client import Script, failing_as_store

TAKE: Final = Script.of(
    """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
RELEASE: Final = Script.of(
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
)
CREATE: Final = Script.of(
    """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('SADD', ARGV[3], ARGV[4])
return 1
"""
)
ERASE: Final = Script.of(
    """
redis.call('DEL', ARGV[2])
local there = redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', ARGV[3], ARGV[4]) end
return there
"""
)
COUNT: Final = Script.of(
    """
for i = 1, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
return redis.call('HGETALL', KEYS[1])
"""
)


class RedisLeases:
    """See :class:`gateway.store.sharing.Leases`. ``token`` names this process among all."""

    def __init__(self, client: Redis, *, token: str, namespace: str = "kvgate") -> None:
        self._client = client
        self._token = token
        self._prefix = f"{namespace}:lease:".encode()

    async def take(self, key: bytes, *, ttl_s: float) -> bool:
        """See :meth:`gateway.store.sharing.Leases.take`."""
        ttl_ms = max(1, round(1000 * ttl_s))
        return bool(await TAKE.run(self._client, self._prefix + key, self._token, ttl_ms))

    async def release(self, key: bytes) -> None:
        """See :meth:`gateway.store.sharing.Leases.release`."""
        await RELEASE.run(self._client, self._prefix + key, self._token)

    async def held(self, key: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Leases.held`."""
        with failing_as_store():
            return bool(await self._client.exists(self._prefix + key))

    def __repr__(self) -> str:
        return f"<RedisLeases of {self._token}>"


class RedisRecords:
    """See :class:`gateway.store.sharing.Records`."""

    def __init__(self, client: Redis, *, namespace: str = "kvgate") -> None:
        self._client = client
        self._namespace = namespace

    async def read(self, kind: str, tenant: str, name: str) -> bytes | None:
        """See :meth:`gateway.store.sharing.Records.read`."""
        with failing_as_store():
            data = await self._client.hget(self._key("records", kind, tenant), name)
        return data if data is None or isinstance(data, bytes) else data.encode()

    async def write(self, kind: str, tenant: str, name: str, data: bytes) -> None:
        """See :meth:`gateway.store.sharing.Records.write`."""
        with failing_as_store():
            async with self._client.pipeline(transaction=True) as both:
                both.hset(self._key("records", kind, tenant), name, data)
                both.sadd(self._key("tenants", kind), tenant)
                await both.execute()

    async def create(self, kind: str, tenant: str, name: str, data: bytes) -> bool:
        """See :meth:`gateway.store.sharing.Records.create`."""
        key, tenants = self._key("records", kind, tenant), self._key("tenants", kind)
        return bool(await CREATE.run(self._client, key, name, data, tenants, tenant))

    async def erase(self, kind: str, tenant: str, name: str) -> bool:
        """See :meth:`gateway.store.sharing.Records.erase`."""
        key, tenants = self._key("records", kind, tenant), self._key("tenants", kind)
        counters = self._key("counters", kind, tenant, name)
        return bool(await ERASE.run(self._client, key, name, counters, tenants, tenant))

    async def names(self, kind: str, tenant: str | None) -> list[tuple[str, str]]:
        """See :meth:`gateway.store.sharing.Records.names`."""
        with failing_as_store():
            owners = [tenant]
            if tenant is None:
                owners = [
                    _text(one) for one in await self._client.smembers(self._key("tenants", kind))
                ]
            async with self._client.pipeline(transaction=False) as all_of_them:
                for owner in owners:
                    all_of_them.hkeys(self._key("records", kind, owner or ""))
                found = await all_of_them.execute()
        return sorted(
            (owner or "", _text(name))
            for owner, names in zip(owners, found, strict=True)
            for name in names
        )

    async def count(
        self, kind: str, tenant: str, name: str, amounts: Mapping[str, float]
    ) -> Mapping[str, float]:
        """See :meth:`gateway.store.sharing.Records.count`."""
        key = self._key("counters", kind, tenant, name)
        flat = [part for amount in amounts.items() for part in amount]
        told = await COUNT.run(self._client, key, *flat)
        return {_text(one): float(value) for one, value in zip(told[::2], told[1::2], strict=True)}

    def _key(self, *parts: str) -> bytes:
        """Each part with its length in front: no two places share a key."""
        raw = [part.encode("utf-8", "surrogatepass") for part in parts]
        return self._namespace.encode() + b"".join(b":%d:%b" % (len(one), one) for one in raw)

    def __repr__(self) -> str:
        return f"<RedisRecords {self._namespace}>"


def _text(raw: object) -> str:
    return raw.decode("utf-8", "surrogatepass") if isinstance(raw, bytes) else str(raw)
