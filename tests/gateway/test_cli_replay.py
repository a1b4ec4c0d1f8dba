"""``kvgate replay``: for people in tables, for programs as JSON, errors in one line with their code."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway import cli
from tests.kit.journals import asked_and_stored, begun, configured, hashed, hit, write

PROMPTS = [[0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [5], [0, 1, 3, 6]] * 4


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["replay", *map(str, words)])


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    events = [
        *asked_and_stored(0.0, "a", blocks=[hashed("x")]),
        *asked_and_stored(10.0, "b", blocks=[hashed("x"), hashed("y")]),
        hit(20.0, "a", stored_at=1.0),
        hit(2500.0, "b", stored_at=11.0),
    ]
    return write(tmp_path / "journal.jsonl", events)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl.gz"
    lines = [
        json.dumps({"timestamp": 1000 * n, "input_length": 512 * len(chain), "hash_ids": chain})
        for n, chain in enumerate(PROMPTS)
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def config(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    backend = "backends: [{name: up, base_url: 'http://127.0.0.1:9', models: [m]}]\n"
    path.write_text(backend + text)
    return path


def told(*words: object) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_journal_is_told_in_tables(journal: Path) -> None:
    done = run(journal)
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert text.startswith("journal.jsonl: kvgate journal, 4 calls, 3 blocks of prompts")
    for words in ("as recorded", "response", "stored answers", "KV blocks", "optimum", "LRU"):
        assert words in text
    assert "a block of KV is" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


def test_a_journal_is_told_as_json(journal: Path) -> None:
    report = told(journal)
    (only,) = report["runs"]
    assert (only["requests"], only["hits"], only["setting"]) == (4, 1, "as recorded")
    assert report["trace"] == {
        "files": ["journal.jsonl"], "format": "kvgate journal", "calls": 4, "blocks": 3,
        "several_configs": False, "hours": 0.694,
    }  # fmt: skip
    assert report["sweeps"] == []
    assert "recommendations" not in report


def test_two_configurations_stand_beside_each_other(journal: Path, tmp_path: Path) -> None:
    one = config(tmp_path, "one.yaml", "tiers: {warm: {ttl: 5}}\n")
    other = config(tmp_path, "other.yaml", "tiers: {warm: {ttl: 3000}}\n")
    report = told(journal, "--config", one, "--compare", other)
    assert [(run["setting"], run["hits"]) for run in report["runs"]] == [
        ("one.yaml", 0), ("other.yaml", 2),
    ]  # fmt: skip
    text = run(journal, "--config", one, "--compare", other).stdout
    assert "difference" in text
    assert "+50.0%" in text
    beside = told(journal, "--compare", other)
    assert [run["setting"] for run in beside["runs"]] == ["as recorded", "other.yaml"]


def test_prompts_are_swept_and_drawn(prompts: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / "curve.png", tmp_path / "curve.svg"]
    for picture in pictures:
        words = ("--sweep", "blocks=2,4,8", "--kv-token-bytes", 10, "--plot", picture)
        done = run(prompts, *words)
        assert done.exit_code == 0, done.output
        for said in ("mooncake, 24 calls", "without bound", "k kvgate  l lru  o optimum"):
            assert said in done.stdout
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in pictures[1].read_bytes()
    report = told(prompts, "--sweep", "memory=10KiB,20KiB", "--kv-token-bytes", 10)
    assert report["runs"][0]["setting"] == "the default configuration"
    points = report["sweeps"][0]["points"]
    assert [point["kv"]["capacity_blocks"] for point in points] == [2, 4]
    assert points[0]["shares"]["kvgate"] < points[1]["shares"]["optimum"]


def test_recommendations_are_told(journal: Path) -> None:
    report = told(journal, "--recommend")
    options = {one["option"]: one for one in report["recommendations"]}
    ttl = options["tiers.warm.ttl"]
    assert (ttl["now"], ttl["proposed"], ttl["gain"]["hits"]) == (1800.0, 3600.0, 1)
    text = run(journal, "--recommend").stdout
    assert "tiers.warm.ttl" in text
    assert "3600 s" in text


def test_what_was_there_and_what_changed_is_said(tmp_path: Path) -> None:
    before = begun(configured(freshness={"jitter": 0.3}))
    events = [hit(10.0, "a", stored_at=1.0)]
    write(tmp_path / "j.1", [hit(10.0, "a", stored_at=1.0)], before)
    later = begun()
    later.at = 5.0
    text = run(write(tmp_path / "j", events, later)).stdout
    assert "1 answers were there when the journal begins" in text
    assert "the configuration changed within the journal" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.jsonl"], 1, "nowhere.jsonl: No such file"),
        (["{journal}", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["{journal}", "--sweep", "hot"], 2, "NAME=VALUE"),
        (["{journal}", "--plot", "x.png"], 2, "give --sweep"),
        (["{journal}", "--sweep", "hot=1MiB", "--plot", "x.gif"], 2, "must end in .png"),
        (["{journal}", "--sweep", "hot=1MiB", "--plot", "nowhere/x.png"], 2, "No such file"),
    ],
)
def test_what_goes_wrong_is_one_line(
    words: list[str], code: int, said: str, journal: Path, tmp_path: Path
) -> None:
    done = run(*(word.replace("{journal}", str(journal)) for word in words))
    assert (done.exit_code, done.stderr.count("\n")) == (code, 1), done.output
    assert done.stderr.startswith("kvgate: ")
    assert said in done.stderr
    assert done.stdout == ""


def test_a_configuration_that_is_wrong_is_named(journal: Path, tmp_path: Path) -> None:
    wrong = config(tmp_path, "wrong.yaml", "tiers: {warm: {ttl: soon}}\n")
    done = run(journal, "--compare", wrong)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "tiers.warm.ttl" in done.stderr


def test_a_curve_without_its_library_says_what_to_install(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = run(journal, "--sweep", "hot=1MiB", "--plot", "x.png")
    assert done.exit_code == 2
    assert 'pip install "kvgate[plot]"' in done.stderr
