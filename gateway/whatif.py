"""What the response store would have done: the journal's calls against the code that serves.

The tiers are :class:`gateway.store.tiers.Tiers` over memory stores, with ``policies.eviction`` in
them; ``policies.freshness`` judges what is found and ``policies.admission`` what is stored, with the
time of the journal. Only the answers themselves are missing: a body is as many bytes as it was.

What is known of a call that would have been a miss, and was a hit: its answer's size, tokens and cost,
from the entry that answered. It is taken to be computed in the time its original took. What is taken as
it was: lists of embeddings, refreshes ahead of expiry, warm jobs, and how many tokens a backend found in
its KV cache for calls that it computed in the journal, too. A removal meets what it met. A tier on disk or in Redis is taken to count
bytes as the memory tiers do.
"""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, Protocol, TypeVar

from gateway.journal import Price
from gateway.outcomes import from_store
from gateway.store.base import Entry, Fill, Selector, Stored
from gateway.store.memory import OVERHEAD_BYTES, MemoryStore
from gateway.store.tiers import Tiers
from gateway.tally import Statistics
from gateway.trace import ClearedLine, JournalTrace, Recorded, StoredLine
from gateway.whatif_calls import as_recorded, computed_now, ending, linked, plan_of
from gateway.whatif_wishes import Decided, decided
from policies.admission import Refuse, admit
from policies.freshness import EntryMeta, Fresh, Stale, judge, last_use
from policies.keys import Scope
from policies.outcome import Outcome
from policies.plan import Plan
from policies.rules import Rules, StoreKind, TierName

UNBOUNDED: Final = 2**60
T = TypeVar("T")


class KvCache(Protocol):
    """What a backend would have found in its KV cache."""

    def computes(self, call: Recorded) -> int:
        """Tokens of the prompt that are reused when ``call`` is computed; now it is cached."""
        ...


@dataclass(slots=True)
class Replayed:
    """What became of the calls; ``there_before`` entries were there when the journal began."""

    statistics: Statistics
    fills: Sequence[Fill] = ()
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    there_before: int = 0


