"""The numbers of one gateway process: one sum per kind of call, everything else derived from it.

``/v1/cache/stats`` and ``/metrics`` both read :class:`Statistics`, so they never disagree; and
what several processes counted is added up with :meth:`Statistics.merge`. What they say was saved is put
together in ``gateway.savings``.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from operator import add, attrgetter
from typing import Any, Final, Literal, NamedTuple, Self

from policies.outcome import Completed, Errand, Outcome

MAX_LABELS: Final = 256
"""Models and tenants counted by name; later ones are counted as ``other``."""
MAX_NAME: Final = 64
"""Characters of a model's name that are kept: with a backend for any model, clients choose it."""
OTHER: Final = "other"
BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper bounds of the answer times that are counted apart; one more bucket is for the rest."""


class Group(NamedTuple):
    """A kind of call. ``tier`` is None when the store was not asked for, ``reason`` on a hit."""

    endpoint: str
    level: str
    status: int
    tier: str | None
    model: str
    tenant: str
    reason: str | None


Names = tuple[str, str, int, str | None, str, str, str | None]


class Purpose(NamedTuple):
    """What is computed though no user waits for it, and of whom."""

    errand: Errand
    tier: str
    model: str
    tenant: str


Name = Literal["endpoint", "level", "tier", "model", "tenant", "reason"]


@dataclass(slots=True)
class Spent:
    """Sums over what was computed for one purpose: backend seconds, tokens, money."""

    calls: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    money: float = 0.0

    def add(self, ending: Completed, *, money: float) -> None:
        """One more."""
        self.calls += 1
        self.hit_tokens += ending.usage.hit_tokens
        self.miss_tokens += ending.usage.miss_tokens
        self.completion_tokens += ending.usage.completion_tokens
        self.seconds += ending.duration_s
        self.money += money

    def merge(self, other: "Spent") -> None:
        """Take the sums of ``other`` on top."""
        for name in _SPENT:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens(self) -> int:
        """Tokens computed: of prompts, where the KV cache did not have them, and of answers."""
        return self.miss_tokens + self.completion_tokens


_SPENT: Final = tuple(one.name for one in fields(Spent))


@dataclass(slots=True)
class Tally:
    """Sums over calls of one kind; ``within`` are their answer times by bucket.

    ``hits`` are calls that either level helped, ``stored`` those that a stored answer answered.
    ``hit_tokens`` and ``miss_tokens`` are those of prompts that backends were sent, with their KV ready
    or not. The ``collapsed`` calls read along with another's; what they saved is in ``tokens_saved``
    and ``money_saved`` too.
    """

    requests: int = 0
    hits: int = 0
    stored: int = 0
    collapsed: int = 0
    stale: int = 0
    store_errors: int = 0
    tokens_saved: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    seconds_saved: float = 0.0
    money_saved: float = 0.0
    collapsed_tokens: int = 0
    collapsed_money: float = 0.0
    within: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))

    def add(self, outcome: Outcome, *, seconds: float, seconds_saved: float, money: float) -> None:
        """One more call, which took ``seconds``."""
        self.requests += 1
        self.seconds += seconds
        self.within[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds_saved += seconds_saved
        self.money_saved += money
        self.tokens_saved += outcome.tokens_saved
        if outcome.hit:
            self.hits += 1
            self.stale += outcome.stale
        if outcome.level in {"prefix", "none"}:
            if outcome.collapsed:
                self.collapsed += 1
                self.collapsed_tokens += outcome.tokens_saved
                self.collapsed_money += money
            else:
                self.hit_tokens += outcome.hit_tokens
                self.miss_tokens += outcome.miss_tokens
                self.completion_tokens += outcome.completion_tokens
            self.store_errors += outcome.store_error
        elif outcome.level != "negative":
            self.stored += 1

    def merge(self, other: "Tally") -> None:
        """Take the sums of ``other`` on top."""
        # One by one takes half as long as a loop over the fields, and workers' tallies are many.
        self.requests += other.requests
        self.hits += other.hits
        self.stored += other.stored
        self.collapsed += other.collapsed
        self.stale += other.stale
        self.store_errors += other.store_errors
        self.tokens_saved += other.tokens_saved
        self.hit_tokens += other.hit_tokens
        self.miss_tokens += other.miss_tokens
        self.completion_tokens += other.completion_tokens
        self.seconds += other.seconds
        self.seconds_saved += other.seconds_saved
        self.money_saved += other.money_saved
        self.collapsed_tokens += other.collapsed_tokens
        self.collapsed_money += other.collapsed_money
        self.within = list(map(add, self.within, other.within))

    @property
    def prompt_tokens(self) -> int:
        """Of prompts that backends were sent."""
        return self.hit_tokens + self.miss_tokens

    def as_dict(self) -> dict[str, Any]:
        """JSON for ``/v1/cache/stats``. The two rates are shares of different things: no sum of them."""
        return {
            "requests": self.requests,
            "hits": self.hits,
            "hit_rate": _share(self.hits, self.requests),
            "stored_answers": self.stored,
            "stored_rate": _share(self.stored, self.requests),
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_reused": self.hit_tokens,
            "reuse_rate": _share(self.hit_tokens, self.prompt_tokens),
            "tokens_saved": self.tokens_saved,
            "seconds_saved": round(self.seconds_saved, 6),
            "money_saved": round(self.money_saved, 9),
        }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


_SUMS: Final = tuple(one.name for one in fields(Tally) if one.name != "within")
_SHOWN: Final = (
    "requests", "hits", "stored", "hit_tokens", "miss_tokens", "tokens_saved", "seconds_saved",
    "money_saved",
)  # fmt: skip
Row = tuple[float, ...]
_ROW: Final = attrgetter(*_SUMS)
_SHOWN_ROW: Final = attrgetter(*_SHOWN)


class Views(NamedTuple):
    """The same calls, added up by five of their names."""

    levels: dict[str, Tally]
    tiers: dict[str, Tally]
    models: dict[str, Tally]
    tenants: dict[str, Tally]
    reasons: dict[str, Tally]

    @property
    def total(self) -> Tally:
        """The sum of everything."""
        return _summed([*self.levels.values()])


class Statistics:
    """Everything counted since the start."""

    def __init__(self) -> None:
        self.store_failures = 0
        """Answers that were given and could not be stored."""
        self.journal_lines = 0
        """Written to the journal's file."""
        self.journal_lost = 0
        """Not written, because the disk failed or fell behind."""
        self._groups: dict[Names, Tally] = {}
        self._spent: dict[Purpose, Spent] = {}
        self._refused: dict[tuple[str, int], int] = {}
        self._names: dict[str, set[str]] = {"model": set(), "tenant": set()}

    def group(self, names: Names) -> Tally:
        """The sums of a kind of call, to be added to; ``names`` are those of a :class:`Group`."""
        # A plain tuple finds what a Group put there, and is made in a fifth of the time.
        tally = self._groups.get(names)
        if tally is None:
            group = Group(*names)
            bounded = group._replace(
                model=self._bounded("model", group.model),
                tenant=self._bounded("tenant", group.tenant),
            )
            tally = self._groups.setdefault(bounded, Tally())
        return tally

    def spent(self, purpose: Purpose) -> Spent:
        """The sums of a purpose, to be added to."""
        spent = self._spent.get(purpose)
        if spent is None:
            bounded = purpose._replace(
                model=self._bounded("model", purpose.model),
                tenant=self._bounded("tenant", purpose.tenant),
            )
            spent = self._spent.setdefault(bounded, Spent())
        return spent

    def purposes(self) -> Iterator[tuple[Purpose, Spent]]:
        """Each purpose and its sums."""
        yield from self._spent.items()

    def refused(self, endpoint: str, status: int, *, times: int = 1) -> None:
        """Count calls that ended in an error."""
        self._refused[endpoint, status] = self._refused.get((endpoint, status), 0) + times

    def groups(self) -> Iterator[tuple[Group, Tally]]:
        """Each kind of call and its sums."""
        for names, tally in self._groups.items():
            yield Group(*names), tally

    def refusals(self) -> Iterator[tuple[str, int, int]]:
        """Endpoint, status, how many."""
        for (endpoint, status), count in self._refused.items():
            yield endpoint, status, count

    def by(self, name: Name) -> dict[str, Tally]:
        """Sums for each value of one of a group's names; calls without one are left out."""
        sums: dict[str, Tally] = {}
        for group, tally in self.groups():
            if (value := getattr(group, name)) is not None:
                sums.setdefault(value, Tally()).merge(tally)
        return sums

    def views(self) -> Views:
        """Sums for each level, whole ones; for the other names of what a tally shows.

        As :meth:`by` for each of them says, in a tenth of the time: columns are added up.
        """
        levels: defaultdict[str, list[Tally]] = defaultdict(list)
        others: tuple[defaultdict[str, list[Row]], ...] = tuple(
            defaultdict(list) for _ in Views._fields[1:]
        )
        tiers, models, tenants, reasons = others
        for (_, level, _, tier, model, tenant, reason), tally in self._groups.items():
            levels[level].append(tally)
            row = _SHOWN_ROW(tally)
            models[model].append(row)
            tenants[tenant].append(row)
            if tier is not None:
                tiers[tier].append(row)
            if reason is not None:
                reasons[reason].append(row)
        return Views(
            {level: _summed(tallies) for level, tallies in levels.items()},
            *({name: _with_sums(_SHOWN, rows) for name, rows in one.items()} for one in others),
        )

    def of_tenant(self, tenant: str) -> "Statistics":
        """What concerns one tenant alone; errors of the gateway as a whole are not among it."""
        own = Statistics()
        name = tenant[:MAX_NAME]
        own._groups = {group: one for group, one in self.groups() if group.tenant == name}
        own._spent = {
            purpose: one for purpose, one in self._spent.items() if purpose.tenant == name
        }
        return own

    @property
    def total(self) -> Tally:
        """The sum of everything."""
        return _summed([*self._groups.values()])

    @property
    def errors(self) -> int:
        """Calls that ended in an error."""
        return sum(self._refused.values())

    @property
    def store_errors(self) -> int:
        """Store calls that failed, when reading or when writing."""
        return self.total.store_errors + self.store_failures

    def merge(self, other: "Statistics") -> None:
        """Take what ``other`` counted on top."""
        self.store_failures += other.store_failures
        self.journal_lines += other.journal_lines
        self.journal_lost += other.journal_lost
        for group, tally in other.groups():
            self.group(group).merge(tally)
        for purpose, spent in other.purposes():
            self.spent(purpose).merge(spent)
        for endpoint, status, count in other.refusals():
            self.refused(endpoint, status, times=count)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON, for another process; :meth:`of` reads it."""
        return {
            "store_failures": self.store_failures,
            "journal": [self.journal_lines, self.journal_lost],
            "refused": list(self.refusals()),
            "spent": [
                [*purpose, [getattr(spent, name) for name in _SPENT]]
                for purpose, spent in self._spent.items()
            ],
            "groups": [
                [*group, [getattr(tally, name) for name in _SUMS], tally.within]
                for group, tally in self._groups.items()
            ],
        }

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """What :meth:`as_dict` wrote. Raises: KeyError, TypeError, ValueError for anything else."""
        read = cls()
        read.store_failures = int(data["store_failures"])
        read.journal_lines, read.journal_lost = map(int, data["journal"])
        for endpoint, status, count in data["refused"]:
            read.refused(endpoint, status, times=count)
        for errand, tier, model, tenant, spent in data["spent"]:
            sums_spent = Spent(**dict(zip(_SPENT, spent, strict=True)))
            read.spent(Purpose(errand, tier, model, tenant)).merge(sums_spent)
        for *names, sums, within in data["groups"]:
            named = dict(zip(_SUMS, sums, strict=True))
            # Its names are bounded already, by who counted.
            read._groups[Group(*names)] = Tally(**named, within=list(within))
        return read

    def _bounded(self, kind: str, name: str) -> str:
        names, short = self._names[kind], name[:MAX_NAME]
        if short in names:
            return short
        if len(names) >= MAX_LABELS:
            return OTHER
        names.add(short)
        return short

    def __repr__(self) -> str:
        whole = self.total
        return f"<Statistics {whole.requests} requests, {whole.hits} hits, {self.errors} errors>"


def _summed(tallies: Sequence[Tally]) -> Tally:
    """All of them as one."""
    whole = _with_sums(_SUMS, map(_ROW, tallies))
    if tallies:
        withins = (tally.within for tally in tallies)
        whole.within = [sum(counts) for counts in zip(*withins, strict=True)]
    return whole


def _with_sums(names: Sequence[str], rows: Iterable[Row]) -> Tally:
    """The sums of columns, under their names."""
    whole = Tally()
    for name, column in zip(names, zip(*rows, strict=True), strict=False):  # no rows, no columns
        setattr(whole, name, sum(column))
    return whole
