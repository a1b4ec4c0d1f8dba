"""One call from plan to outcome. Read this first.

Three pure questions (*plan*, *judge*, *admit*) and this driver, which awaits between them::

    plan ─► look up ─► judge ─┬─ Fresh ──────────────► Kept
                              ├─ Stale ─► Kept, and a flight that nobody watches
                              └─ Expired, or nothing ─► flight ─► Flown, or its error

The store may fail at any point and only ever costs the hit: its failure is a field of the
outcome. Whoever asks first owns nothing: the work belongs to the flight.

Over 400 lines because the way of a call should be read in one place.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, assert_never

from gateway import exact_json
from gateway.backends.base import Computes
from gateway.chunks import Chunk, Comment, Opening, Piece, Whole, add_to, finish_of
from gateway.clearings import Clearings
from gateway.errors import ClientFault, from_failed
from gateway.flights import Flight, Flights, Reader
from gateway.folding import Folding
from gateway.headers import replayable
from gateway.leading import Leading
from gateway.misses import Misses
from gateway.outcomes import from_store, meta_of, with_opening
from gateway.recall import Recall
from gateway.store.base import Entry, Selector, Since, Stored, StoreError
from gateway.store.sharing import News
from gateway.store.tiers import Tiers
from policies.admission import Finish, Refuse, Store, admit
from policies.call import Call
from policies.freshness import EntryMeta, Expired, Fresh, Stale, judge, last_use
from policies.outcome import Completed, Elsewhere, Ending, Errand, Failed, Outcome
from policies.plan import Lane, Plan
from policies.rules import Rules
from policies.supersession import superseded


@dataclass(frozen=True, slots=True)
class Kept:
    """Answered from the store. ``renew``: it should be computed anew behind the reader's back."""

    entry: Entry
    outcome: Outcome
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Missed:
    """A backend is needed. ``last_resort`` is stale, and better than the backend's failure.

    ``mark`` is how many flights had landed before the look-up.
    """

    outcome: Outcome
    last_resort: Kept | None
    mark: int


@dataclass(frozen=True, slots=True)
class Flown:
    """Being computed. ``opening`` has been read; the reader holds what follows, to be closed."""

    opening: Opening
    reader: Reader
    outcome: Outcome


Answer = Kept | Flown


class Boarded(NamedTuple):
    """A place on a flight; ``collapsed`` when somebody else had started it."""

    flight: Flight
    reader: Reader
    collapsed: bool


