"""What became of each call, counted and logged once; nothing of what was said in it."""

import asyncio
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from gateway import journal as module
from gateway import tally
from gateway.analytics import Conversations
from gateway.journal import Journal, Price
from gateway.request_log import RequestLog, Visit
from gateway.tally import MAX_NAME, Purpose
from policies.outcome import Completed, Outcome, Usage
from policies.plan import Plan
from tests.kit.entries import asked

PRICES = {"default": Price(1.0, 0.1, 10.0), "cheap": Price(0.1, 0.01, 1.0)}
HIT = Outcome(
    key="k",
    tier="warm",
    level="response",
    hit=True,
    tokens_saved=1_000_000,
    prompt_tokens=900_000,
    completion_tokens=100_000,
)
MISS = Outcome(key="k", tier="warm", miss_reason="cold", prompt_tokens=9, backend="up")


class Book:
    """A journal and what it has written."""

    def __init__(
        self,
        prices: dict[str, Price] | None = None,
        conversations: Conversations | None = None,
    ) -> None:
        self.stream = io.StringIO()
        self.journal = Journal(
            PRICES if prices is None else prices,
            RequestLog("info", "json", self.stream),
            conversations,
        )

    def note(self, outcome: Outcome, plan: Plan | None = None, **more: Any) -> None:
        plan = asked()[1] if plan is None else plan
        self.journal.note(Visit("req-1", "chat", 0.0, plan=plan, outcome=outcome, **more))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


async def test_a_call_is_counted_under_all_its_names() -> None:
    book = Book()
    book.note(HIT, cost_s=2.5)
    book.note(MISS)
    book.journal.settle()
    statistics = book.journal.statistics
    for counted in (
        statistics.total,
        statistics.by("tier")["warm"],
        statistics.by("model")["m"],
        statistics.by("tenant")["default"],
    ):
        shown = counted.as_dict()
        assert (shown["requests"], shown["hits"], shown["hit_rate"]) == (2, 1, 0.5)
        assert (shown["tokens_saved"], shown["seconds_saved"]) == (1_000_000, 2.5)
    levels = statistics.by("level")
    assert levels["response"].requests == levels["none"].requests == 1
    assert {reason: one.requests for reason, one in statistics.by("reason").items()} == {"cold": 1}


async def test_calls_are_settled_a_moment_later_or_when_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_UNSETTLED", 3)
    book = Book()
    for expected in (0, 0, 3, 3):
        book.note(HIT)
        assert book.journal.statistics.total.requests == expected
    book.journal.settle()
    book.journal.settle()
    assert book.journal.statistics.total.requests == 4
    assert len(book.lines) == 4


async def test_calls_settle_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = asyncio.Event()
    monkeypatch.setattr(module, "SETTLE_AFTER_S", 0.0)
    book = Book()
    settle = book.journal.settle

    def settle_and_tell() -> None:
        settle()
        settled.set()

    monkeypatch.setattr(book.journal, "settle", settle_and_tell)
    book.note(HIT)
    await settled.wait()
    assert book.journal.statistics.total.requests == 1


@pytest.mark.parametrize(
    ("outcome", "model", "money"),
    [
        (HIT, "m", 0.9 + 1.0),
        (HIT, "cheap", 0.09 + 0.1),
        (replace(MISS, level="prefix", hit_tokens=1_000_000), "m", 0.9),
        (replace(MISS, collapsed=True, prompt_tokens=1_000_000), "m", 1.0),
        (replace(MISS, collapsed=True, prompt_tokens=1_000_000, hit_tokens=400_000), "m", 0.64),
        (MISS, "m", 0.0),
        (replace(HIT, level="negative", prompt_tokens=0, completion_tokens=0), "m", 0.0),
    ],
)
async def test_money_saved_is_what_the_original_would_have_cost(
    outcome: Outcome, model: str, money: float
) -> None:
    book = Book()
    book.note(outcome, asked(model=model)[1])
    book.journal.settle()
    assert book.journal.statistics.total.as_dict()["money_saved"] == pytest.approx(money)


