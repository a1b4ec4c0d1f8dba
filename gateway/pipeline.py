"""One call from plan to outcome. Read this first.

Three pure questions (*plan*, *judge*, *admit*) and this driver, which awaits between them::

    plan ─► look up ─► judge ─┬─ Fresh ──────────────► Kept
                              ├─ Stale ─► Kept, and a flight that nobody watches
                              └─ Expired, or nothing ─► flight ─► Flown, or its error

The store may fail at any point and only ever costs the hit: its failure is a field of the
outcome. Whoever asks first owns nothing: the work belongs to the flight.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, assert_never

import orjson

from gateway.backends.base import Backend
from gateway.chunks import Chunk, Opening, Piece, Whole, finished, fold
from gateway.errors import ClientFault, from_failed
from gateway.flights import Flights, Reader
from gateway.headers import replayable
from gateway.recall import Recall
from gateway.store.base import Entry, Selector, Stored, StoreError
from gateway.store.tiers import Tiers
from policies.admission import Refuse, Store, admit
from policies.call import Call
from policies.explain import debug_line, difference, miss_reason
from policies.freshness import EntryMeta, Expired, Fresh, Stale, judge
from policies.keys import Scope, entry_key
from policies.outcome import Completed, Ending, Failed, Forwarded, Outcome, Usage
from policies.plan import Plan
from policies.rules import Rules

MAX_CLEARINGS: Final = 256
"""Invalidations that flights in the air are held against; older ones have landed long ago."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Answered from the store."""

    entry: Entry
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Flown:
    """Being computed. ``opening`` has been read; the reader holds what follows, to be closed."""

    opening: Opening
    reader: Reader
    outcome: Outcome


Answer = Kept | Flown