Waits = Callable[[Missed, Boarded], None]


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
        stored: Callable[[EntryMeta], None] = lambda _: None,
        cleared: Callable[[Sequence[EntryMeta]], None] = lambda _: None,
        spent: Callable[[Errand, Plan, Completed], None] = lambda *_: None,
        in_the_air: Callable[[Lane], AbstractContextManager[None]] = lambda _: nullcontext(),
        leading: Leading | None = None,
        news: News | None = None,
    ) -> None:
        self._rules = rules
        self._store = store
        self._flights = flights
        self._recall = recall
        self._misses = Misses(store, recall, rules.kv_secret)
        self._now = now
        self._draw = draw
        self._store_failed = store_failed
        self._stored = stored
        self._cleared = cleared
        self._spent = spent
        self._in_the_air = in_the_air
        self._leading = leading
        self._renewals = 0
        self._clearings = Clearings(store, recall, news)

    async def answer(
        self, call: Call, plan: Plan, backend: Computes, waits: Waits | None = None
    ) -> Answer:
        """Answer ``call`` as ``plan`` says. ``waits`` is told of each flight that is waited for.

        Raises:
            ClientFault: 504 ``only_if_cached`` (RFC 9111, 5.2.1.7), or the backend's refusal.
            BackendFault: the backend failed before its first piece and nothing stale helps.
        """
        while True:
            found = await self.look_up(plan)
            if isinstance(found, Kept):
                if found.renew:
                    self.renew(call, plan, backend)
                return found
            # No await in between: what has landed until now has been looked up.
            boarded = self.board(call, plan, backend)
            if waits is not None:
                waits(found, boarded)
            if (answer := await self.opened(boarded, found, backend)) is not None:
                return answer

    async def look_up(self, plan: Plan) -> Kept | Missed:
        """What the store has to say about ``plan``. Raises: ClientFault 504 ``only_if_cached``."""
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
            verdict = await self._judged(entry.meta, plan, now)
            match verdict:
                case Fresh():
                    return _kept(entry, plan, verdict, renew=verdict.refresh_ahead)
                case Stale(usable="revalidate"):
                    return _kept(entry, plan, verdict, renew=True)
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
        expired = entry is not None
        missed = await self._misses.outcome(plan, expired=expired, store_failed=store_failed)
        if plan.may_read and not store_failed and self._flights.landed_since(plan.key, mark):
            return await self.look_up(plan)
        last_resort = _kept(entry, plan, verdict) if entry and isinstance(verdict, Stale) else None
        return Missed(missed, last_resort, mark)

    async def _judged(self, meta: EntryMeta, plan: Plan, now: float) -> Fresh | Stale | Expired:
        """The verdict on an entry. Expiry is final: a clock that is set back revives nothing."""
        verdict = judge(meta, plan, now, self._draw(), beta=self._rules.refresh_beta)
        if isinstance(verdict, Fresh):
            return Expired(verdict.age_s) if self._recall.is_past(meta) else verdict
        if meta.stored_at + meta.ttl_s <= now:
            self._recall.seen_past(meta)
        if last_use(meta) <= now:
            await self._store.drop(meta.key)
        return verdict

    def landed(self, plan: Plan, missed: Missed) -> bool:
        """Whether ``plan`` should be looked up again: it was being computed, and now is."""
        return plan.may_read and self._flights.landed_since(plan.key, missed.mark)

    async def clear(self, selector: Selector) -> Sequence[EntryMeta]:
        """Drop what is meant, now and out of the flights in the air. Raises: StoreError."""
        gone = await self._clearings.clear(selector)
        self._cleared(gone)
        return gone

    def board(self, call: Call, plan: Plan, backend: Computes, *, led: bool = True) -> Boarded:
        """Read along with the flight that computes this, or start it.

        A less urgent flight that has nothing yet gives way, for it may wait behind a whole queue.
        ``led``: it is not started while another process computes the same.
        """
        shared = plan.may_read and plan.may_store
        flight = self._flights.find(plan.key) if shared else None
        if flight is not None and self._too_old(flight, plan):
            flight = None
        led = led and plan.max_age_s != 0
        finish_alone = plan.preload
        if flight is not None and flight.gives_way(plan.lane):
            # Not led: the lease is still being given back.
            finish_alone, led, flight = finish_alone or flight.finish_alone, False, None
        collapsed = flight is not None
        if flight is None:
            flight = self._flights.start(
                plan.key if shared else None,
                lambda: self._work(call, plan, backend, led=led),
                lane=plan.lane,
                began_at=self._now(),
                once=not shared,
            )
        flight.finish_alone |= finish_alone
        return Boarded(flight, flight.read(), collapsed)

    def _too_old(self, flight: Flight, plan: Plan) -> bool:
        """Whether the flight began before what a request's ``max-age`` allows."""
        return plan.max_age_s is not None and self._now() - flight.began_at >= plan.max_age_s

    async def opened(self, boarded: Boarded, missed: Missed, backend: Computes) -> Answer | None:
        """Wait for the first piece; ``None`` when the store has the answer by now.

        Raises: ClientFault, BackendFault, as :meth:`answer` says.
        """
        reader, last_resort = boarded.reader, missed.last_resort
        try:
            first = await anext(reader)
        except BaseException:
            reader.close()
            raise
        match first:
            case Opening():
                outcome = with_opening(missed.outcome, first, backend, collapsed=boarded.collapsed)
                return Flown(first, reader, outcome)
            case Failed():
                reader.close()
                if last_resort is not None and first.fault != "client":
                    return last_resort
                raise from_failed(first)
            case Elsewhere():
                reader.close()
                await asyncio.sleep(0)  # so that it has landed, and is not boarded again for ever
                return None
            case _:
                reader.close()
                raise AssertionError(f"{backend.name} opened with {type(first).__name__}")

    def renew(self, call: Call, plan: Plan, backend: Computes) -> None:
        """Compute anew behind the reader's back, unless that is under way already.

        Nor when ``max_renewals`` are: of a thousand answers that grow stale together a few are
        computed at a time, and the rest are served as they are. Nobody waits: lane ``batch``.
        """
        if not plan.may_store or plan.only_if_cached or self._flights.find(plan.key) is not None:
            return
        if self._renewals >= self._rules.max_renewals:
            return
        # A refusal must not take the place of the good answer that is being renewed.
        renewal = replace(plan, may_read=False, lane="warm" if plan.preload else "batch")
        flight = self._flights.start(
            plan.key,
            lambda: self._work(call, renewal, backend, renews=True),
            finish_alone=True,
            lane=renewal.lane,
            began_at=self._now(),
        )
        assert flight.task is not None  # it was started
        self._renewals += 1
        flight.task.add_done_callback(self._renewed)

    def _renewed(self, _: asyncio.Task[None]) -> None:
        self._renewals -= 1

    def _work(
        self,
        call: Call,
        plan: Plan,
        backend: Computes,
        *,
        renews: bool = False,
        led: bool = True,
    ) -> AsyncGenerator[Piece, None]:
        """What a flight does: compute, unless another process does so already."""
        shared = plan.may_store and (plan.may_read or renews)
        if self._leading is None or not led or not shared:
            return self._compute(call, plan, backend, renews=renews)
        return self._lead(self._leading, call, plan, backend, renews=renews)

    async def _lead(
        self, leading: Leading, call: Call, plan: Plan, backend: Computes, *, renews: bool
    ) -> AsyncGenerator[Piece, None]:
        there = None if renews else partial(self._is_there, plan)
        async with leading.of(plan.key, there) as leads:
            if not leads:
                yield Elsewhere()
                return
            async with aclosing(self._compute(call, plan, backend, renews=renews)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _is_there(self, plan: Plan) -> bool:
        """Whether the store has by now what this plan may be answered with."""
        now = self._now()
        try:
            entry = await self._store.get(plan.key, now=now, likely=plan.tier)
        except StoreError:
            return False
        return entry is not None and isinstance(judge(entry.meta, plan, now, 0.0, beta=0.0), Fresh)

    async def _compute(
        self, call: Call, plan: Plan, backend: Computes, *, renews: bool
    ) -> AsyncGenerator[Piece, None]:
        """Pass the backend's pieces on, then store the answer."""
        folding = Folding(self._rules.limits.max_entry_bytes)
        ending: Ending | None = None
        may_store = plan.may_store
        asks_anew = not plan.may_read or plan.max_age_s is not None
        if may_store and asks_anew and not renews:
            since = await self._store.draw()
        else:
            since = self._store.since()
        with self._in_the_air(plan.lane):
            async with aclosing(backend.run(call, plan)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Chunk | Whole):
                        if may_store:
                            add_to(folding, piece)
                    elif isinstance(piece, Opening):  # another model's answer is not this one's
                        may_store = may_store and piece.fallback is None
                    elif not isinstance(piece, Comment):
                        ending = piece
                    yield piece
                    if ending is not None and may_store:
                        await asyncio.sleep(0)  # the readers first: they have waited long enough
                        # and now, while the backend tidies up: the next may be asking already
                        await self._keep(call, plan, folding, ending, since)
        if isinstance(ending, Completed) and (renews or plan.lane == "warm"):
            self._spent("warming" if plan.lane == "warm" else "revalidation", plan, ending)

    def since(self) -> Since:
        """The generations of now: what is cleared later bars what began before."""
        return self._store.since()

    async def remember(self, call: Call, plan: Plan, refusal: Failed, since: Since) -> None:
        """Keep a refusal that the same request will meet again."""
        if plan.may_store:
            await self._keep(call, plan, Folding(), refusal, since)

    async def _keep(
        self,
        call: Call,
        plan: Plan,
        folding: Folding,
        ending: Ending,
        since: Since,
    ) -> None:
        """Store what ended well, unless it was cleared or replaced ``since`` the flight began."""
        finish: Finish = "whole"
        if isinstance(ending, Failed):
            body = exact_json.dumps(from_failed(ending).body())
        elif folding.too_large:
            return
        else:
            answer = folding.answer()
            finish = finish_of(answer, call.endpoint)
            try:
                body = b"" if finish == "unfinished" else replayable(answer, folding.log)
            except exact_json.NotStrict:  # a store holds JSON, and this is none
                return
        verdict = admit(
            plan,
            ending,
            finish=finish,
            size_bytes=len(body),
            rules=self._rules,
            draw=self._draw(),
        )
        match verdict:
            case Refuse():
                return
            case Store():
                pass
            case _:
                assert_never(verdict)
        now = self._now()
        meta = meta_of(call, plan, ending, verdict, self._rules, now=now, size_bytes=len(body))
        try:
            older = superseded(call, plan) if isinstance(ending, Completed) else None
            stored = await self._store.put(Entry(meta, body, older, since), now=now)
        except Exception as error:  # noqa: BLE001 - the readers are served; nobody else would say it
            self._store_failed(error)
            return
        if stored.barred:
            return
        self._stored(meta)
        self._remember(plan, stored)
        if since.replaces or not plan.may_read:
            await self._clearings.replaced(meta)

    def _remember(self, plan: Plan, stored: Stored) -> None:
        self._recall.left((meta.key for meta in stored.evicted), "evicted")
        if stored.kept:
            self._recall.stored(plan)
        else:
            self._recall.left((plan.key,), "evicted")


def _kept(entry: Entry, plan: Plan, verdict: Fresh | Stale, *, renew: bool = False) -> Kept:
    return Kept(entry, from_store(entry, plan, verdict), renew)
