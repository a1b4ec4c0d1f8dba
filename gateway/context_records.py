"""Shared contexts as records, one truth for all processes.

Three records per context (:class:`~gateway.store.sharing.Records`)::

    context       by id        its terms: read on every use, never remembered, so that a right
                               that is taken away is gone at once in every process
    context-base  by edition   its text, which never changes under one edition and may be
                               remembered; and how often each user asked
    context-used  by edition   when it was last used, to within ``RENEW_S`` or a tenth of its ttl

Use never writes the terms: a late write could undo what was revoked meanwhile.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import cachetools

from gateway.errors import ClientFault
from gateway.store.base import StoreError
from gateway.store.sharing import Records
from policies.contexts import (
    Base,
    ContextWish,
    Terms,
    base_from,
    base_record,
    terms_from,
    terms_record,
)

MAX_CONTEXTS: Final = 1000
"""Per tenant, the expired ones not counted."""
MAX_COUNTED_USERS: Final = 1000
"""Users of one context with a number of their own; later ones are counted together."""
RENEW_S: Final = 60.0
_TERMS: Final = "context"
_BASE: Final = "context-base"
_USED: Final = "context-used"
_NOBODY: Final = "nobody"
_OTHERS: Final = "others"
_REMEMBERED_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """How often a context was asked under: by whom, by keys of no user, by uncounted others."""

    users: Mapping[str, int]
    nobody: int
    others: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.users.values()) + self.nobody + self.others


class ContextRecords:
    """Terms, texts and use. ``now`` is unix time; ``edition`` gives a new random name.

    ``shares``: the most bytes that the texts of a tenant may take, by tenant.
    """

    def __init__(
        self,
        records: Records,
        *,
        now: Callable[[], float],
        edition: Callable[[], str],
        shares: Mapping[str, int] | None = None,
    ) -> None:
        self._records = records
        self._now = now
        self._edition = edition
        self._shares = shares or {}
        self._orphans: set[tuple[str, str]] = set()
        self._bases: cachetools.LRUCache[tuple[str, str], tuple[Base, int]] = cachetools.LRUCache(
            _REMEMBERED_BYTES, getsizeof=lambda remembered: remembered[1]
        )
        # By edition: when it was last used here, and when that was last written down.
        self._used: cachetools.LRUCache[str, tuple[float, float]] = cachetools.LRUCache(4096)
        self._counted: cachetools.LRUCache[str, frozenset[str]] = cachetools.LRUCache(256)

    def __repr__(self) -> str:
        return f"<ContextRecords {len(self._bases)} texts, {len(self._used)} used here>"

    async def find(self, tenant: str, id_: str) -> Terms | None:
        """The context, unless it has expired. Raises: StoreError."""
        terms = await self._read(tenant, id_)
        if terms is None or self._now() >= await self.expires_at(terms):
            return None
        return terms

    async def _read(self, tenant: str, id_: str) -> Terms | None:
        record = await self._records.read(_TERMS, tenant, id_)
        return None if record is None else terms_from(record)

    async def expires_at(self, terms: Terms) -> float:
        """Unix seconds, from the last use. Raises: StoreError."""
        last, now = terms.renewed_at, self._now()
        used_here, _ = self._used.get(terms.edition, (0.0, 0.0))
        last = max(last, used_here)
        if now >= last + terms.ttl_s:  # others may know better
            record = await self._records.read(_USED, terms.tenant, terms.edition)
            with suppress(ValueError):
                last = max(last, float(record or b"0"))
        return last + terms.ttl_s

    async def base(self, terms: Terms) -> Base | None:
        """The text of a context, for those who may use it. Raises: StoreError."""
        place = (terms.tenant, terms.edition)
        if (remembered := self._bases.get(place)) is not None:
            return remembered[0]
        record = await self._records.read(_BASE, terms.tenant, terms.edition)
        if record is None:
            return None
        base = base_from(record)
        with suppress(ValueError):  # larger than all that may be remembered
            self._bases[place] = (base, len(record) + 256)
        return base

    async def usage(self, terms: Terms) -> Usage:
        """Who asked how often, since the text was set. Raises: StoreError."""
        counted = await self._records.count(_BASE, terms.tenant, terms.edition, {})
        users = {
            name.removeprefix("user "): round(count)
            for name, count in sorted(counted.items())
            if name.startswith("user ")
        }
        return Usage(users, round(counted.get(_NOBODY, 0)), round(counted.get(_OTHERS, 0)))

    async def listed(self, tenant: str) -> AsyncIterator[Terms]:
        """The living contexts of a tenant in the order of their ids. Raises: StoreError."""
        for _, id_ in await self._records.names(_TERMS, tenant):
            if (terms := await self.find(tenant, id_)) is not None:
                yield terms

    async def names(self) -> set[tuple[str, str]]:
        """Tenant and id of all that are held, expired ones too. Raises: StoreError."""
        return set(await self._records.names(_TERMS, None))

    # ---- changes

    async def put(
        self, tenant: str, id_: str, wish: ContextWish, user: str | None, old: Terms | None
    ) -> Terms:
        """Make a context, or replace ``old``, the living one of that name.

        With the text it had it keeps its edition, and with that its answers and its numbers.
        Raises: StoreError; ClientFault 409 ``too_many_contexts``.
        """
        now = self._now()
        if old is not None and base_record(await self.base(old) or ()) == base_record(wish.base):
            terms = replace(
                old,
                allowed_users=wish.allowed_users,
                ttl_s=wish.ttl_s,
                priority=wish.priority,
                model=wish.model,
                renewed_at=now,
            )
            await self._records.write(_TERMS, tenant, id_, terms_record(terms))
            return terms
        terms = await self._new(tenant, id_, wish, user, old)
        await self._records.write(_TERMS, tenant, id_, terms_record(terms))
        if old is not None:
            await self._erase_edition(old)
        return terms

    async def make(self, tenant: str, id_: str, wish: ContextWish, user: str | None) -> Terms:
        """Make a context unless one is there; then that one is returned, as it is.

        Raises: StoreError; ClientFault 409 ``too_many_contexts``.
        """
        terms = await self._new(tenant, id_, wish, user, None)
        record = terms_record(terms)
        if not await self._records.create(_TERMS, tenant, id_, record):
            if (there := await self.find(tenant, id_)) is not None:
                await self._erase_edition(terms)
                return there
            await self._records.write(_TERMS, tenant, id_, record)  # what is there has expired
        return terms

    async def _new(
        self, tenant: str, id_: str, wish: ContextWish, user: str | None, old: Terms | None
    ) -> Terms:
        """A new edition, its text written already: whoever finds the terms will find it."""
        record = base_record(wish.base)
        if old is None:
            await self._check_room(tenant)
        await self._check_share(tenant, len(record), old)
        now = self._now()
        terms = Terms(
            tenant=tenant,
            id=id_,
            edition=self._edition(),
            allowed_users=wish.allowed_users,
            ttl_s=wish.ttl_s,
            priority=wish.priority,
            model=wish.model,
            made_by=user if old is None else old.made_by,
            created_at=now if old is None else old.created_at,
            renewed_at=now,
            by_id=wish.by_id if old is None else old.by_id,
            size_bytes=len(record),
        )
        await self._records.write(_BASE, tenant, terms.edition, record)
        return terms

    async def _check_share(self, tenant: str, size_bytes: int, old: Terms | None) -> None:
        """Raises: ClientFault 409 ``too_many_contexts``; StoreError."""
        most = self._shares.get(tenant)
        if most is None:
            return
        taken = [terms.size_bytes async for terms in self.listed(tenant)]
        if sum(taken) - (0 if old is None else old.size_bytes) + size_bytes > most:
            raise ClientFault(
                f"The texts of the shared contexts would take more than the {most} bytes of this tenant.",
                code="too_many_contexts",
                status=409,
            )

    async def _check_room(self, tenant: str) -> None:
        held = await self._records.names(_TERMS, tenant)
        if len(held) < MAX_CONTEXTS:
            return
        for _, id_ in held:
            await self._erase_expired(tenant, id_)
        if len(await self._records.names(_TERMS, tenant)) >= MAX_CONTEXTS:
            raise ClientFault(
                f"There are {MAX_CONTEXTS} shared contexts already; delete one first.",
                code="too_many_contexts",
                status=409,
            )

    async def _erase_expired(self, tenant: str, id_: str) -> Terms | None:
        """Erase it if it has expired for longer than another process may keep a use to itself.

        Returns what is left. Raises: StoreError.
        """
        terms = await self._read(tenant, id_)
        if terms is None or self._now() < await self.expires_at(terms) + 2 * _unwritten_s(terms):
            return terms
        await self._records.erase(_TERMS, tenant, id_)
        await self._erase_edition(terms)
        return None

    async def sweep(self) -> None:
        """Erase what has expired, and texts that no terms lead to since the last sweep.

        A text is written before its terms: one without terms may be about to get them.
        Raises: StoreError.
        """
        living = set()
        for tenant, id_ in await self._records.names(_TERMS, None):
            if (terms := await self._erase_expired(tenant, id_)) is not None:
                living.add((tenant, terms.edition))
            elif await self._records.read(_TERMS, tenant, id_) is not None:
                return  # terms of another version: which text is theirs is not known
        found = set()
        for kind in (_BASE, _USED):
            found |= set(await self._records.names(kind, None)) - living
        for tenant, edition in found & self._orphans:
            await self._erase_texts(tenant, edition)
        self._orphans = found - self._orphans

    async def delete(self, terms: Terms) -> bool:
        """Revoke it, now and everywhere; whether it was there. Raises: StoreError."""
        gone = await self._records.erase(_TERMS, terms.tenant, terms.id)
        await self._erase_edition(terms)
        return gone

    async def _erase_edition(self, terms: Terms) -> None:
        self._bases.pop((terms.tenant, terms.edition), None)
        with suppress(StoreError):  # no request reaches these any more; the next sweep erases them
            await self._erase_texts(terms.tenant, terms.edition)

    async def _erase_texts(self, tenant: str, edition: str) -> None:
        for kind in (_BASE, _USED):
            await self._records.erase(kind, tenant, edition)

    # ---- use

    def used(self, terms: Terms) -> bool:
        """Remember here that it is used now; whether that is to be written down again."""
        now = self._now()
        _, written = self._used.get(terms.edition, (0.0, 0.0))
        due = now - max(written, terms.renewed_at) >= _unwritten_s(terms)
        self._used[terms.edition] = (now, now if due else written)
        return due

    async def write_use(self, terms: Terms) -> None:
        """Keep it alive for all processes. Raises: StoreError."""
        await self._records.write(_USED, terms.tenant, terms.edition, repr(self._now()).encode())

    async def count(self, terms: Terms, user: str | None) -> None:
        """One use more by ``user``. Raises: StoreError."""
        name = _NOBODY if user is None else f"user {user}"
        known = self._counted.get(terms.edition)
        if known is not None and name not in known:
            name = _OTHERS
        counted = await self._records.count(_BASE, terms.tenant, terms.edition, {name: 1})
        if len(counted) >= MAX_COUNTED_USERS:
            self._counted[terms.edition] = frozenset(counted)


def _unwritten_s(terms: Terms) -> float:
    """How long a process may keep a use to itself."""
    return min(RENEW_S, terms.ttl_s / 10)
