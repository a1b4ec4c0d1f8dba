"""What sizes and ttls a journal speaks for: each proposal is a replay, and its gain that replay's.

Larger sizes: the smallest power of two that finds all but :data:`NEAR` of what a tier without bound
would find, where that finds more than now. Smaller sizes: twice the bytes that were ever held, and only
from a journal of :data:`SHRINKS_AFTER_S` or longer: a shorter one has not seen the busy hours. Ttls: for
tiers whose answers expired and were asked for again, the least multiple that has nine tenths of what the
largest one would bring. A longer ttl serves older answers: the journal knows what it saves, not whether
the answers are still true.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.whatif_run import TIERS, Run, Runner, Setting
from gateway.whatif_sweep import varied
from policies.rules import TierName

NEAR: Final = 0.005
"""Share of look-ups that is not worth a larger size."""
WORTH: Final = 0.01
"""Share of look-ups from which on a longer ttl is proposed."""
SHRINKS_AFTER_S: Final = 86_400.0
"""Traffic has a daily course: what a shorter journal never needed, the next hour may."""
TIMES: Final = (2, 4, 8)
SMALLEST_BYTES: Final = 2**20
LARGEST_BYTES: Final = 2**44
MOST_KV_SIZES: Final = 8


@dataclass(frozen=True, slots=True)
class Advice:
    """One proposal. Gains are against the run as it is; less is negative. ``hits`` are answers from
    the store, or blocks of KV; one is never added to the other.

    ``span_s`` is how long the traffic was that it was tried on.
    """

    option: str
    now: float
    proposed: float
    hits: int
    hit_rate: float
    tokens: int
    money: float
    because: str
    span_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "option": self.option,
            "now": self.now,
            "proposed": self.proposed,
            "gain": {
                "hits": self.hits,
                "hit_rate": round(self.hit_rate, 6),
                "tokens_saved": self.tokens,
                "money_saved": round(self.money, 9),
            },
            "because": self.because,
            "span_s": round(self.span_s, 3),
        }


def advised(runner: Runner, base: Setting) -> list[Advice]:
    """Every proposal that changes something, tried one by one."""
    run = runner.run(base)
    found: list[Advice] = []
    if run.answers is not None:
        for tier in TIERS:
            found += _tier_size(runner, base, run, tier)
            found += _ttl(runner, base, run, tier)
    if run.blocks is not None:
        found += _kv_size(runner, base, run)
    span_s = runner.trace.span_s
    return [replace(one, span_s=span_s) for one in found]


def _tier_size(runner: Runner, base: Setting, run: Run, tier: TierName) -> Iterator[Advice]:
    assert run.answers is not None
    now = base.rules.tiers[tier].max_bytes
    boundless = runner.run(varied(runner, base, tier, LARGEST_BYTES, "unbounded"), bounds=False)
    assert boundless.answers is not None
    peak = boundless.answers.replayed.peak_bytes[tier]
    if not peak:
        return
    enough = boundless.answers.found.hits - NEAR * run.answers.found.lookups
    size = max(SMALLEST_BYTES, 1 << (peak - 1).bit_length())
    best, best_run = size, boundless
    while size > SMALLEST_BYTES:
        size //= 2
        tried = runner.run(varied(runner, base, tier, size, str(size)), bounds=False)
        assert tried.answers is not None
        if tried.answers.found.hits < enough:
            break
        best, best_run = size, tried
    option = f"tiers.{tier}.max_bytes"
    if best > now:
        if best_run.totals["stored_answers"] > run.totals["stored_answers"]:
            evictions = run.answers.replayed.fills[TIERS.index(tier)].evictions
            because = f"full: {evictions:,} went for want of room"
            yield _advice(option, now=now, proposed=best, run=run, better=best_run, because=because)
        return
    roomy = max(SMALLEST_BYTES, 2 << (peak - 1).bit_length())
    seen_s = max(SHRINKS_AFTER_S, base.rules.tiers[tier].ttl_s)  # until then a tier only fills
    if roomy < now / 2 and runner.trace.span_s >= seen_s:
        because = (
            f"in this journal it never held more than {peak:,} bytes; the rest is free for others"
        )
        yield _advice(option, now=now, proposed=roomy, run=run, better=run, because=because)


def _ttl(runner: Runner, base: Setting, run: Run, tier: TierName) -> Iterator[Advice]:
    now = base.rules.tiers[tier].ttl_s
    tried = [
        (times * now, runner.run(_with_ttl(base, tier, times * now), bounds=False))
        for times in TIMES
        if times * now <= base.rules.limits.max_ttl_s
    ]
    assert run.answers is not None
    if not tried:
        return
    most = max(one.totals["stored_answers"] for _, one in tried) - run.totals["stored_answers"]
    if most < max(1.0, WORTH * run.answers.found.lookups):
        return
    ttl_s, best = next(
        (ttl_s, one)
        for ttl_s, one in tried
        if one.totals["stored_answers"] - run.totals["stored_answers"] >= 0.9 * most
    )
    because = "answers were asked for again after they had expired"
    option = f"tiers.{tier}.ttl"
    yield _advice(option, now=now, proposed=ttl_s, run=run, better=best, because=because)


def _with_ttl(base: Setting, tier: TierName, ttl_s: float) -> Setting:
    rule = replace(base.rules.tiers[tier], ttl_s=ttl_s)
    return base.with_tiers(f"{tier} ttl {ttl_s:g}", {tier: rule})


def _kv_size(runner: Runner, base: Setting, run: Run) -> Iterator[Advice]:
    """The least doubling of the memory for KV that is near what no bound would find."""
    now = base.room.memory_bytes
    if now is None or not now or run.blocks is None:
        return
    goal = run.blocks.unbounded.hit_rate - NEAR
    size, best, best_run = now, now, run
    for _ in range(MOST_KV_SIZES):
        if best_run.blocks is None or best_run.blocks.ours.hit_rate >= goal:
            break
        size *= 2
        best, best_run = (
            size,
            runner.run(varied(runner, base, "memory", size, str(size)), bounds=False),
        )
    more = 0 if best_run.blocks is None else best_run.blocks.ours.hits - run.blocks.ours.hits
    if best_run.blocks is not None and more > 0:
        found, bound = best_run.blocks.ours, run.blocks.unbounded.hit_rate
        tokens = int(more * base.room.block_tokens)
        price = base.prices.get("default")
        a_token = 0.0 if price is None else (price.miss_per_mtok - price.hit_per_mtok) / 1e6
        yield Advice(
            option="engine.kv_memory",
            now=now,
            proposed=best,
            hits=more,
            hit_rate=found.hit_rate - run.blocks.ours.hit_rate,
            tokens=tokens,
            money=tokens * a_token,
            because=f"then {found.hit_rate:.1%} of blocks are found, of {bound:.1%} without bound",
        )


def _advice(
    option: str, *, now: float, proposed: float, run: Run, better: Run, because: str
) -> Advice:
    def gain(name: str) -> float:
        return float(better.totals[name]) - float(run.totals[name])

    return Advice(
        option=option,
        now=now,
        proposed=proposed,
        hits=int(gain("stored_answers")),
        hit_rate=gain("stored_rate"),
        tokens=int(gain("tokens_saved")),
        money=gain("money_saved"),
        because=because,
    )