class Pipeline:
    """The driver. Clock (unix seconds) and dice (``[0, 1)``) are arguments."""

    def __init__(
        self,
        *,
        rules: Rules,
        store: Tiers,
        flights: Flights,
        recall: Recall,
        now: Callable[[], float],
        draw: Callable[[], float],
        store_failed: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._store = store
        self._flights = flights
        self._recall = recall
        self._now = now
        self._draw = draw
        self._store_failed = store_failed
        self._clearings = 0
        self._cleared: deque[tuple[int, Selector]] = deque(maxlen=MAX_CLEARINGS)

    async def answer(self, call: Call, plan: Plan, backend: Backend) -> Answer:
        """Answer ``call`` as ``plan`` says.

        Raises:
            ClientFault: 504 ``only_if_cached`` (RFC 9111, 5.2.1.7), or the backend's refusal.
            BackendFault: the backend failed before its first piece and nothing stale helps.
        """
        now = self._now()
        entry: Entry | None = None
        store_failed = False
        mark = self._flights.landings
        if plan.may_read:
            try:
                entry = await self._store.get(plan.key, now=now, likely=plan.tier)
            except StoreError:
                store_failed = True
        verdict: Fresh | Stale | Expired | None = None
        if entry is not None:
            verdict = judge(entry.meta, plan, now, self._draw(), beta=self._rules.refresh_beta)
            match verdict:
                case Fresh():
                    if verdict.refresh_ahead:
                        self._renew(call, plan, backend)
                    return _kept(entry, plan, verdict)
                case Stale(usable="revalidate"):
                    self._renew(call, plan, backend)
                    return _kept(entry, plan, verdict)
                case Stale() | Expired():
                    pass
                case _:
                    assert_never(verdict)
        if plan.only_if_cached:
            raise ClientFault(
                "Nothing is stored for this request, and it asked for stored answers only.",
                code="only_if_cached",
                status=504,
            )
        missed = await self._missed(plan, expired=entry is not None, store_failed=store_failed)
        if plan.may_read and not store_failed and self._flights.landed_since(plan.key, mark):
            return await self.answer(call, plan, backend)
        last_resort = _kept(entry, plan, verdict) if entry and isinstance(verdict, Stale) else None
        return await self._fly(call, plan, backend, missed, last_resort)

    async def clear(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant, now and out of the flights in the air. Raises: StoreError."""
        self._clearings += 1
        self._cleared.append((self._clearings, selector))
        gone = await self._store.remove(selector)
        self._recall.left((meta.key for meta in gone), "invalidated")
        return gone

    async def _missed(self, plan: Plan, *, expired: bool, store_failed: bool) -> Outcome:
        """The outcome so far of a call that needs a backend, and why it does."""
        nearest: bytes | None = None
        if plan.enabled:
            nearest = self._recall.nearest(plan) if plan.debug else self._recall.any_other(plan)
        reason = miss_reason(
            plan,
            departed="expired" if expired else self._recall.departure(plan.key),
            nearest=nearest,
            other_scope=plan.debug and await self._in_other_scope(plan),
        )
        explained = plan.debug and reason == "fingerprint"
        return Outcome(
            key=plan.public_key,
            tier=plan.tier,
            stored=plan.may_store,
            ttl_left_s=plan.ttl_s if plan.may_store else None,
            forwarded=_forwarded(plan, expired=expired),
            miss_reason=reason,
            difference=difference(nearest, plan.canonical) if explained and nearest else None,
            store_error=store_failed,
            detail="store-error" if store_failed else None,
            debug=debug_line(plan) if plan.debug else None,
        )

    async def _in_other_scope(self, plan: Plan) -> bool:
        """Whether this principal's other scope holds the answer; never anybody else's."""
        twins = [Scope(kind="tenant", tenant=plan.scope.tenant)]
        if plan.user is not None:
            twins.append(Scope(kind="user", tenant=plan.scope.tenant, user=plan.user))
        for scope in twins:
            if scope != plan.scope and plan.match != "key":
                key = entry_key(scope, plan.model, plan.cache_key, plan.fingerprint)
                try:
                    if await self._store.scan(Selector(None, key=key), after=None, limit=1):
                        return True
                except StoreError:
                    return False
        return False

    async def _fly(
        self, call: Call, plan: Plan, backend: Backend, missed: Outcome, last_resort: Kept | None
    ) -> Answer:
        shared = plan.may_read and plan.may_store
        flight = self._flights.find(plan.key) if shared else None
        collapsed = flight is not None
        if flight is None:
            flight = self._flights.start(
                plan.key if shared else None,
                lambda: self._work(call, plan, backend),
            )
        flight.finish_alone |= plan.preload
        reader = flight.read()
        try:
            first = await anext(reader)
        except BaseException:
            reader.close()
            raise
        match first:
            case Opening():
                return Flown(first, reader, opened(missed, first, backend, collapsed=collapsed))
            case Failed():
                reader.close()
                if last_resort is not None and first.fault != "client":
                    return last_resort
                raise from_failed(first)
            case _:
                reader.close()
                raise AssertionError(f"{backend.name} opened with {type(first).__name__}")

    def _renew(self, call: Call, plan: Plan, backend: Backend) -> None:
        """Compute anew behind the reader's back, unless that is under way already."""
        if plan.may_store and self._flights.find(plan.key) is None:
            # A refusal must not take the place of the good answer that is being renewed.
            renewal = replace(plan, may_read=False)
            self._flights.start(
                plan.key, lambda: self._work(call, renewal, backend), finish_alone=True
            )

    async def _work(self, call: Call, plan: Plan, backend: Backend) -> AsyncGenerator[Piece, None]:
        """What a flight does: pass the backend's pieces on, then store the answer."""
        parts: list[Chunk | Whole] = []
        ending: Ending | None = None
        clearings = self._clearings
        async with aclosing(backend.run(call, plan)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Chunk | Whole):
                    parts.append(piece)
                elif not isinstance(piece, Opening):
                    ending = piece
                yield piece
        if ending is not None and plan.may_store:
            await asyncio.sleep(0)  # the readers first: they have waited long enough
            await self._keep(call, plan, parts, ending, clearings)

    async def _keep(
        self,
        call: Call,
        plan: Plan,
        parts: list[Chunk | Whole],
        ending: Ending,
        clearings: int,
    ) -> None:
        """Store what ended well, unless it was cleared away after ``clearings`` of them."""
        if isinstance(ending, Failed):
            body = orjson.dumps(from_failed(ending).body())
        else:
            answer = fold(parts)
            if not finished(answer):
                return
            body = replayable(answer)
        verdict = admit(plan, ending, size_bytes=len(body), rules=self._rules, draw=self._draw())
        match verdict:
            case Refuse():
                return
            case Store():
                pass
            case _:
                assert_never(verdict)
        now = self._now()
        meta = _meta(call, plan, ending, verdict, self._rules, now=now, size_bytes=len(body))
        if any(number > clearings and what.matches(meta) for number, what in self._cleared):
            return
        try:
            stored = await self._store.put(Entry(meta, body), now=now)
        except Exception as error:  # noqa: BLE001 - the readers are served; nobody else would say it
            self._store_failed(error)
            return
        self._remember(plan, stored)

    def _remember(self, plan: Plan, stored: Stored) -> None:
        self._recall.left((meta.key for meta in stored.evicted), "evicted")
        if stored.kept:
            self._recall.stored(plan)
        else:
            self._recall.left((plan.key,), "evicted")


def opened(missed: Outcome, opening: Opening, backend: Backend, *, collapsed: bool) -> Outcome:
    """The outcome with what the backend said at its first piece about reuse."""
    hit_tokens, miss_tokens = opening.hit_tokens or 0, opening.miss_tokens or 0
    return replace(
        missed,
        level="prefix" if hit_tokens else "none",
        hit=hit_tokens > 0,
        collapsed=collapsed,
        backend=backend.name,
        tokens_saved=hit_tokens,
        prompt_tokens=hit_tokens + miss_tokens,
        hit_tokens=hit_tokens,
        miss_tokens=miss_tokens,
    )


def with_usage(outcome: Outcome, usage: Usage) -> Outcome:
    """The outcome with the token counts of a computed answer."""
    reused = usage.hit_tokens > 0
    whole = usage.prompt_tokens + usage.completion_tokens
    return replace(
        outcome,
        level="prefix" if reused else "none",
        hit=reused,
        tokens_saved=whole if outcome.collapsed else usage.hit_tokens,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        hit_tokens=usage.hit_tokens,
        miss_tokens=usage.miss_tokens,
    )


def _kept(entry: Entry, plan: Plan, verdict: Fresh | Stale) -> Kept:
    meta = entry.meta
    negative = meta.status != 200
    return Kept(
        entry,
        Outcome(
            level="negative" if negative else "response",
            hit=True,
            stale=isinstance(verdict, Stale),
            key=plan.public_key,
            tier=meta.tier,
            age_s=verdict.age_s,
            ttl_left_s=verdict.ttl_left_s,
            tokens_saved=meta.prompt_tokens + meta.completion_tokens,
            prompt_tokens=meta.prompt_tokens,
            completion_tokens=meta.completion_tokens,
            status=meta.status,
            debug=debug_line(plan) if plan.debug else None,
        ),
    )


def _forwarded(plan: Plan, *, expired: bool) -> Forwarded:
    if not plan.enabled:
        return "bypass"
    if not plan.may_read:
        return "request"
    return "stale" if expired else "uri-miss"


def _meta(
    call: Call,
    plan: Plan,
    ending: Ending,
    kept: Store,
    rules: Rules,
    *,
    now: float,
    size_bytes: int,
) -> EntryMeta:
    tier = rules.tiers[plan.tier]
    completed = ending if isinstance(ending, Completed) else Completed(Usage(), 0.0)
    return EntryMeta(
        key=plan.key,
        scope=plan.scope,
        model=plan.model,
        endpoint=call.endpoint,
        tier=plan.tier,
        priority=plan.priority,
        stored_at=now,
        ttl_s=kept.ttl_s,
        stale_while_revalidate_s=tier.stale_while_revalidate_s,
        stale_if_error_s=tier.stale_if_error_s,
        cost_s=completed.duration_s,
        size_bytes=size_bytes,
        prompt_tokens=completed.usage.prompt_tokens,
        completion_tokens=completed.usage.completion_tokens,
        cache_key=plan.cache_key,
        tags=plan.tags,
        batch_id=plan.batch_id,
        user=plan.user,
        context=plan.context,
        status=ending.status if isinstance(ending, Failed) else 200,
    )
