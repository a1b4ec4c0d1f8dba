"""The command line of the comparison, and its picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.compare import parts_of, read
from loadtest.compare_plot import bars, draw
from loadtest.comparison import Part, Row, merged

ROWS = [
    Row("hits", "req/s", "higher", {"floor": [40.0], "LiteLLM": [2.0], "kvgate": [20.0]}),
    Row("alone", "ms", "lower", {"kvgate": [1.0]}),
]


def results(rows: list[Row]) -> dict[str, Any]:
    facts = {"command": "c", "at": "2026-11-26", "machine": {"cpu": "CPU", "cores": 2}}
    return merged({}, {"gateway": Part(facts, {"kvgate": "0.1.0"}, rows)})


def test_parts_are_named_by_commas() -> None:
    assert parts_of("gateway, engine") == ["gateway", "engine"]
    assert parts_of("engine") == ["engine"]


@pytest.mark.parametrize(("said", "why"), [("", "no part"), ("gateway,moon", "'moon'")])
def test_an_unknown_part_is_told(said: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        parts_of(said)


def test_earlier_results_are_read(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(results(ROWS)))
    assert read(path) == json.loads(path.read_text())


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"parts": 3}'])
def test_what_are_no_results_is_told(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "compare.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match="no results of loadtest"):
        read(path)


def test_bars_are_the_ratios_to_those_who_have_one() -> None:
    (part,) = results(ROWS)["parts"].values()
    assert bars(part) == {"hits": {"floor": 0.5, "LiteLLM": 10.0}}


def test_the_picture_is_small(tmp_path: Path) -> None:
    path = tmp_path / "compare.png"
    assert draw(results(ROWS), path) == "compare.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 150_000


def test_without_peers_or_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nobody" in draw(results(ROWS[1:]), tmp_path / "no.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "not installed" in draw(results(ROWS), tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()
