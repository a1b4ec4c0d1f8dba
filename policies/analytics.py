"""What was measured of one conversation, and what its numbers recommend.

A :class:`Tally` holds sums, a few recent gaps and hashes of recent questions: never text. Each
recommendation follows from numbers of this conversation on this gateway, and carries them.

A recommendation names the span that it was observed in, and never goes beyond it: no lifetime longer
than the span, no verdict before an answer could grow old in it. A shorter lifetime saves no call, so none
is recommended.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final, Literal

from policies.conversation import Shape
from policies.outcome import Level, Outcome
from policies.plan import Plan
from policies.rules import Rules, TierName

Action = Literal["enable", "disable", "ttl", "tier", "chunking"]

RECENT_GAPS: Final = 32
RECENT_QUESTIONS: Final = 64
MIN_CALLS: Final = 5
"""Calls without any reuse before storing them is called useless."""
MIN_GAPS: Final = 4
"""Gaps between calls before they say anything about lifetimes."""
MIN_REPEATS: Final = 2
MAX_MESSAGES: Final = 20
"""A longer conversation is better cut into several."""
LIFETIMES_S: Final = (60, 300, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400, 604_800)
_STORED_LEVELS: Final = frozenset({"response", "semantic", "negative"})


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to change, to which value, and the numbers measured in ``span_s`` that this rests on."""

    action: Action
    value: str | float | bool
    because: str
    measured: Mapping[str, float]
    span_s: float


@dataclass(slots=True)
class Tally:
    """Sums over the calls of one conversation. Times are unix seconds.

    ``repeats`` counts questions that were asked before in this conversation (among its last
    ``RECENT_QUESTIONS``); the ``uncached`` calls are those that did not use the response store.
    ``tier`` and ``ttl_s`` are those of the last call that did; ``answers`` were computed for a call of
    this conversation.
    """

    first_s: float
    last_s: float
    shape: Shape
    calls: int = 0
    repeats: int = 0
    uncached: int = 0
    uncached_repeats: int = 0
    expired: int = 0
    answers: int = 0
    seconds_computing: float = 0.0
    miss_tokens: int = 0
    tokens_saved: int = 0
    seconds_saved: float = 0.0
    tier: TierName | None = None
    ttl_s: float = 0.0
    levels: dict[Level, int] = field(default_factory=dict)
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_GAPS))
    questions: dict[bytes, None] = field(default_factory=dict)

    def stored(self, plan: Plan, outcome: Outcome, *, cost_s: float, now: float) -> None:
        """One more call, at ``now``, that the response store answered with what took ``cost_s``."""
        if self.calls:
            self.gaps_s.append(now - self.last_s if now > self.last_s else 0.0)
        self.calls += 1
        self.repeats += 1
        self.last_s = now
        self.tier = plan.tier
        self.ttl_s = plan.ttl_s
        self.tokens_saved += outcome.tokens_saved
        level = outcome.level
        self.levels[level] = self.levels.get(level, 0) + 1
        if level != "negative":
            self.seconds_saved += cost_s

    def computed(
        self, plan: Plan, outcome: Outcome, *, seconds: float, question: bytes | None, now: float
    ) -> None:
        """One more call, at ``now``, that a backend answered in ``seconds``.

        ``question`` is a fingerprint of what was asked, None when nobody looked.
        """
        if self.calls:
            self.gaps_s.append(max(0.0, now - self.last_s))
        self.calls += 1
        self.last_s = now
        self.tokens_saved += outcome.tokens_saved
        self.levels[outcome.level] = self.levels.get(outcome.level, 0) + 1
        if plan.enabled:
            self.tier, self.ttl_s = plan.tier, plan.ttl_s
        self.uncached += not plan.enabled
        self.expired += outcome.miss_reason == "expired"
        if not outcome.collapsed:
            self.answers += 1
            self.seconds_computing += seconds
            self.miss_tokens += outcome.miss_tokens
        if question is not None:
            self._asked(question, uncached=not plan.enabled)

    def _asked(self, question: bytes, *, uncached: bool) -> None:
        if question in self.questions:
            self.repeats += 1
            self.uncached_repeats += uncached
            del self.questions[question]
        self.questions[question] = None
        if len(self.questions) > RECENT_QUESTIONS:
            del self.questions[next(iter(self.questions))]

    @property
    def stored_hits(self) -> int:
        """Calls that the response store answered."""
        return sum(count for level, count in self.levels.items() if level in _STORED_LEVELS)

    @property
    def hits(self) -> int:
        """Calls that either level of the cache helped."""
        return self.stored_hits + self.levels.get("prefix", 0)

    @property
    def span_s(self) -> float:
        """From the first call to the last."""
        return max(0.0, self.last_s - self.first_s)

    @property
    def mean_compute_s(self) -> float:
        """What computing an answer takes."""
        return self.seconds_computing / self.answers if self.answers else 0.0

    @property
    def gap_p90_s(self) -> float | None:
        """Nine of ten recent gaps between calls were no longer; None before there are enough."""
        gaps = sorted(self.gaps_s)
        return gaps[ceil(0.9 * len(gaps)) - 1] if len(gaps) >= MIN_GAPS else None