class Responses:
    """One replay of a journal under some rules."""

    def __init__(
        self,
        trace: JournalTrace,
        rules: Rules,
        prices: Mapping[str, Price],
        kv: KvCache,
        *,
        recorded_jitter: float,
        recorded_negative_ttl_s: float,
    ) -> None:
        self.asked: list[tuple[Recorded, bool]] = []
        """Calls that looked for an answer, and whether they found one that was good."""
        self._trace = trace
        self._rules = rules
        self._prices = prices
        self._kv = kv
        self._jitter = recorded_jitter
        self._negative_ttl_s = recorded_negative_ttl_s
        self._stores = {
            name: _Simulated(name, rule.store, rule.max_bytes, trace.begin.shares)
            for name, rule in rules.tiers.items()
        }
        self._tiers = Tiers(self._stores)
        self._statistics = Statistics()
        self._stored_of = linked(trace.events)
        self._leader_of = {id(stored): call for call, stored in self._stored_of.values()}
        self._known: dict[str, Recorded] = {}
        self._flights: dict[str, Recorded] = {}
        """Who computes what others may read along with."""
        self._computing: set[int] = set()
        """Calls, by their identity, that have an answer computed as in the journal."""
        self._landings: list[tuple[float, int, Recorded]] = []
        self._number = count()

    def run(self) -> Replayed:
        """Everything in its order."""
        before = self._was_there()
        for event in self._trace.events:
            self._land_until(event.at)
            match event:
                case Recorded():
                    self._asked_for(event)
                case StoredLine():
                    self._stored(event)
                case ClearedLine():
                    self._cleared(event)
        self._land_until(float("inf"))
        peaks = {store.fill().tier: store.peak_bytes for store in self._stores.values()}
        return Replayed(self._statistics, self._tiers.fills(), peaks, before)

    def _was_there(self) -> int:
        """Put what answered before anybody is seen to have stored it."""
        seen: set[str] = set()
        there = 0
        begun = self._trace.events[0].at
        for event in self._trace.events:
            if isinstance(event, ClearedLine) or event.key is None or event.key in seen:
                continue
            seen.add(event.key)
            if not isinstance(event, Recorded) or event.stored_at is None or event.parts:
                continue
            if event.stored_at <= begun:
                wish = self._decided(event)._replace(tier=event.tier or event.plan_tier)
                meta = self._meta(event, wish, event.entry_ttl_s, event.stored_at)
                self._put(meta, event, now=event.stored_at)
                there += 1
        return there

    def _asked_for(self, call: Recorded) -> None:
        if call.key is None or call.parts or call.level == "semantic":
            self._count(call, as_recorded(call), cost_s=call.cost_s)
            if call.computed:
                self._kv.computes(call)
            return
        self._known[call.key] = call
        wish = self._decided(call)
        plan = plan_of(call, wish)
        found = self._look_up(call, plan)
        if found is None:
            self._missed(call, plan)
            return
        entry, verdict = found
        if isinstance(verdict, Stale) and call.store:  # it is renewed behind the reader's back
            if call.stale:
                self._computing.add(id(call))
            else:
                self._fly(call, entry.meta.cost_s)
        self._count(call, from_store(entry, plan, verdict), cost_s=entry.meta.cost_s)

    def _look_up(self, call: Recorded, plan: Plan) -> tuple[Entry, Fresh | Stale] | None:
        assert call.key is not None
        if not call.read:
            return None
        entry = _now(self._tiers.get(plan.key, now=call.at, likely=plan.tier))
        good: Fresh | Stale | None = None
        if entry is not None:
            verdict = judge(entry.meta, plan, call.at, 0.0, beta=0.0)
            if last_use(entry.meta) <= call.at:
                _now(self._tiers.drop(entry.meta.key))
            match verdict:
                case Fresh():
                    good = verdict
                case Stale(usable="revalidate"):
                    good = verdict
                case Stale() if call.stale and call.hit:  # the backend failed, then as now
                    good = verdict
                case _:
                    pass
        self.asked.append((call, good is not None))
        return None if entry is None or good is None else (entry, good)

    def _missed(self, call: Recorded, plan: Plan) -> None:
        """Computed, as it was; or, if it was a hit, as its original was."""
        assert call.key is not None
        shared = call.read and call.store
        in_the_air = self._flights.get(call.key) if shared else None
        if call.computed:
            new = in_the_air is not None and not in_the_air.computed
            along = call.collapsed or new
            outcome = as_recorded(call, collapsed=along)
            if not along:
                self._kv.computes(call)
        else:
            along = in_the_air is not None
            reused = 0 if along else min(call.prompt_tokens, self._kv.computes(call))
            outcome = computed_now(call, plan, reused=reused, collapsed=along)
        self._count(call, outcome, cost_s=0.0)
        if along or not call.store:
            return
        if not call.computed:
            self._fly(call, call.cost_s)
            return
        self._computing.add(id(call))
        if shared:
            self._flights[call.key] = call
            self._land_at(call, call.at + call.took_s)

    def _fly(self, call: Recorded, seconds: float) -> None:
        assert call.key is not None
        if call.key not in self._flights:
            self._flights[call.key] = call
            self._land_at(call, call.at + seconds)

    def _land_at(self, call: Recorded, at: float) -> None:
        heappush(self._landings, (at, next(self._number), call))

    def _land_until(self, now: float) -> None:
        """What nobody wrote down: flights that the journal's gateway did not have, or stored nothing."""
        while self._landings and self._landings[0][0] <= now:
            at, _, call = heappop(self._landings)
            assert call.key is not None
            if self._flights.get(call.key) is not call:
                continue
            if not call.computed:
                del self._flights[call.key]
                self._keep(call, call, at=at)
            elif id(call) not in self._stored_of:
                del self._flights[call.key]

    def _stored(self, stored: StoredLine) -> None:
        leader = self._leader_of.get(id(stored))
        if leader is not None:
            if id(leader) not in self._computing:
                return  # it found an answer this time
            if self._flights.get(stored.key) is leader:
                del self._flights[stored.key]
        self._keep(leader or self._known.get(stored.key), stored, at=stored.stored_at)

    def _cleared(self, cleared: ClearedLine) -> None:
        for key in cleared.keys:
            flying = self._flights.get(key)
            if flying is not None and not flying.computed:
                del self._flights[key]
            _now(self._tiers.remove(Selector(None, key=bytes.fromhex(key))))

    def _keep(self, call: Recorded | None, facts: Recorded | StoredLine, *, at: float) -> None:
        """Store an answer as this configuration would."""
        if call is None:  # a job stored it, and nobody has asked yet: as it was
            assert isinstance(facts, StoredLine)
            wish = Decided(facts.tier, facts.entry_ttl_s, facts.priority)
            self._put(self._meta(facts, wish, facts.entry_ttl_s, at), facts, now=at)
            return
        wish = self._decided(call)
        verdict = admit(
            plan_of(call, wish),
            ending(facts),
            size_bytes=facts.bytes,
            rules=self._rules,
            draw=self._drawn(call, facts),
        )
        if not isinstance(verdict, Refuse):
            meta = self._meta(facts, wish, verdict.ttl_s, at)
            self._put(meta, facts, now=at, supersedes=call.supersedes)

    def _drawn(self, call: Recorded, facts: Recorded | StoredLine) -> float:
        """The draw that made the entry's ttl out of the plan's; the mean of draws if none is known."""
        whole_s = call.ttl_s if facts.status == 200 else self._negative_ttl_s
        if not self._jitter or not whole_s or not facts.entry_ttl_s:
            return 0.5
        return min(1.0, max(0.0, (1.0 - facts.entry_ttl_s / whole_s) / self._jitter))

    def _decided(self, call: Recorded) -> Decided:
        return decided(call, self._rules)

    def _meta(
        self, facts: Recorded | StoredLine, wish: Decided, ttl_s: float, at: float
    ) -> EntryMeta:
        assert facts.key is not None
        tier = self._rules.tiers[wish.tier]
        return EntryMeta(
            key=bytes.fromhex(facts.key),
            scope=Scope("tenant", facts.tenant),
            model=facts.model,
            endpoint=facts.endpoint,
            tier=wish.tier,
            priority=wish.priority,
            stored_at=at,
            ttl_s=ttl_s,
            stale_while_revalidate_s=tier.stale_while_revalidate_s,
            stale_if_error_s=tier.stale_if_error_s,
            cost_s=facts.cost_s,
            size_bytes=facts.bytes,
            prompt_tokens=facts.prompt_tokens,
            completion_tokens=facts.completion_tokens,
            status=facts.status,
        )

    def _put(
        self,
        meta: EntryMeta,
        facts: Recorded | StoredLine,
        *,
        now: float,
        supersedes: str | None = None,
    ) -> None:
        body = Blank(facts.bytes + max(0, facts.beside_bytes - OVERHEAD_BYTES))
        older = bytes.fromhex(supersedes) if supersedes is not None else None
        _now(self._tiers.put(Entry(meta, body, older), now=now))

    def _count(self, call: Recorded, outcome: Outcome, *, cost_s: float) -> None:
        if call.preload:
            return
        price = self._prices.get(call.model) or self._prices.get("default")
        tier = None if call.key is None else outcome.tier
        names = (call.endpoint, outcome.level, outcome.status, tier, call.model, call.tenant)
        self._statistics.group((*names, outcome.miss_reason)).add(
            outcome,
            seconds=call.took_s,
            seconds_saved=cost_s if outcome.level in {"response", "semantic"} else 0.0,
            money=0.0 if price is None else price.saved(outcome),
        )


class Blank(bytes):
    """As many bytes as it says, without having them."""

    size_bytes: int

    def __new__(cls, size_bytes: int) -> "Blank":
        """Of so many bytes."""
        made = super().__new__(cls)
        made.size_bytes = size_bytes
        return made

    def __len__(self) -> int:
        return self.size_bytes


class _Simulated(MemoryStore):
    """A memory store that says it is what the tier is, and remembers how full it was."""

    def __init__(
        self, tier: TierName, kind: StoreKind, max_bytes: int, shares: Mapping[str, int]
    ) -> None:
        super().__init__(tier, max_bytes=max_bytes, shares=shares)
        self._kind = kind
        self.peak_bytes = 0

    async def put(self, entry: Entry, *, now: float) -> Stored:
        stored = await super().put(entry, now=now)
        self.peak_bytes = max(self.peak_bytes, super().fill().size_bytes)
        return stored

    def compact(self, body: bytes) -> bytes:
        """A blank holds nothing, and a copy of it would be empty."""
        return body

    def fill(self) -> Fill:
        return replace(super().fill(), store=self._kind)


def _now(waiting: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits: everything here is in memory."""
    try:
        waiting.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a store in memory waited")
