"""One answer to "what if": a trace under a configuration, with what is measured beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.config import Config
from gateway.journal import Price, prices_of
from gateway.stats import dicts
from gateway.tally import Statistics, Tally
from gateway.trace import (
    MOONCAKE_BLOCK_TOKENS,
    JournalTrace,
    PromptTrace,
    Recorded,
    StoredLine,
    Trace,
    TraceError,
)
from gateway.whatif import Replayed, Responses
from gateway.whatif_blocks import UNBOUNDED, Blocks, KvIndex, Room, scored
from policies.replay import Learned, Lookup, Score, replay, with_foresight
from policies.rules import Rules, TierName, TierRule

DEFAULT_BLOCK_TOKENS: Final = 128.0
"""Of a journal's block where no backend counted tokens."""
TIERS: Final[tuple[TierName, ...]] = ("hot", "warm", "cold")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is varied: the rules of the response store, the prices, the room for KV."""

    name: str
    rules: Rules
    prices: Mapping[str, Price]
    room: Room

    def with_tiers(self, name: str, changed: Mapping[TierName, TierRule]) -> "Setting":
        """The same with other tiers."""
        tiers = {**self.rules.tiers, **changed}
        return replace(self, name=name, rules=replace(self.rules, tiers=tiers))


@dataclass(frozen=True, slots=True)
class Answers:
    """The response store's part. ``found``, ``optimum`` and ``unbounded`` count look-ups alike."""

    replayed: Replayed
    found: Score
    optimum: Score
    unbounded: Score


