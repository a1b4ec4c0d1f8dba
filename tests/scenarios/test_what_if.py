"""A gateway writes a journal under traffic; its replay says what the gateway counted, to the call.

And a what-if is true: the replay under another configuration says what a gateway that runs under that
configuration counts for the same traffic.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.config import Config
from gateway.journal_file import JournalFile
from gateway.trace import JournalTrace, Recorded, read
from gateway.whatif_run import Run, Runner
from tests.kit.clock import Clock
from tests.kit.scripted_upstream import (
    ScriptedUpstream,
    Seen,
    chat_body,
    error_reply,
    json_reply,
    well_behaved,
)
from tests.kit.service import Service, serving

SMALL: dict[str, Any] = {
    "hot": {"max_bytes": 24_000},
    "warm": {"max_bytes": 16_000, "ttl": 100, "stale_while_revalidate": 20},
    "cold": {"max_bytes": 40_000, "store": "memory"},
}
COUNTED = ("requests", "hits", "hit_rate", "tokens_saved", "money_saved")


class Upstream(ScriptedUpstream):
    """Answers of different lengths, some with reused tokens; questions for nothing are refused."""

    def __init__(self) -> None:
        super().__init__()
        self.otherwise = self._answer
        self.clock: Clock | None = None  # computing takes time on it

    def _answer(self, seen: Seen) -> Any:
        if seen.method != "POST" or seen.path.endswith("/embeddings") or seen.body.get("stream"):
            return well_behaved(seen)
        text = seen.body["messages"][-1]["content"]
        if text.startswith("nothing"):
            return error_reply(404)
        number = int(text.split()[1])
        if self.clock is not None:
            self.clock.advance(1e-6 * (1 + number % 5))
        body = chat_body(seen.body, ["word "] * (1 + number % 7 * 40))
        hits = 16 * (number % 3)
        body["usage"] = {
            "prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55,
            "prompt_tokens_details": {"cached_tokens": hits},
        }  # fmt: skip
        return json_reply(body)


async def traffic(service: Service, dice: random.Random, *, everything: bool) -> None:
    """Users of every kind, time that goes on, people who clear, and a crowd with one question."""
    for number in range(250):
        question = f"question {int(dice.paretovariate(0.7)) % 60}"
        messages: Any = [{"role": "user", "content": question}]
        wish: dict[str, Any] = {"enabled": True}
        match dice.randrange(12):
            case 0:
                wish |= {"tier": "hot"}
            case 1:
                wish |= {"prompt_type": "faq", "cache_key": f"faq:{question}"}
            case 2:
                wish |= {"tier": "cold", "priority": dice.choice(["high", "low"])}
            case 3:
                wish |= {"ttl": 30, "tags": ["a tag"]}
            case 4:
                wish |= {"reuse": False}
            case 5:
                wish = {"enabled": False}
            case 6 if everything:
                messages[0]["content"] = f"nothing {number % 3}"
            case _:
                pass
        for turn in range(dice.choice([0, 0, 0, 1, 2, 3])):  # a conversation that goes on
            answer = {"role": "assistant", "content": "an answer"}
            messages = [*messages, answer, {"role": "user", "content": f"question {turn}"}]
        await service.chat(wish, messages=messages, stream=everything and dice.random() < 0.2)
        await service.settled()
        if number % 40 == 0:
            texts = ["a", f"b{number}"] if everything else "a"
            body = {"model": "m", "input": texts, "kv_cache": True}
            await service.send("POST", "/v1/embeddings", body)
            crowd = [{"role": "user", "content": f"question {number}"}]
            await asyncio.gather(*(service.chat(True, messages=crowd) for _ in range(8)))
        if everything and number % 60 == 59:
            await service.send("POST", "/v1/cache/invalidate", {"prefix": "faq:"})
        service.clock.advance(dice.choice([0.0, 0.53, 3.1, 25.7]))
        await service.settled()


async def counted(
    path: Path | None, tiers: Any = None, *, everything: bool = True
) -> dict[str, Any]:
    """Traffic through a gateway; what it counted in the end."""
    config: dict[str, Any] = {} if path is None else {"journal": {"path": str(path)}}
    if tiers is not None:
        config["tiers"] = tiers
    upstream = Upstream()
    async with serving(upstream=upstream, draw=0.25, scripted_durations=True, **config) as service:
        upstream.clock = service.clock
        await traffic(service, random.Random(7), everything=everything)
        answer = await service.send("GET", "/v1/cache/stats")
        stats: dict[str, Any] = answer.body
    return stats


def replayed(path: Path, config: Config | None = None) -> Run:
    runner = Runner(read([path]), token_bytes=1000)
    setting = runner.as_recorded() if config is None else runner.setting("other", config)
    return runner.run(setting)


async def test_the_replay_of_what_ran_is_what_the_gateway_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    stats = await counted(path, SMALL)
    run = replayed(path).as_dict()
    assert stats["hits"] > 50
    assert sum(tier["evictions"] for tier in stats["tiers"].values()) > 20
    assert {name: run[name] for name in COUNTED} == {name: stats[name] for name in COUNTED}
    for level, tally in stats["levels"].items():
        assert {name: run["levels"][level][name] for name in COUNTED} == {
            name: tally[name] for name in COUNTED
        }, level
    for tier, tally in stats["tiers"].items():
        for name in (*COUNTED, "entries", "size_bytes"):
            assert run["tiers"][tier][name] == tally[name], (tier, name)
        # The gateway drops an expired vector when a list asks for it; a journal does not name those.
        assert run["tiers"][tier]["evictions"] == pytest.approx(tally["evictions"], abs=2)
    assert run["seconds_saved"] == pytest.approx(stats["seconds_saved"], abs=1e-4)
    assert stats["journal"]["lost"] == 0


async def test_a_replay_under_another_configuration_is_what_that_one_counts(tmp_path: Path) -> None:
    other = {
        "hot": {"max_bytes": 6_000},
        "warm": {"max_bytes": 60_000, "ttl": 400},
        "cold": {"max_bytes": 20_000, "store": "memory", "ttl": 20},
    }
    path = tmp_path / "journal.jsonl"
    # Without what a replay cannot know: the scripted answer as a stream has another size; lists of embeddings are taken as they were, a refusal that is
    # not remembered has no line, and what a removal by name would have met is known by name only.
    before = await counted(path, SMALL, everything=False)
    truth = await counted(None, other, everything=False)
    backend = {"name": "up", "base_url": "http://127.0.0.1:1", "models": ["m"]}
    run = replayed(path, Config.model_validate({"backends": [backend], "tiers": other})).as_dict()
    assert truth["levels"]["response"]["hits"] != before["levels"]["response"]["hits"]
    assert run["levels"]["response"]["hits"] == truth["levels"]["response"]["hits"]
    for tier, tally in truth["tiers"].items():
        assert run["tiers"][tier]["evictions"] == tally["evictions"], tier


async def test_a_journal_that_begins_in_the_middle_knows_what_was_there(tmp_path: Path) -> None:
    path, late = tmp_path / "journal.jsonl", tmp_path / "late.jsonl"
    await counted(path)  # room for all: what was there is still there
    whole = read([path])
    assert isinstance(whole, JournalTrace)
    lines = path.read_bytes().splitlines(keepends=True)
    late.write_bytes(lines[0] + b"".join(lines[len(lines) // 2 :]))
    rest = read([late])
    assert isinstance(rest, JournalTrace)
    runner = Runner(rest, token_bytes=1000)
    run = runner.run(runner.as_recorded())
    assert run.answers is not None
    assert run.answers.replayed.there_before > 3
    calls = [event for event in rest.events if isinstance(event, Recorded)]
    hits = sum(call.hit for call in calls)
    assert run.totals["hits"] == pytest.approx(hits, abs=2)


async def test_nothing_that_was_said_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    await counted(path)
    text = path.read_text()
    for word in ("question", "nothing", "word ", "a tag", "sk-operator", "127.0.0.1"):
        assert word not in text
    kinds = {orjson.loads(line)["kind"] for line in text.splitlines()}
    assert kinds == {"begin", "call", "stored", "cleared"}


async def test_a_line_that_waits_for_the_disk_weighs_what_its_request_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[int] = []

    def put(_: JournalFile, make: object, size_bytes: int = 0) -> None:
        weights.append(size_bytes)

    monkeypatch.setattr(JournalFile, "_put", put)
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 999}]})
    async with serving(journal={"path": str(tmp_path / "j")}) as service:
        assert (await service.send("POST", "/v1/chat/completions", body)).status == 200
        await service.settled()
    assert weights == [len(body)]
