"""The journal's file is where the configuration says, one for each worker, with one key."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from gateway.analytics import Conversations
from gateway.config import Config
from gateway.journal import Journal
from gateway.journal_open import open_journal, path_of
from gateway.request_log import Visit
from policies.outcome import Outcome
from tests.kit.clock import Clock
from tests.kit.entries import NOW, asked, meta_of


class Served:
    """A router that knows one model."""

    def models(self) -> list[str]:
        return ["served"]


def opened(path: Path | None, *, worker: int | None = None) -> Journal:
    clock = Clock()
    backend = {"name": "up", "base_url": "http://127.0.0.1:1", "models": ["m"]}
    section = {} if path is None else {"path": str(path)}
    config = Config.model_validate({"backends": [backend], "journal": section})
    router: Any = Served()
    team: Any = None if worker is None else SimpleNamespace(number=worker)
    return open_journal(
        config,
        Conversations(clock.now),
        io.StringIO(),
        router,
        team,
        now=clock.now,
    )


def note(journal: Journal, model: str = "served") -> None:
    asyncio.run(noted(journal, model))


async def noted(journal: Journal, model: str) -> None:
    call, plan = asked(model=model)
    outcome = Outcome(key="k", tier="warm", backend="up")
    journal.note(Visit("r", "chat", 0.0, call, plan, outcome, asked_at=NOW))
    journal.stored(meta_of(model=model))
    journal.cleared([meta_of()])
    await journal.close()


def test_every_kind_of_line_is_written_and_counted(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j.jsonl")
    note(journal)
    note(journal, "a name that a client made up")
    lines = [orjson.loads(line) for line in (tmp_path / "j.jsonl").read_bytes().splitlines()]
    kinds = [line["kind"] for line in lines if line["kind"] != "begin"]
    assert sorted(kinds) == ["call", "call", "cleared", "cleared", "stored", "stored"]
    models = {line["model"] for line in lines if line["kind"] == "call"}
    assert "served" in models
    assert not any("client" in model for model in models)
    journal.settle()
    assert (journal.statistics.journal_lines, journal.statistics.journal_lost) == (6, 0)
    again = type(journal.statistics).of(journal.statistics.as_dict())
    again.merge(journal.statistics)
    assert (again.journal_lines, again.journal_lost) == (12, 0)


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = opened(None)
    note(journal)
    assert list(tmp_path.iterdir()) == []


def test_workers_have_a_file_each_and_one_key(tmp_path: Path) -> None:
    for worker in (1, 2):
        note(opened(tmp_path / "j.jsonl", worker=worker))
    assert {file.name for file in tmp_path.iterdir()} == {"j-1.jsonl", "j-2.jsonl", "j.jsonl.key"}
    keys = [
        {orjson.loads(line).get("key") for line in file.read_bytes().splitlines()} - {None}
        for file in tmp_path.glob("*.jsonl")
    ]
    assert keys[0] == keys[1]
    assert path_of(Path("j"), 3) == Path("j-3")
