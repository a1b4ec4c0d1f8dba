"""A run is a trace under a setting, and what is measured beside it."""

from typing import Any

import pytest

from gateway.config import Config
from gateway.trace import Prompt, PromptTrace, TraceError
from gateway.whatif_run import Runner, block_tokens_of
from tests.kit.journals import asked_and_stored, begun, configured, hashed, hit, missed, trace_of

PROMPTS = PromptTrace(
    [
        Prompt(0.0, 1000, [1, 2]),
        Prompt(1.0, 1500, [1, 2, 3]),
        Prompt(2.0, 600, [4, 5]),
        Prompt(3.0, 1500, [1, 2, 3]),
    ]
)
EVENTS = [
    *asked_and_stored(0.0, "a", blocks=[hashed("x")]),
    *asked_and_stored(10.0, "b", blocks=[hashed("x"), hashed("y")]),
    hit(20.0, "a", stored_at=1.0),
]


def test_prompts_are_replayed_in_blocks_of_512_tokens() -> None:
    runner = Runner(PROMPTS, token_bytes=100)
    setting = runner.setting("s", Config(), kv_bytes=6 * 512 * 100)
    run = runner.run(setting)
    assert run.blocks is not None
    assert (run.blocks.capacity, run.blocks.ours.hits, run.blocks.lru.hits) == (6, 5, 5)
    assert run.totals["tokens_saved"] == 5 * 512
    assert run.totals["money_saved"] == pytest.approx(5 * 512 * (0.28 - 0.028) / 1e6, abs=1e-6)
    assert run.statistics is None
    shown = run.as_dict()
    assert (shown["requests"], shown["kv"]["memory_bytes"]) == (4, 307_200)
    assert "levels" not in shown
    again = runner.run(setting)
    assert again.blocks is not None
    assert again.blocks.unbounded is run.blocks.unbounded, "the same for every setting"


def test_no_more_is_saved_than_was_asked() -> None:
    short = PromptTrace([Prompt(0.0, 10, [1]), Prompt(1.0, 10, [1])])
    runner = Runner(short, token_bytes=1)
    assert runner.run(runner.as_recorded()).totals["tokens_saved"] == 20
    unpriced = runner.setting("s", configured(prices={"default": None}))
    assert runner.run(unpriced).totals["money_saved"] == 0.0


def test_a_journal_has_levels_tiers_bounds_and_blocks() -> None:
    runner = Runner(trace_of(EVENTS), token_bytes=100)
    run = runner.run(runner.as_recorded())
    assert run.answers is not None
    assert (run.answers.found.lookups, run.answers.found.hits) == (3, 1)
    assert (run.answers.optimum.hits, run.answers.unbounded.hits) == (1, 1)
    shown = run.as_dict()
    assert shown["setting"] == "as recorded"
    assert shown["levels"]["response"]["hits"] == 1
    assert shown["tiers"]["warm"]["entries"] == 2
    assert shown["store"] == {"lookups": 3, "found": 1, "optimum": 1, "unbounded": 1}
    assert (shown["kv"]["lookups"], shown["kv"]["kvgate"]["hits"]) == (3, 1)


def test_without_bounds_only_what_serves_is_replayed() -> None:
    for trace in (trace_of(EVENTS), PROMPTS):
        runner = Runner(trace, token_bytes=100)
        whole = runner.run(runner.as_recorded())
        quick = runner.run(runner.as_recorded(), bounds=False)
        assert quick.totals == whole.totals
        assert quick.blocks is not None
        assert whole.blocks is not None
        assert quick.blocks.ours == whole.blocks.ours
        assert quick.blocks.optimum.lookups == 0


def test_the_optimum_has_the_bytes_of_all_tiers_and_no_tenants_share() -> None:
    begin = begun(shares={"": 1})
    trace = trace_of(EVENTS, begin)
    runner = Runner(trace, token_bytes=100)
    run = runner.run(runner.as_recorded())
    assert run.answers is not None
    assert (run.answers.found.hits, run.answers.optimum.hits, run.answers.unbounded.hits) == (
        0,
        1,
        1,
    )


def test_a_journal_without_hashes_of_prompts_has_no_blocks() -> None:
    runner = Runner(trace_of([missed(0.0, "a")]), token_bytes=1)
    assert runner.run(runner.as_recorded()).blocks is None


def test_the_backends_say_how_many_tokens_a_block_has() -> None:
    assert block_tokens_of(PROMPTS) == 512
    assert block_tokens_of(trace_of([missed(0.0, "a", prompt_tokens=100, bytes_sent=400)])) == 128
    assert block_tokens_of(trace_of([missed(0.0, "a", prompt_tokens=0)])) == 128
    assert block_tokens_of(trace_of([missed(0.0, "a", prompt_tokens=1, bytes_sent=9999)])) == 1


def test_room_is_what_ran_or_what_a_configuration_says() -> None:
    begin = begun(engine_kv_bytes=64_000)
    begin.backend_kv_tokens = 0
    runner = Runner(trace_of(EVENTS, begin), token_bytes=100)
    assert runner.as_recorded().room.tokens == 640
    assert runner.as_recorded().room.memory_bytes == 64_000
    upstream = runner.setting("s", configured())
    assert (upstream.room.tokens, upstream.room.memory_bytes) == (1_000_000, None)
    engine = Config.model_validate({"engine": {"kv_memory": 1000, "replicas": 2}})
    assert runner.setting("s", engine).room.tokens == 20


@pytest.mark.parametrize("config", [{"tiers": {"hot": {"ttl": "soon"}}}, {"tomorrow": 1}])
def test_a_configuration_of_another_version_is_said_in_one_line(config: Any) -> None:
    begin = begun()
    begin.config = config
    with pytest.raises(TraceError, match="give --config") as raised:
        Runner(trace_of(EVENTS, begin), token_bytes=1).as_recorded()
    assert "\n" not in str(raised.value)