@dataclass(frozen=True, slots=True)
class Run:
    """What a trace would have been under a setting."""

    setting: Setting
    totals: Mapping[str, Any]
    answers: Answers | None
    blocks: Blocks | None

    @property
    def statistics(self) -> Statistics | None:
        """As the gateway counts."""
        return None if self.answers is None else self.answers.replayed.statistics

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; levels and tiers as ``/v1/cache/stats`` has them."""
        shown: dict[str, Any] = {"setting": self.setting.name, **self.totals}
        if self.answers is not None:
            statistics = self.answers.replayed.statistics
            shown["levels"] = dicts(statistics.by("level").items())
            shown["tiers"] = self._tiers(self.answers.replayed)
            shown["store"] = {
                "lookups": self.answers.found.lookups,
                "found": self.answers.found.hits,
                "optimum": self.answers.optimum.hits,
                "unbounded": self.answers.unbounded.hits,
            }
        if self.blocks is not None:
            room = self.setting.room
            shown["kv"] = {
                "memory_bytes": room.memory_bytes,
                "token_bytes": room.token_bytes,
                "block_tokens": round(room.block_tokens, 2),
                **self.blocks.as_dict(),
            }
        return shown

    def _tiers(self, replayed: Replayed) -> dict[str, Any]:
        tallies = replayed.statistics.by("tier")
        return {
            fill.tier: {
                **tallies.get(fill.tier, Tally()).as_dict(),
                "ttl_s": self.setting.rules.tiers[name].ttl_s,
                "entries": fill.entries,
                "size_bytes": fill.size_bytes,
                "peak_bytes": replayed.peak_bytes[fill.tier],
                "max_bytes": fill.max_bytes,
                "evictions": fill.evictions,
            }
            for name, fill in zip(TIERS, replayed.fills, strict=True)
        }


class Runner:
    """Runs a trace under settings; what does not depend on them is worked out once."""

    def __init__(self, trace: Trace, *, token_bytes: int) -> None:
        self.trace = trace
        self.token_bytes = token_bytes
        self.block_tokens = block_tokens_of(trace)
        self._unbounded: Score | None = None
        self._chains = (
            [prompt.blocks for prompt in trace.prompts] if isinstance(trace, PromptTrace) else []
        )

    def recorded_config(self) -> Config:
        """The configuration that ran. Raises: TraceError for what this version cannot read."""
        if isinstance(self.trace, PromptTrace):
            return Config()
        try:
            return Config.model_validate(self.trace.begin.config)
        except ValueError as error:
            first = str(error).splitlines()[1:2]
            where = f" ({first[0].strip()})" if first else ""
            raise TraceError(
                f"this version cannot read the journal's own configuration{where}: give --config"
            ) from None

    def setting(self, name: str, config: Config, *, kv_bytes: int | None = None) -> Setting:
        """What a configuration means for the trace; ``kv_bytes`` in place of its memory for KV."""
        if kv_bytes is None:
            kv_bytes = config.engine.kv_memory * config.engine.replicas
            kv_bytes = kv_bytes if config.engine_enabled() else 0
        return Setting(
            name,
            config.rules(kv_secret=b""),
            prices_of(config),
            self.room(kv_bytes, sum(backend.kv_tokens for backend in config.backends)),
        )

    def as_recorded(self) -> Setting:
        """What ran."""
        setting = self.setting("as recorded", self.recorded_config())
        if isinstance(self.trace, JournalTrace):
            begin = self.trace.begin
            room = self.room(begin.engine_kv_bytes, begin.backend_kv_tokens)
            return replace(setting, room=room)
        return replace(setting, name="the default configuration")

    def room(self, kv_bytes: int, more_tokens: int = 0) -> Room:
        """So many bytes of KV, and so many tokens that backends say they hold."""
        tokens = kv_bytes / self.token_bytes + more_tokens
        memory = kv_bytes if not more_tokens else None
        return Room(tokens, memory, self.block_tokens, self.token_bytes)

    def run(self, setting: Setting, *, bounds: bool = True) -> Run:
        """Replay; without ``bounds`` only what serves, and what is measured beside it is nought."""
        if isinstance(self.trace, PromptTrace):
            return self._prompts(self.trace, setting, bounds=bounds)
        return self._journal(self.trace, setting, bounds=bounds)

    def _prompts(self, trace: PromptTrace, setting: Setting, *, bounds: bool) -> Run:
        blocks = self._blocks(self._chains, setting.room.blocks, bounds=bounds)
        size = MOONCAKE_BLOCK_TOKENS
        # A block that is found counts as whole, but for what the last one of a prompt lacks.
        prompts_tokens = sum(prompt.tokens for prompt in trace.prompts)
        saved = min(blocks.ours.hits * size, prompts_tokens)
        price = setting.prices.get("default")
        a_token = 0.0 if price is None else (price.miss_per_mtok - price.hit_per_mtok) / 1e6
        totals = {
            "requests": len(trace.prompts),
            "hit_rate": round(blocks.ours.hit_rate, 6),
            "tokens_saved": saved,
            "prompt_tokens": prompts_tokens,
            "money_saved": round(saved * a_token, 6),
        }
        return Run(setting, totals, None, blocks)

    def _journal(self, trace: JournalTrace, setting: Setting, *, bounds: bool) -> Run:
        kv = KvIndex(setting.room)
        responses = self._responses(trace, setting, kv)
        replayed = responses.run()
        found = _score(responses.asked)
        blocks = self._blocks(kv.chains, setting.room.blocks, bounds=bounds) if kv.chains else None
        totals = replayed.statistics.total.as_dict()
        optimum, unbounded = self._bounds(trace, setting) if bounds else (Score(), Score())
        return Run(setting, totals, Answers(replayed, found, optimum, unbounded), blocks)

    def _bounds(self, trace: JournalTrace, setting: Setting) -> tuple[Score, Score]:
        """The optimum for as many bytes, and no bound."""
        roomy = {
            name: replace(rule, max_bytes=UNBOUNDED) for name, rule in setting.rules.tiers.items()
        }
        without_shares = replace(trace, begin=replace(trace.begin, shares={}))
        boundless = self._responses(
            without_shares, setting.with_tiers("unbounded", roomy), KvIndex(setting.room)
        )
        boundless.run()
        lookups = lookups_of(trace, boundless.asked)
        capacity = sum(rule.max_bytes for rule in setting.rules.tiers.values())
        return with_foresight(lookups, capacity), _score(boundless.asked)

    def _responses(self, trace: JournalTrace, setting: Setting, kv: KvIndex) -> Responses:
        freshness = trace.begin.config.get("freshness") or {}
        return Responses(
            trace,
            setting.rules,
            setting.prices,
            kv,
            recorded_jitter=float(freshness.get("jitter", setting.rules.jitter)),
            recorded_negative_ttl_s=float(
                freshness.get("negative_ttl", setting.rules.negative_ttl_s)
            ),
        )

    def _blocks(self, chains: Sequence[Sequence[int]], capacity: int, *, bounds: bool) -> Blocks:
        if not bounds:
            return Blocks(capacity, replay(Learned(capacity), chains), Score(), Score(), Score())
        found = scored(chains, capacity, unbounded=self._unbounded)
        if isinstance(self.trace, PromptTrace):
            self._unbounded = found.unbounded  # of a journal, a setting decides what is computed
        return found


def lookups_of(trace: JournalTrace, asked: Sequence[tuple[Recorded, bool]]) -> list[Lookup]:
    """Look-ups with the sizes that their answers had."""
    sizes: dict[str, float] = {}
    for event in trace.events:
        if isinstance(event, Recorded | StoredLine) and event.key is not None and event.bytes:
            sizes[event.key] = float(event.bytes + event.beside_bytes)
    return [Lookup(call.key or "", sizes.get(call.key or "", 1.0), good) for call, good in asked]


def block_tokens_of(trace: Trace) -> float:
    """Tokens in a block: Mooncake's 512, or what the journal's backends counted in its bytes."""
    if isinstance(trace, PromptTrace):
        return float(MOONCAKE_BLOCK_TOKENS)
    counted = [
        (one.prompt_tokens, one.bytes_sent)
        for one in trace.events
        if isinstance(one, Recorded) and one.prompt_tokens and one.bytes_sent
    ]
    sent = sum(size for _, size in counted)
    if not sent:
        return DEFAULT_BLOCK_TOKENS
    return max(1.0, trace.begin.block_bytes * sum(tokens for tokens, _ in counted) / sent)


def _score(asked: Sequence[tuple[Recorded, bool]]) -> Score:
    return Score(lookups=len(asked), hits=sum(good for _, good in asked))
