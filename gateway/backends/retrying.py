"""A call that goes on elsewhere when a backend fails: the next of its fellows, then other models.

::

    the model's backends, best first ─► once more those that may mend ─► the fallback models, in order

Only before the first piece; comments are none, and leave at once. The opening is held back until a piece of the answer follows, so that
what fails before anything of the answer is there can still be asked elsewhere, or become a status
instead of a broken stream. What fails after it is passed on as it is.

A try that may have reached a backend costs of a budget, so that a storm of failures is not answered
with a storm of tries; one that reached nobody costs nothing and goes to the next backend. A fallback
model's answer says so in its opening: it is never stored under the first model's key.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.backends.base import (
    Backend,
    Computes,
    Forwarded,
    KnownPrefix,
    LooksUp,
    Place,
    Prefills,
)
from gateway.backends.group import Group
from gateway.backends.health import Health
from gateway.backends.held import Held, does_not_know, ids_in, is_kept, named_in
from gateway.chunks import Chunk, Comment, Opening, Piece, Whole
from gateway.router import Router, Served, Target
from policies.call import Call
from policies.eviction import Priority
from policies.outcome import Cause, Failed
from policies.plan import Lane, Plan

PATIENCE_S: Final[Mapping[Lane, float]] = {"interactive": 1.0, "batch": 10.0, "warm": 10.0}
"""The longest wait before a backend is asked again; nobody sits before a batch."""
FIRST_WAIT_S: Final = 0.05
CREDIT: Final = 5.0
"""Tries that there are to begin with; the first calls pay them back."""
MOST_SAVED: Final = 20.0
"""Tries that quiet times may save up."""
COSTS_NOTHING: Final[frozenset[Cause]] = frozenset({"unreachable", "not_asked", "refused_key"})
"""Failures that cost no backend any work: the next backend is asked without a try of the budget."""
FINAL: Final[frozenset[Cause]] = frozenset({"not_asked", "refused_key"})
"""Failures that another try at the same backend cannot mend."""
MAY_MEND: Final = frozenset({408, 429, 500, 502, 503})
"""What the same backend may be asked again after; not a time-out: it has enough to do."""


class Budget:
    """How many calls may be tried anew: ``share`` of all calls, and a few to begin with.

    Those are on credit: n calls from the start are tried anew ``max(CREDIT, share * n)`` times at most.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = CREDIT if share else 0.0
        self._owed = self._saved

    def offered(self) -> None:
        """A call has come."""
        paid = min(self._owed, self._share)
        self._owed -= paid
        self._saved = min(self._saved + self._share - paid, MOST_SAVED)

    def spend(self) -> bool:
        """Whether one more try may be made; if so it is counted."""
        if self._saved < 1.0 - 1e-9:  # five fifths are one
            return False
        self._saved -= 1.0
        return True

    def __repr__(self) -> str:
        return f"<Budget {self._saved:.1f} tries>"


@dataclass(frozen=True, slots=True)
class Manner:
    """How often and by whose clock. ``draw`` in ``[0, 1)``; ``sleep`` takes seconds."""

    health: Health
    clock: Callable[[], float]
    draw: Callable[[], float]
    retries: int = 2
    retry_budget: float = 0.2
    held: Held = field(default_factory=Held)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(slots=True)
class _Try:
    """A backend that may be asked: ``after_s`` is how long to wait first."""

    candidate: Computes
    asked: int = 0
    after_s: float = 0.0


