"""A sweep varies one size and nothing else."""

import pytest

from gateway.trace import Prompt, PromptTrace
from gateway.whatif_run import Runner
from gateway.whatif_sweep import (
    MEANING,
    Sweep,
    SweepError,
    as_dict,
    parse_sweep,
    shares,
    swept,
    varied,
)
from tests.kit.journals import asked_and_stored, hit, trace_of

PROMPTS = PromptTrace([Prompt(float(n), 512, [n % 5]) for n in range(50)])


def journal() -> Runner:
    events = [event for n, name in enumerate("abcd") for event in asked_and_stored(n * 9.0, name)]
    return Runner(trace_of([*events, *(hit(99.0, name) for name in "abcd")]), token_bytes=100)


def test_values_are_sizes_in_ascending_order() -> None:
    assert parse_sweep("memory=2GiB, 1GiB,") == Sweep("memory", ["1GiB", "2GiB"], [2**30, 2**31])
    assert parse_sweep("blocks=3000,1000").values == [1000, 3000]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory", "NAME=VALUE"),
        ("disk=1GiB", "one of memory, blocks"),
        ("memory=", "needs values"),
        ("memory=lots", "lots: must be a number of bytes"),
        ("blocks=1GiB", "1GiB"),
        ("hot=0", "more than nothing"),
        ("blocks=-1", "more than nothing"),
    ],
)
def test_what_is_no_sweep_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(SweepError, match=said) as raised:
        parse_sweep(text)
    assert "\n" not in str(raised.value)


def test_more_blocks_find_more() -> None:
    runner = Runner(PROMPTS, token_bytes=2)
    sweep = parse_sweep("blocks=1,3,5")
    points = swept(runner, runner.as_recorded(), sweep)
    assert [point.run.blocks.capacity for point in points if point.run.blocks] == [1, 3, 5]
    assert [point.shares["lru"] for point in points] == [0.0, 0.0, 0.9]
    assert points[1].shares["optimum"] > points[1].shares["lru"]
    by_memory = swept(runner, runner.as_recorded(), parse_sweep("memory=5KiB"))
    assert by_memory[0].shares == points[2].shares
    shown = as_dict(sweep, points)
    assert (shown["varied"], [point["value"] for point in shown["points"]]) == ("blocks", [1, 3, 5])
    assert shown["points"][2]["shares"]["kvgate"] == 0.9


def test_a_tier_is_varied_alone_or_all_together() -> None:
    runner = journal()
    base = runner.as_recorded()
    setting = varied(runner, base, "hot", 5000, "5000")
    tiers = {name: rule.max_bytes for name, rule in base.rules.tiers.items()}
    assert {name: rule.max_bytes for name, rule in setting.rules.tiers.items()} == {
        **tiers,
        "hot": 5000,
    }
    together = varied(runner, base, "responses", 1800, "1800").rules.tiers
    assert [together[name].max_bytes for name in ("hot", "warm", "cold")] == [100, 100, 1600]
    assert set(MEANING) == {"memory", "blocks", "hot", "warm", "cold", "responses"}


def test_a_larger_tier_finds_more() -> None:
    runner = journal()
    tiny = runner.as_recorded()
    cold = {**tiny.rules.tiers}["cold"]
    base = tiny.with_tiers("no cold", {"cold": type(cold)("cold", 1.0, "low", 0)})
    points = swept(runner, base, parse_sweep("warm=2KiB,4KiB,8KiB"))
    found = [point.shares["kvgate"] for point in points]
    assert found == sorted(found)
    assert found[0] < found[-1] == points[-1].shares["unbounded"]
    assert points[0].shares["optimum"] >= found[0]


def test_shares_of_what_a_trace_does_not_have_are_none() -> None:
    prompts = Runner(PROMPTS, token_bytes=2)
    assert shares(prompts.run(prompts.as_recorded()), of_kv=False) == {}
    runner = journal()
    assert shares(runner.run(runner.as_recorded()), of_kv=True) == {}
