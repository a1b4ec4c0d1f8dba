"""One tier in Redis or Valkey, shared by all gateways that name the same server.

A look-up is one ``GET``. Everything that changes is done by short scripts, so that entries, their
order and their index never disagree, whoever dies in between. Under the prefix of a tier lie::

    e:<key>             the encoded entry; the server drops it after its last use
    m                   hash: key -> packed record (size, standing, head of the entry, its indexes)
    v:<rank>:<group>    sorted set: keys of a priority by their GreedyDual-Size-Frequency value
    x:<group>           sorted set: keys by the time of their last use
    i:<index>           sorted set, lexical: keys of a tenant, tag, user … (or of all: ``*``)
    t                   hash: bytes per group, the floors of the values
    c, c:<tenant>       the generation; sorted sets: a tenant's bars (of no tenant: ``c:``) by number

A group is the whole tier (no name) or a tenant that has a limit of its own. The order of victims is
that of ``policies.eviction`` but for one thing: among equal values the key decides, not the last use.
Uses are counted here and sent in portions together with another look-up, so they cost no round trip.

The server should run with ``noeviction`` or a ``volatile-`` policy: one that drops any key could drop
the index and leave entries that no invalidation finds. Redis 7 or Valkey is needed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final

from redis.asyncio import Redis

from gateway.store.bars import MOST_BARS, any_means, key_bar, packed, since_of
from gateway.store.base import Entry, Fill, Selector, Stored, StoreError, namespace_of
from gateway.store.codec import CodecError, decode, decode_meta, encode_head
from gateway.store.redis_client import Script, failing_as_store
from gateway.store.redis_lua import BAR, DROP, LOOK, PUT, TOUCH
from policies.freshness import EntryMeta, last_use

GRACE_S: Final = 60.0
"""How long the server keeps an entry after its last use: time enough to say why it is a miss."""
USES_PER_TELLING: Final = 32
PAGE: Final = 512
"""Entries looked at in one run of a script: none may hold the server up for long."""
OVERHEAD_BYTES: Final = 600
"""What an entry takes beside its own bytes: 450 in Valkey 8, 750 in Redis 7 (measured)."""
INDEX_BYTES: Final = 110
"""What each index of it takes (measured)."""

_RANK: Final = {"low": 0, "medium": 1, "high": 2}


class RedisStore:
    """One tier on a server that others use too. Belongs to one event loop."""

    def __init__(
        self,
        tier: str,
        client: Redis,
        *,
        max_bytes: int,
        shares: Mapping[str, int] | None = None,
        namespace: str = "kvgate",
    ) -> None:
        """``shares``: the most bytes of it that a tenant's entries may take, by tenant."""
        self._tier = tier
        self._client = client
        self._max_bytes = max_bytes
        self._shares = shares or {}
        self._prefix = f"{namespace}:{tier}:".encode()
        self._uses: Counter[bytes] = Counter()
        self._used = USES_PER_TELLING  # the first look-up asks how full the tier is
        self._entries = 0
        self._bytes = 0
        self._evictions = 0
        self.number = 0
        """See :attr:`gateway.store.base.Generations.number`."""

    async def bar(self, what: Selector | None, *, at: int | None = None) -> int:
        """See :meth:`gateway.store.base.Generations.bar`."""
        bars: tuple[bytes, ...] = ()
        if what is not None:
            bars = (_owner(what.tenant), packed(what), packed(Selector(what.tenant)))
        (number,) = await self._run(BAR, "" if at is None else at, MOST_BARS, *bars)
        return int(number)

    async def refresh(self) -> None:
        """See :meth:`gateway.store.base.Generations.refresh`."""
        await self._run(LOOK, b"")

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """See :meth:`gateway.store.base.Store.get`. One round trip."""
        with failing_as_store():
            both: Any
            if self._used < USES_PER_TELLING:
                both = await self._client.mget(self._prefix + b"e:" + key, self._prefix + b"c")
            else:
                both = await self._get_and_tell(key, now=now)
        blob, number = both
        if number is not None:
            self.number = int(number)
        elif self._used:  # a server that has lost its data; a new one was asked just now
            with suppress(StoreError):
                await self.bar(None)
        if blob is None:
            return None
        try:
            entry = decode(blob)
        except CodecError:
            entry = None
        if entry is None or entry.meta.key != key:
            with suppress(
                StoreError
            ):  # a foreign value is a miss, whether it can be removed or not
                await self._run(DROP, key)
            return None
        self._uses[key] += 1
        self._used += 1
        return entry

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """See :meth:`gateway.store.base.Store.put`.

        An entry that is worth less than all that would have to go for it is not kept.
        """
        meta = entry.meta
        head = encode_head(entry)
        indexes = [*_indexes(meta)]
        last = last_use(meta)
        size = _taken(len(head) + len(entry.body)) + _taken(len(head))
        size += OVERHEAD_BYTES + INDEX_BYTES * len(indexes)
        share = self._shares.get(meta.scope.tenant)
        since = since_of(entry, self._tier)
        seen: int | bytes = b"" if since is None else since
        own = packed(key_bar(meta))
        done: list[Any] = [-1]
        while done[0] == -1:  # bars that are newer: only we can read them, and more may come
            done = await self._run(
                PUT,
                now,
                meta.key,
                head + entry.body,
                int(1000 * (max(0.0, last - now) + GRACE_S)),
                size,
                _RANK[meta.priority],
                max(0.0, meta.cost_s),
                last,
                head,
                b"" if share is None else _digest("share", meta.scope.tenant),
                self._max_bytes,
                self._max_bytes if share is None else share,
                now - GRACE_S,
                entry.supersedes or b"",
                _owner(meta.scope.tenant),
                own,
                b"" if since is None else since,
                seen,
                *indexes,
            )
            if done[0] == -2 or (done[0] == -1 and any_means(done[1:], meta)):
                return Stored(kept=False, barred=True)
            seen = self.number
        kept, *evicted = done
        self._evictions += len(evicted)
        return Stored(bool(kept), evicted=_metas(evicted))

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.remove`."""
        if selector == Selector(None, key=selector.key) and selector.key is not None:
            return _metas(await self._run(DROP, selector.key))
        gone: list[EntryMeta] = []
        after: bytes | None = None
        while after != b"":
            found, after = await self._page(selector, after)
            if found:
                gone += _metas(await self._run(DROP, *(meta.key for meta in found)))
        return gone

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """See :meth:`gateway.store.base.Store.scan`."""
        found: list[EntryMeta] = []
        while len(found) < limit and after != b"":
            page, after = await self._page(selector, after)
            found += page
        return found[:limit]

    def fill(self) -> Fill:
        """See :meth:`gateway.store.base.Store.fill`. As of the last answer that said so."""
        return Fill(
            tier=self._tier,
            store="redis",
            entries=self._entries,
            size_bytes=self._bytes,
            max_bytes=self._max_bytes,
            evictions=self._evictions,
        )

    async def close(self) -> None:
        """Give the client's connections back. Other users of the client open new ones."""
        await self._client.aclose()

    async def _get_and_tell(self, key: bytes, *, now: float) -> Any:
        """The value, and in the same round trip the uses that were counted so far."""
        uses = [part for use in self._uses.items() for part in use]
        self._uses.clear()
        self._used = 0
        async with self._client.pipeline(transaction=False) as both:
            both.mget(self._prefix + b"e:" + key, self._prefix + b"c")
            both.eval(TOUCH.text, 1, self._prefix, now - GRACE_S, *uses)
            blob, told = await both.execute(raise_on_error=False)
        if isinstance(told, list):  # else it is an error: uses are only a hint, the value is not
            self._note(told)
        if isinstance(blob, Exception):
            raise blob
        return blob

    async def _page(
        self, selector: Selector, after: bytes | None
    ) -> tuple[list[EntryMeta], bytes | None]:
        """What is meant of the next entries in line, and where to go on: ``b""`` at the end."""
        if selector.key is not None:
            beyond = after is not None and selector.key <= after
            told = [] if beyond else (await self._run(LOOK, selector.key))[2:]
            last, whole = b"", False
        else:
            start = b"-" if after is None else b"(" + after
            last, count, *told = await self._run(LOOK, _index_for(selector), start, PAGE)
            whole = count == PAGE
        metas = {key: _meta(head) for key, head in zip(told[::2], told[1::2], strict=True)}
        if damaged := [key for key, meta in metas.items() if meta is None]:
            await self._run(
                DROP, *damaged
            )  # what cannot be judged must not survive an invalidation
        found = [meta for meta in metas.values() if meta is not None and selector.matches(meta)]
        return found, last if whole else b""

    async def _run(self, script: Script, *arguments: bytes | str | float) -> list[Any]:
        return self._note(await script.run(self._client, self._prefix, *arguments))

    def _note(self, result: list[Any]) -> list[Any]:
        """Take the totals and the generation off a script's result."""
        self._entries, self._bytes, self.number = *result[:2], int(result[2])
        return result[3:]

    def __repr__(self) -> str:
        return (
            f"<RedisStore {self._tier}: {self._entries} entries, "
            f"{self._bytes}/{self._max_bytes} bytes, {self._evictions} evicted>"
        )


def _taken(length: int) -> int:
    """Bytes that a string of this length takes: servers differ by their allocator.

    jemalloc rounds up to a quarter of a power of two, libc to little: in between is right for both
    within a few per cent.
    """
    step = max(16, 1 << max(0, length.bit_length() - 3))
    return (length + -(-length // step) * step) // 2


def _metas(heads: Sequence[bytes]) -> list[EntryMeta]:
    """What the heads say; one that is damaged says nothing."""
    return [meta for head in heads if (meta := _meta(head)) is not None]


def _meta(head: bytes) -> EntryMeta | None:
    with suppress(CodecError):
        return decode_meta(head)
    return None


def _indexes(meta: EntryMeta) -> Iterator[bytes]:
    """Where an entry is found by other things than its key."""
    tenant, name = meta.scope.tenant, meta.cache_key
    yield b"*"
    yield _digest("tenant", tenant)
    named: Mapping[str, set[str | None]] = {
        "cache_key": {name},
        "namespace": {namespace_of(name or "")},
        "context": {meta.context, meta.scope.context},
        "user": {meta.user},
        "batch": {meta.batch_id},
        "tag": {*meta.tags},
    }
    for kind, values in named.items():
        for value in values:
            if value is not None:
                yield _digest(kind, tenant, value)


def _owner(tenant: str | None) -> bytes:
    return b"" if tenant is None else _digest("tenant", tenant)


def _index_for(selector: Selector) -> bytes:
    """The index with the fewest entries that has all that are meant."""
    if selector.tenant is None:
        return b"*"
    for kind in ("cache_key", "batch", "tag", "context", "user", "namespace"):
        value = getattr(selector, kind)
        if value is not None:
            return _digest(kind, selector.tenant, value)
    return _digest("tenant", selector.tenant)


def _digest(*parts: str) -> bytes:
    """A short name for parts of any length, each in a place of its own."""
    framed = b"".join(
        b"%d:%b" % (len(raw), raw)
        for raw in (one.encode("utf-8", "surrogatepass") for one in parts)
    )
    return blake2b(framed, digest_size=12).digest()
