"""What engines say of themselves (``GET /kv/stats``), as metrics: a row of a table each.

What an engine does not say is left out, and so is what is no number; what it says beyond the table is
not passed on, so that the series never depend on its version. The only labels are the backend's name
and the closed sets of the table.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)

from gateway.backends.figures import Figures

EngineFamily = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily | SummaryMetricFamily
TIERS: Final = ("hot", "warm", "cold")
CAUSES: Final = ("capacity", "superseded", "ttl", "quota")
REASONS: Final = (
    "never_seen", "diverged", "below_one_block", "evicted", "expired", "invalidated", "other_salt",
    "declined", "reuse_off",
)  # fmt: skip
FACTS: Final = ("model", "device", "dtype", "kv_dtype", "mla")


class Row(NamedTuple):
    """A metric and the places in the engine's JSON (dotted), each with the value of ``label``."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    places: Mapping[str, str]
    label: str | None = None


def _one(place: str) -> Mapping[str, str]:
    return {"": place}


def _of_tiers(name: str) -> Mapping[str, str]:
    return {tier: f"tiers.{tier}.{name}" for tier in TIERS}


ROWS: Final = (
    Row("kv_blocks", "KV blocks there are.", "gauge", _one("blocks.total")),
    Row("kv_free_blocks", "KV blocks that hold nothing.", "gauge", _one("blocks.free")),
    Row("kv_cached_blocks", "KV blocks that a prompt can find.", "gauge", _one("blocks.cached")),
    Row(
        "kv_idle_blocks", "KV blocks that can be evicted at once.", "gauge", _one("blocks.idle")
    ),
    Row("kv_pinned_blocks", "KV blocks that may not be evicted.", "gauge", _one("blocks.pinned")),
    Row("kv_used_bytes", "Memory of KV blocks that hold something.", "gauge", _one("kv_used_bytes")),
    Row("kv_limit_bytes", "Memory for KV blocks, taken at the start.", "gauge", _one("kv_bytes")),
    Row(
        "prompt_tokens", "Tokens of prompts, by whether their KV was found.", "counter",
        {"hit": "tokens.hit", "miss": "tokens.miss"}, "kind",
    ),
    Row("generated_tokens", "Tokens of answers.", "counter", _one("tokens.generated")),
    Row("evicted_blocks", "KV blocks evicted to make room.", "counter", _one("evictions")),
    Row(
        "evictions", "KV blocks evicted, by what for.", "counter",
        {cause: f"evicted_by.{cause}" for cause in CAUSES}, "cause",
    ),
    Row("broken_pins", "KV blocks evicted though pinned.", "counter", _one("broken_pins")),
    Row(
        "missed_prompts", "Prompts not wholly found, by why.", "counter",
        {reason: f"missed.{reason}" for reason in REASONS}, "reason",
    ),
    Row(
        "prefill_tokens_per_second", "Speed of prompts lately.", "gauge",
        _one("prefill_tokens_per_s"),
    ),
    Row(
        "verified_prompts", "Prompts computed with and without reuse, by whether both agreed.",
        "counter", {"all": "verify.verified", "mismatched": "verify.mismatched"}, "kind",
    ),
    Row("invalidated_blocks", "KV blocks cleared.", "counter", _one("invalidated_blocks")),
    Row(
        "sequences", "Requests that are computed, and that wait for it.", "gauge",
        {"running": "sequences.running", "waiting": "sequences.waiting"}, "state",
    ),
    Row("finished_sequences", "Requests that ended.", "counter", _one("sequences.finished")),
    Row("preemptions", "Requests set back for want of room.", "counter", _one("sequences.preempted")),
    Row("steps", "Forward passes.", "counter", _one("steps")),
    Row("failed_steps", "Forward passes that failed.", "counter", _one("failed_steps")),
    Row("tier_blocks", "KV blocks by tier.", "gauge", _of_tiers("blocks"), "tier"),
    Row("tier_bytes", "Bytes of KV by tier.", "gauge", _of_tiers("bytes"), "tier"),
    Row("tier_limit_bytes", "Room for KV by tier.", "gauge", _of_tiers("max_bytes"), "tier"),
    Row("tier_evictions", "KV blocks evicted, by tier.", "counter", _of_tiers("evictions"), "tier"),
    Row("tier_hits", "KV blocks looked for and found, by tier.", "counter", _of_tiers("hits"), "tier"),
    Row("tier_misses", "KV blocks looked for and not found, by tier.", "counter", _of_tiers("misses"), "tier"),
    Row("tier_declined", "KV blocks found and computed all the same, by tier.", "counter", _of_tiers("declined"), "tier"),
    Row("tier_reads", "KV blocks read back, by tier.", "counter", _of_tiers("reads"), "tier"),
    Row("tier_writes", "KV blocks written, by tier.", "counter", _of_tiers("writes"), "tier"),
)  # fmt: skip
WAITS: Final = {
    "first_token": "Time from taking a request in to its first token.",
    "inter_token": "Time from one token of an answer to the next.",
}
SPECULATION: Final = {"drafted": "Tokens guessed.", "accepted": "Tokens guessed right."}
SOURCES: Final = ("prompt", "answers")
"""Where guesses come from: the sequence's own tokens, or earlier answers."""


def engine_families(said: Figures) -> Iterator[EngineFamily]:
    """The metrics of all engines. A backend that has no figures of that kind has no series."""
    engines = {name: one["kv"] for name, one in said.items() if isinstance(one.get("kv"), Mapping)}
    if not engines:
        return
    info = InfoMetricFamily("kvgate_engine", "What an engine runs.", labels=("backend",))
    for name, stats in engines.items():
        facts = {fact: str(stats[fact]) for fact in FACTS if stats.get(fact) is not None}
        info.add_metric((name,), facts)
    yield info
    for row in ROWS:
        yield from _filled(row, engines)
    for wait, text in WAITS.items():
        yield from _summary(wait, text, engines)
    yield from _drafts(engines)


def _filled(row: Row, engines: Mapping[str, Any]) -> Iterator[EngineFamily]:
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    labels = ("backend",) if row.label is None else ("backend", row.label)
    family = kind(f"kvgate_engine_{row.name}", row.help, labels=labels)
    for name, stats in engines.items():
        for value, place in row.places.items():
            number = _number(stats, place)
            if number is not None:
                family.add_metric((name,) if row.label is None else (name, value), number)
    if family.samples:
        yield family


def _summary(wait: str, text: str, engines: Mapping[str, Any]) -> Iterator[EngineFamily]:
    family = SummaryMetricFamily(f"kvgate_engine_{wait}_seconds", text, labels=("backend",))
    for name, stats in engines.items():
        count = _number(stats, f"latency.{wait}.count")
        total_ms = _number(stats, f"latency.{wait}.total_ms")
        if count is not None and total_ms is not None:
            family.add_metric((name,), count_value=int(count), sum_value=total_ms / 1000)
    if family.samples:
        yield family


def _drafts(engines: Mapping[str, Any]) -> Iterator[EngineFamily]:
    for kind, text in SPECULATION.items():
        places = {source: f"speculation.{source}.{kind}" for source in SOURCES}
        yield from _filled(Row(f"{kind}_tokens", text, "counter", places, "source"), engines)


def _number(stats: Any, place: str) -> float | None:
    for step in place.split("."):
        if not isinstance(stats, Mapping):
            return None
        stats = stats.get(step)
    return float(stats) if isinstance(stats, int | float) and not isinstance(stats, bool) else None