async def test_what_nobody_waited_for_is_summed_by_purpose_at_its_price() -> None:
    book, plan = Book(), asked(kv_cache={"preload": True, "tier": "hot"})[1]
    ending = Completed(Usage(1_000_000, 100_000, 400_000), 2.5)
    book.journal.spent("warming", plan, ending)
    book.journal.spent("revalidation", asked(model="cheap")[1], ending)
    spent = dict(book.journal.statistics.purposes())
    warming = spent[Purpose("warming", "hot", "m", "default")]
    assert (warming.calls, warming.seconds, warming.tokens) == (1, 2.5, 700_000)
    assert warming.money == pytest.approx(0.6 + 0.04 + 1.0)
    assert spent[Purpose("revalidation", "warm", "cheap", "default")].money == pytest.approx(0.164)
    unpriced = Book(prices={})
    unpriced.journal.spent("warming", plan, ending)
    assert [one.money for _, one in unpriced.journal.statistics.purposes()] == [0.0]


async def test_settled_calls_reach_the_conversations() -> None:
    conversations = Conversations(lambda: 1000.0)
    book = Book(conversations=conversations)
    book.note(MISS, asked(kv_cache={"enabled": True, "cache_key": "c"})[1])
    assert conversations.of("default") == []
    book.journal.settle()
    assert [one.name for one in conversations.of("default")] == ["c"]


async def test_without_prices_no_money_is_saved() -> None:
    book = Book(prices={})
    book.note(HIT)
    book.journal.settle()
    assert book.journal.statistics.total.money_saved == 0.0


async def test_only_what_the_store_answered_saves_the_time_of_the_original() -> None:
    book = Book()
    book.note(replace(MISS, level="prefix"), cost_s=5.0)
    book.note(replace(MISS, collapsed=True), cost_s=5.0)
    book.journal.settle()
    assert book.journal.statistics.total.seconds_saved == 0.0
    assert book.journal.statistics.total.collapsed == 1


async def test_a_preload_is_logged_but_is_no_user_traffic() -> None:
    book = Book()
    book.note(MISS, asked(kv_cache={"preload": True})[1])
    book.journal.settle()
    assert book.journal.statistics.total.requests == 0
    assert len(book.lines) == 1


async def test_a_line_says_what_became_of_the_call() -> None:
    book = Book()
    book.note(MISS, seconds=0.0123, stream=True)
    book.note(HIT, asked(kv_cache=False)[1])
    book.journal.settle()
    line, uncached = book.lines
    assert line["key"] == asked()[1].public_key[:12]
    del line["ts"], line["key"]
    assert line == {
        "severity": "info", "logger": "kvgate.request", "event": "request", "id": "req-1",
        "endpoint": "chat", "status": 200, "level": "none", "tier": "warm", "tenant": "default",
        "model": "m", "backend": "up", "stream": True, "saved": 0, "why": "cold", "ms": 12.3,
    }  # fmt: skip
    assert (uncached["tier"], uncached["key"]) == (None, None)


async def test_refusals_and_departures_have_a_line_each() -> None:
    book = Book()
    book.journal.refused(
        request_id="r", endpoint="chat", status=404, code="model_not_found", seconds=0.001
    )
    book.journal.left(request_id="r", endpoint="chat", seconds=0.002)
    refused, left = book.lines
    assert (refused["event"], refused["status"], refused["code"]) == (
        "refused",
        404,
        "model_not_found",
    )
    assert (left["event"], left["ms"]) == ("left", 2.0)
    assert book.journal.statistics.errors == 1


async def test_the_names_counted_are_bounded_in_number_and_in_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally, "MAX_LABELS", 3)
    book = Book()
    for number in range(10):
        book.note(MISS, asked(model=f"{number}" + "x" * 1000)[1])
    book.journal.settle()
    models = book.journal.statistics.by("model")
    assert len(models) == 4
    assert models["other"].requests == 7
    assert max(map(len, models)) == MAX_NAME
    assert {len(line["model"]) for line in book.lines} == {MAX_NAME}


async def test_a_visit_without_an_answer_is_not_counted() -> None:
    book = Book()
    book.journal.note(Visit("r", "chat", 0.0))
    book.journal.settle()
    assert book.journal.statistics.total.requests == 0
    assert book.lines == []


async def test_an_answer_that_was_not_stored_is_counted() -> None:
    book = Book()
    book.journal.store_failed(OSError("disk full"))
    assert book.journal.statistics.store_errors == 1
