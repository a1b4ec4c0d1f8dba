"""Engines' figures as metrics: units turned, tiers and drafts apart, unknown things left out."""

from typing import Any

from prometheus_client.core import Metric

from gateway.engine_metrics import engine_families
from tests.kit.kv_stats import KV_STATS


def samples(said: Any) -> dict[tuple[str, ...], float]:
    found = {}
    for family in engine_families(said):
        assert isinstance(family, Metric)
        for sample in family.samples:
            labels = tuple(value for key, value in sample.labels.items() if key != "backend")
            found[(sample.name, *labels)] = sample.value
    return found


def test_what_an_engine_says_is_passed_on() -> None:
    found = samples({"eng": {"kv": KV_STATS}})
    kinds = {
        ("kvgate_engine_kv_blocks",): 100,
        ("kvgate_engine_kv_used_bytes",): 750_000,
        ("kvgate_engine_prompt_tokens_total", "hit"): 640,
        ("kvgate_engine_prompt_tokens_total", "miss"): 360,
        ("kvgate_engine_evicted_blocks_total",): 9,
        ("kvgate_engine_evictions_total", "quota"): 3,
        ("kvgate_engine_broken_pins_total",): 1,
        ("kvgate_engine_missed_prompts_total", "diverged"): 2,
        ("kvgate_engine_prefill_tokens_per_second",): 1500.5,
        ("kvgate_engine_verified_prompts_total", "mismatched"): 1,
        ("kvgate_engine_sequences", "waiting"): 1,
        ("kvgate_engine_steps_total",): 120,
        ("kvgate_engine_first_token_seconds_sum",): 0.8,
        ("kvgate_engine_first_token_seconds_count",): 4,
        ("kvgate_engine_inter_token_seconds_sum",): 0.92,
        ("kvgate_engine_tier_bytes", "hot"): 6000,
        ("kvgate_engine_tier_hits_total", "warm"): 7,
        ("kvgate_engine_drafted_tokens_total", "prompt"): 30,
        ("kvgate_engine_accepted_tokens_total", "answers"): 9,
    }
    assert found.items() >= kinds.items()
    assert not any(name[-1] == "cold" for name in found)
    assert [name for name in found if name[0] == "kvgate_engine_info"] == [
        ("kvgate_engine_info", "smollm2-135m-instruct", "cpu", "float32", "float32")
    ]


def test_what_it_does_not_say_has_no_series() -> None:
    lean: Any = {"model": "m", "blocks": {"total": 5, "free": None}, "steps": "many", "tiers": 3}
    found = samples({"eng": {"kv": lean}, "up": {"kv": None}, "down": {"error": "gone"}})
    assert found == {("kvgate_engine_info", "m"): 1, ("kvgate_engine_kv_blocks",): 5}
    assert samples({"up": {"kv": None}}) == {}


def test_each_engine_has_its_own_series() -> None:
    names = {
        sample.labels["backend"]
        for family in engine_families({"one": {"kv": KV_STATS}, "two": {"kv": KV_STATS}})
        for sample in family.samples
    }
    assert names == {"one", "two"}
