"""Curves show each order at each point, in the terminal and in a file."""

from pathlib import Path

import pytest

from gateway.cli_remote import CannotAskError
from gateway.cli_replay_curve import BESIDE, in_terminal, to_file
from gateway.trace import Prompt, PromptTrace
from gateway.whatif_run import Runner
from gateway.whatif_sweep import Point, Sweep, parse_sweep, swept

RUNNER = Runner(PromptTrace([Prompt(float(n), 512, [n % 5]) for n in range(60)]), token_bytes=1)


def points_of(text: str) -> tuple[Sweep, list[Point]]:
    sweep = parse_sweep(text)
    return sweep, swept(RUNNER, RUNNER.as_recorded(), sweep)


def test_every_order_has_its_mark_and_every_value_its_label() -> None:
    lines = in_terminal(*points_of("blocks=1,2,5")).splitlines()
    canvas, ticks, legend = "\n".join(lines[:-2]), lines[-2], lines[-1]
    assert ticks.split() == ["1", "2", "5"]
    assert ticks.index("1") == BESIDE
    assert legend.strip() == "k kvgate  l lru  o optimum  u unbounded; blocks of KV cache"
    assert {"k", "l", "o", "u"} & set(canvas) >= {"u"}
    assert "\x1b" not in canvas


def test_labels_that_would_touch_are_left_out() -> None:
    values = ",".join(str(10**9 + number) for number in range(12))
    ticks = in_terminal(*points_of(f"blocks={values}")).splitlines()[-2]
    assert 2 <= len(ticks.split()) < 12
    assert "1000000000" in ticks


def test_a_single_point_is_no_curve() -> None:
    assert in_terminal(*points_of("blocks=3")) == ""
    assert in_terminal(*points_of("hot=1MiB,2MiB")) == "", "prompts know of no stored answers"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_is_drawn(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"curve.{ending}"
    to_file(path, *points_of("blocks=1,2,5"))
    assert path.stat().st_size > 1000


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotAskError, match=r"must end in \.png"):
        to_file(tmp_path / "curve", *points_of("blocks=1"))