def recommend(tally: Tally, rules: Rules) -> tuple[Recommendation, ...]:
    """What the numbers speak for; nothing while they are too few."""
    found = [_storing(tally), *_lifetime(tally, rules), _chunking(tally)]
    return tuple(one for one in found if one is not None)


def _recommendation(
    tally: Tally,
    action: Action,
    value: str | float | bool,
    because: str,
    measured: Mapping[str, float],
) -> Recommendation:
    span_s = tally.span_s
    because = f"{because} (observed for {spoken(span_s)})"
    return Recommendation(action, value, because, measured, round(span_s, 3))


def spoken(seconds: float) -> str:
    """A length of time as 45 s, 8 min, 26 h or 3 d."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def _storing(tally: Tally) -> Recommendation | None:
    """Use the response store, or stop using it once an answer could have grown old unread."""
    if tally.uncached_repeats >= MIN_REPEATS:
        return _recommendation(
            tally,
            "enable",
            True,
            f"{tally.uncached_repeats} of {tally.uncached} calls that did not use the response "
            f"store repeated an earlier question; computing one takes {tally.mean_compute_s:.3g} s",
            {
                "uncached_calls": tally.uncached,
                "repeats": tally.uncached_repeats,
                "mean_compute_s": round(tally.mean_compute_s, 6),
            },
        )
    stored = tally.calls - tally.uncached
    if stored >= MIN_CALLS and not tally.repeats and tally.span_s >= tally.ttl_s:
        return _recommendation(
            tally,
            "disable",
            False,
            f"none of {stored} calls that used the response store repeated an earlier question; "
            "prefixes are reused without it",
            {"cached_calls": stored, "repeats": 0},
        )
    return None


def _lifetime(tally: Tally, rules: Rules) -> list[Recommendation]:
    """A longer ttl that covers the observed gaps twice over, where answers did expire, and its tier."""
    gap_s = tally.gap_p90_s
    if gap_s is None or tally.tier is None or not tally.repeats or not tally.expired:
        return []
    wanted_s = _lifetime_for(2 * gap_s, rules.limits.max_ttl_s)
    if not tally.ttl_s < wanted_s <= tally.span_s:
        return []
    measured = {"gaps": len(tally.gaps_s), "gap_p90_s": round(gap_s, 3), "expired": tally.expired}
    because = (
        f"nine of ten of the last {len(tally.gaps_s)} gaps between calls were at most "
        f"{gap_s:.3g} s, and {tally.expired} answers expired before they were asked for again, "
        f"under a ttl of {tally.ttl_s:.15g} s; computing one takes {tally.mean_compute_s:.3g} s"
    )
    numbers = {**measured, "ttl_s": tally.ttl_s}
    found = [_recommendation(tally, "ttl", wanted_s, because, numbers)]
    tier = _tier_for(wanted_s, rules)
    tier_ttl_s = rules.tiers[tier].ttl_s
    if tier != tally.tier and tier_ttl_s > tally.ttl_s:
        because = (
            f"gaps of {gap_s:.3g} s want a ttl of {wanted_s:.15g} s, and tier {tier} "
            f"({tier_ttl_s:.15g} s) is the first that {_fits(tier_ttl_s, wanted_s)}"
        )
        numbers = {**measured, "tier_ttl_s": tier_ttl_s}
        found.append(_recommendation(tally, "tier", tier, because, numbers))
    return found


def _fits(tier_ttl_s: float, wanted_s: float) -> str:
    return "has it" if tier_ttl_s >= wanted_s else "comes near"


def _lifetime_for(least_s: float, most_s: float) -> float:
    """The shortest of ``LIFETIMES_S`` that is long enough and allowed."""
    long_enough = (float(one) for one in LIFETIMES_S if one >= least_s)
    return min(next(long_enough, float(LIFETIMES_S[-1])), most_s)


def _tier_for(wanted_s: float, rules: Rules) -> TierName:
    """The shortest-lived tier whose ttl is long enough, else the longest-lived."""
    tiers = sorted(rules.tiers.values(), key=lambda tier: tier.ttl_s)
    return next((tier.name for tier in tiers if tier.ttl_s >= wanted_s), tiers[-1].name)


def _chunking(tally: Tally) -> Recommendation | None:
    messages = tally.shape.messages
    mean_tokens = tally.miss_tokens / tally.answers if tally.answers else 0.0
    if messages <= MAX_MESSAGES or not mean_tokens:
        return None
    return _recommendation(
        tally,
        "chunking",
        MAX_MESSAGES,
        f"it has {messages} messages; {mean_tokens:.0f} prompt tokens are computed per answer",
        {"messages": messages, "mean_prompt_tokens_computed": round(mean_tokens, 1)},
    )