class Retrying:
    """The backends of one model, as one that tries again.

    ``others`` are the fallback models; each is tried in order when all before it have failed.
    """

    def __init__(
        self, backend: Backend, manner: Manner, *, others: Callable[[], Sequence[Target]] = tuple
    ) -> None:
        self._backend = backend
        self._manner = manner
        self._others = others
        self._budget = Budget(manner.retry_budget)

    def __repr__(self) -> str:
        return f"<Retrying {self._backend.name} {self._budget}>"

    @property
    def name(self) -> str:
        """The backend's."""
        return self._backend.name

    async def run(self, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """See :meth:`gateway.backends.base.Computes.run`: the first model's failure is the failure."""
        self._budget.offered()
        first: Failed | None = None
        for target, fallback in self._models(call, plan):
            asked = replace(plan, model=target.model) if fallback else plan
            begun = False
            async with aclosing(self._one_model(target.backend, call, asked)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Failed) and not begun:
                        first = first or piece
                        break
                    begun = begun or not isinstance(piece, Comment)
                    if fallback is not None and isinstance(piece, Opening):
                        yield replace(piece, fallback=fallback)
                    else:
                        yield piece
            if begun:
                return
            if first is not None and first.fault != "backend":
                break  # another model would be asked for what the client has to mend
        assert first is not None  # a model was asked, and it ended
        yield first

    def _models(self, call: Call, plan: Plan) -> Iterator[tuple[Target, str | None]]:
        yield Target(self._backend, plan.model), None
        # Warming computes to store, and that would not be; vectors of two models cannot be compared.
        # What a response goes on from lies at one backend, and no fallback has it.
        if plan.lane != "warm" and call.endpoint != "embeddings" and not named_in(call):
            for target in self._others():
                yield target, target.model

    async def _one_model(
        self, backend: Backend, call: Call, plan: Plan
    ) -> AsyncGenerator[Piece, None]:
        """Ask the backends of one model until one begins to answer; else the last failure alone."""
        candidates: Sequence[Computes] = [backend]
        if isinstance(backend, Group):
            candidates = backend.candidates(call, plan)
        ids = named_in(call)
        holder = self._manner.held.holder(ids)
        if holder is not None:
            candidates = [one for one in candidates if one.name == holder] or candidates
        waiting = deque(_Try(candidate) for candidate in candidates)
        failure: Failed | None = None
        missed: Failed | None = None  # by a backend that may know the ids
        tries_left = self._manner.retries
        while waiting:
            one = waiting.popleft()
            costs = failure is not None and (
                one.asked > 0 or not (failure.cause in COSTS_NOTHING or does_not_know(failure))
            )
            if not self._manner.health.enter(one.candidate.name):
                missed = missed or self._all_down([one.candidate.name])
                continue
            if costs and not (tries_left and self._budget.spend()):
                self._manner.health.left(one.candidate.name)
                break
            tries_left -= costs
            if one.after_s:
                await self._wait(one)
            begun = False
            # A call that fails several times at a backend counts as one failure of it.
            async with aclosing(self._once(one, call, plan)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Failed) and not begun:
                        failure = piece
                        break
                    begun = begun or not isinstance(piece, Comment)
                    yield piece
            if begun:
                return
            assert failure is not None  # an accepted call ends in an ending
            if ids and holder is None and does_not_know(failure):
                continue  # it is not known who holds it: perhaps the next
            if failure.fault != "backend":
                break
            missed = failure
            self._again(waiting, one, failure, plan.lane)
        if ids and missed is not None and failure is not None and does_not_know(failure):
            failure = missed
        yield failure or self._all_down([one.name for one in candidates])

    async def _wait(self, one: _Try) -> None:
        try:
            await self._manner.sleep(one.after_s)
        except BaseException:
            self._manner.health.left(one.candidate.name)
            raise

    def _again(self, waiting: deque[_Try], one: _Try, failure: Failed, lane: Lane) -> None:
        """Put the backend at the end of those that may be asked, if waiting for it may help."""
        if failure.status not in MAY_MEND or failure.cause in FINAL:
            return
        told_s = failure.retry_after_s if failure.status in {429, 503} else None
        grown_s = FIRST_WAIT_S * 2**one.asked * (0.5 + self._manner.draw() / 2)
        after_s = grown_s if told_s is None else told_s
        if after_s <= PATIENCE_S[lane]:
            waiting.append(_Try(one.candidate, one.asked + 1, after_s))

    async def _once(self, one: _Try, call: Call, plan: Plan) -> AsyncGenerator[Piece, None]:
        """One backend's pieces, its opening with the first of them; what it did is noted."""
        candidate, health, clock = one.candidate, self._manner.health, self._manner.clock
        name = candidate.name
        keeps = is_kept(call)
        began_s, opening, said = clock(), None, False
        try:
            async with aclosing(candidate.run(call, plan)) as pieces:
                async for piece in pieces:
                    match piece:
                        case Opening():
                            opening = replace(piece, backend=piece.backend or name)
                            continue
                        case Comment():
                            yield piece
                            continue
                        case Failed():
                            said = True
                            self._note(name, piece, again=one.asked > 0)
                        case _ if opening is not None:
                            health.began(name, clock() - began_s - opening.queued_s)
                            yield opening
                            opening = None
                        case _:
                            pass
                    if keeps and (ids := ids_in(piece)):
                        self._manner.held.note([*ids, *named_in(call)], name)
                        keeps = False
                    if not said and not isinstance(piece, Chunk | Whole):
                        said = True
                        health.succeeded(name)
                    yield piece
        finally:
            if not said:
                health.left(name)

    def _note(self, name: str, failure: Failed, *, again: bool) -> None:
        health = self._manner.health
        if failure.cause == "not_asked" or failure.fault == "ours":
            health.left(name)
        elif failure.fault == "client":
            health.succeeded(name)
        elif failure.status == 429:
            # Said of one tenant's calls as likely as of all: its fellows are asked meanwhile, but
            # it is not brought down for those that have nobody else.
            health.rest(name, 1.0 if failure.retry_after_s is None else failure.retry_after_s)
        elif failure.cause == "refused_key":
            health.refused_key(name, failure.words or "")
        elif again:
            health.left(name)
        elif failure.cause == "answered":
            health.erred(name)
        else:
            health.lost(name, reached=failure.cause != "unreachable")

    def _all_down(self, names: Sequence[str]) -> Failed:
        wait_s = min(self._manner.health.wait_s(name) for name in names)
        return Failed(
            status=503,
            code="backend_down",
            message=f"{self.name} cannot be reached; the gateway goes on checking it",
            retry_after_s=max(1.0, wait_s),
            fault="backend",
        )

    async def models(self) -> list[dict[str, Any]]:
        """See :meth:`gateway.backends.base.Backend.models`."""
        return await self._backend.models()

    async def forward(self, method: str, path_qs: str, body: bytes) -> Forwarded:
        """See :meth:`gateway.backends.base.Backend.forward`."""
        return await self._backend.forward(method, path_qs, body)

    async def invalidate_kv(self, salt: str | None) -> int:
        """See :meth:`gateway.backends.base.Backend.invalidate_kv`."""
        return await self._backend.invalidate_kv(salt)

    async def kv_stats(self) -> dict[str, Any] | None:
        """See :meth:`gateway.backends.base.Backend.kv_stats`."""
        return await self._backend.kv_stats()

    async def prefill_kv(
        self, messages: Sequence[Mapping[str, Any]], *, salt: str, priority: Priority, ttl_s: float
    ) -> int:
        """See :meth:`gateway.backends.base.Prefills.prefill_kv`."""
        if not isinstance(self._backend, Prefills):
            return 0
        return await self._backend.prefill_kv(messages, salt=salt, priority=priority, ttl_s=ttl_s)

    async def lookup_kv(self, call: Call, plan: Plan) -> KnownPrefix | None:
        """See :meth:`gateway.backends.base.LooksUp.lookup_kv`."""
        if not isinstance(self._backend, LooksUp):
            return None
        return await self._backend.lookup_kv(call, plan)

    def foreseen(self, call: Call, plan: Plan) -> list[Place]:
        """See :meth:`gateway.backends.base.Foresees.foreseen`: each model's backends, in order."""
        places = []
        for target, _ in self._models(call, plan):
            backend = target.backend
            names = backend.foreseen(call, plan) if isinstance(backend, Group) else [backend.name]
            holder = self._manner.held.holder(named_in(call))
            names = [name for name in names if name == holder] or names
            state = self._manner.health.state
            places += [Place(name, target.model, state(name)) for name in names]
        return places


class RetryingRouter(Router):
    """A router whose targets try again, and go on to the fallback models.

    ``fallbacks``: by the name that was asked for, or the model's at the backend.
    """

    def __init__(
        self,
        served: Sequence[Served],
        aliases: Mapping[str, str],
        *,
        manner: Manner,
        fallbacks: Mapping[str, Sequence[str]],
        **more: Any,
    ) -> None:
        super().__init__(served, aliases, **more)
        self._manner = manner
        self._fallbacks = fallbacks
        self._wrapped: dict[tuple[Backend, Sequence[str]], Retrying] = {}
        self.held = manner.held
        for names in self.groups:
            manner.health.together(names)

    def target(self, model: str, *, named: bool = True) -> Target:
        """See :meth:`gateway.router.Router.target`."""
        found = super().target(model, named=named)
        others = tuple(self._fallbacks.get(model) or self._fallbacks.get(found.model) or ())
        wrapped = self._wrapped.get((found.backend, others))
        if wrapped is None:
            wrapped = Retrying(
                found.backend,
                self._manner,
                others=lambda: [super(RetryingRouter, self).target(name) for name in others],
            )
            self._wrapped[found.backend, others] = wrapped
        return Target(wrapped, found.model)
