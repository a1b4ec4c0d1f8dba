"""The contract of a store, and how entries are selected.

A store never judges: it gives back what is there, stale or not. Errors are its own to raise
(:class:`StoreError`); the pipeline turns them into a field of the outcome, because the cache
can only help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.freshness import EntryMeta
from policies.keys import Scope


class StoreError(Exception):
    """The store is down, slow or full."""


class StoreFull(StoreError):
    """The store answers, but takes nothing more; what it has it still gives."""


class StoreRefuses(StoreError):
    """The store answers, but does not let this gateway do what it asked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer: what is known about it, and the folded answer as JSON bytes.

    ``supersedes`` is the key of one that will hardly be asked for once this is stored; ``since`` is the
    generation of each tier when the entry's flight began. Both are words to the store that takes the
    entry, and are not kept.
    """

    meta: EntryMeta
    body: bytes
    supersedes: bytes | None = field(default=None, compare=False)
    since: "Since | None" = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Since:
    """When a flight began, as the number of each tier's generation then.

    ``replaces``: the flight drew these numbers for itself, and its answer bars those of flights that
    began before it.
    """

    numbers: Mapping[str, int]
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Selector:
    """Which entries are meant. All named members must agree; ``tenant`` ``None`` means any.

    With a ``viewer`` only what that user may see is meant: nothing that another user has for
    himself, and of what lies under shared contexts only that of the editions in ``circles``.
    """

    tenant: str | None
    key: bytes | None = None
    tier: str | None = None
    cache_key: str | None = None
    prefix: str | None = None
    namespace: str | None = None
    context: str | None = None
    user: str | None = None
    model: str | None = None
    batch: str | None = None
    tag: str | None = None
    viewer: str | None = None
    circles: tuple[str, ...] = ()

    def matches(self, meta: EntryMeta) -> bool:
        """Whether this entry is meant."""
        name = meta.cache_key or ""
        return (
            (self.tenant is None or meta.scope.tenant == self.tenant)
            and (self.key is None or meta.key == self.key)
            and (self.tier is None or meta.tier == self.tier)
            and (self.cache_key is None or meta.cache_key == self.cache_key)
            and (self.prefix is None or name.startswith(self.prefix))
            and (self.namespace is None or namespace_of(name) == self.namespace)
            and (self.context is None or self.context in {meta.context, meta.scope.context})
            and (self.user is None or meta.user == self.user)
            and (self.model is None or meta.model == self.model)
            and (self.batch is None or meta.batch_id == self.batch)
            and (self.tag is None or self.tag in meta.tags)
            and (self.viewer is None or self._in_view(meta.scope))
        )

    def _in_view(self, scope: Scope) -> bool:
        match scope.kind:
            case "user":
                return scope.user == self.viewer
            case "shared":
                return scope.edition in self.circles
            case "tenant" | "batch":
                return True


def namespace_of(cache_key: str) -> str | None:
    """The middle of a ``version:namespace:rest`` key."""
    parts = cache_key.split(":", 2)
    return parts[1] if len(parts) == 3 else None


@dataclass(frozen=True, slots=True)
class Fill:
    """How full a tier is, and what it has thrown out since the start."""

    tier: str
    store: str
    entries: int
    size_bytes: int
    max_bytes: int
    evictions: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What a ``put`` did: whether the new entry is kept, and which others had to go for it.

    ``barred``: nothing was done, as the entry was cleared or replaced after its flight began.
    ``sinking`` are those of the others that are still good and are handed out whole, so that a
    lower tier may take them; a store that cannot do that cheaply names them in ``evicted``.
    """

    kept: bool
    evicted: Sequence[EntryMeta] = ()
    sinking: Sequence[Entry] = ()
    barred: bool = False

    @property
    def gone(self) -> Sequence[EntryMeta]:
        """All that left this store."""
        return [*self.evicted, *(entry.meta for entry in self.sinking)]


class Generations(Protocol):
    """What a store knows of clearings, so that no older write lands after one."""

    @property
    def number(self) -> int:
        """The newest generation that this process has seen; never fails."""
        ...

    async def bar(self, what: Selector | None, *, at: int | None = None) -> int:
        """Begin a generation, or take up the one that began as ``at``; returns its number.

        No older write of ``what`` lands from now on, whichever process it comes from. Raises: StoreError.
        """
        ...

    async def refresh(self) -> None:
        """Learn what other processes changed: how full it is, and the generation. Raises: StoreError."""
        ...


class Store(Generations, Protocol):
    """One place that keeps entries of one tier."""

    async def get(self, key: bytes, *, now: float) -> Entry | None:
        """The entry, counted as a use at ``now`` (unix seconds). Raises: StoreError."""
        ...

    async def put(self, entry: Entry, *, now: float) -> Stored:
        """Keep the entry in place of one with the same key, if no bar is newer. Raises: StoreError."""
        ...

    async def remove(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant; returns what went. Raises: StoreError."""
        ...

    async def scan(
        self, selector: Selector, *, after: bytes | None, limit: int
    ) -> Sequence[EntryMeta]:
        """Up to ``limit`` entries in the order of their keys, after ``after``. Raises: StoreError."""
        ...

    def fill(self) -> Fill:
        """How full it is, as of the last write here or :meth:`refresh`; never fails."""
        ...

    async def close(self) -> None:
        """Let go of files and connections."""
        ...
