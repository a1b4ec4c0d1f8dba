"""Conversations as numbers: each tenant has its own room, and no text stays."""

from dataclasses import fields
from typing import Any

import pytest

from gateway import analytics as module
from gateway.analytics import Conversations
from gateway.request_log import Answered, Visit
from policies.keys import Principal
from policies.outcome import Outcome
from policies.rules import default_rules
from tests.kit.clock import Clock
from tests.kit.entries import OPEN, asked

RULES = default_rules()
HIT = Outcome(key="k", tier="warm", level="response", hit=True, tokens_saved=7)
MISS = Outcome(key="k", tier="warm", miss_reason="cold", forwarded="uri-miss", miss_tokens=5)
SECRET = "the answer is swordfish"


class Book:
    """Conversations under a scripted clock."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.conversations = Conversations(self.clock.now)

    def note(
        self,
        name: str | None = "c",
        outcome: Outcome = MISS,
        *,
        text: str = "?",
        principal: Principal = OPEN,
        with_call: bool = True,
        endpoint: Any = "chat",
        wish: dict[str, Any] | None = None,
        **body: Any,
    ) -> None:
        said = {"enabled": True, **({"cache_key": name} if name else {}), **(wish or {})}
        call, plan = asked(text, said, principal=principal, endpoint=endpoint, **body)
        visit = Visit("r", endpoint, 0.0, call if with_call else None, plan, outcome, 0.5, 2.0)
        self.conversations.note([Answered(visit, plan, outcome)])

    def shown(self, tenant: str = "default") -> list[dict[str, Any]]:
        return [one.as_dict(RULES) for one in self.conversations.of(tenant)]

    def names(self, tenant: str = "default", user: str | None = None) -> list[str]:
        return [one.name for one in self.conversations.of(tenant, user=user)]


def test_a_conversation_says_what_was_measured_of_it() -> None:
    book = Book()
    messages = [{"role": "user", "content": "what is what"}, {"role": "assistant", "content": "no"}]
    book.note(messages=messages)
    for _ in range(4):
        book.clock.advance(10)
        book.note(outcome=HIT, messages=messages)
    (shown,) = book.shown()
    advice = shown.pop("recommendations")
    assert shown == {
        "id": "c",
        "tenant": "default",
        "user": None,
        "messages": 2,
        "mean_length": 7.0,
        "class": "educational",
        "reuse_potential": round(0.6 * 0.2 + 0.4 / 3, 4),
        "calls": 5,
        "hits": 4,
        "hit_rate": 0.8,
        "stored_rate": 0.8,
        "levels": {"none": 1, "response": 4},
        "repeats": 4,
        "uncached": 0,
        "expired": 0,
        "tokens_saved": 28,
        "seconds_saved": 8.0,
        "first_seen": 1000.0,
        "last_seen": 1040.0,
        "gap_p90_s": 10.0,
    }
    assert advice == []


def test_what_names_no_conversation_or_has_no_user_is_left_out() -> None:
    book = Book()
    book.note(None)
    book.note(wish={"preload": True})
    book.note(endpoint="embeddings", input="x")
    assert book.shown() == []
    assert repr(book.conversations) == "<Conversations 0 of 0 tenants>"


def test_users_and_tenants_have_conversations_of_their_own() -> None:
    book = Book()
    for principal in (OPEN, Principal("default", user="ann"), Principal("b", user="ann")):
        book.note(principal=principal)
    assert [(one["tenant"], one["user"]) for one in book.shown()] == [
        ("default", "ann"),
        ("default", None),
    ]
    assert len(book.names("default", user="ann")) == 1
    assert book.names("default", user="bob") == book.names("c") == []
    assert list(book.conversations.tenants()) == ["default", "b"]


def test_each_tenant_has_its_own_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PER_TENANT", 3)
    book = Book()
    book.note("kept", principal=Principal("quiet"))
    for number in range(10):
        book.note("first")  # in use: it stays
        book.note(f"c{number}", principal=OPEN)
    assert book.names() == ["c9", "first", "c8"]
    assert book.conversations.of("default")[1].tally.calls == 10
    assert book.names("quiet") == ["kept"]


def test_a_conversation_can_be_forgotten() -> None:
    book = Book()
    book.note()
    (one,) = book.conversations.of("default")
    book.conversations.forget(one)
    book.conversations.forget(one)
    assert book.shown() == []
    assert list(book.conversations.tenants()) == []


def test_the_shape_is_that_of_the_last_call_that_was_computed() -> None:
    book = Book()
    book.note(text="hello")
    book.note(text="what is it", outcome=HIT)
    assert book.shown()[0]["class"] == "general"
    book.note(text="what is it")
    assert book.shown()[0]["class"] == "educational"


def test_a_completions_prompt_is_one_message() -> None:
    book = Book()
    book.note(endpoint="completions", text="fix this code")
    (shown,) = book.shown()
    assert (shown["messages"], shown["class"], shown["mean_length"]) == (1, "programming", 13.0)
    book.note("list", endpoint="completions", prompt=[1, 2])
    assert book.shown()[0]["class"] == "general"


def test_repeats_are_seen_with_and_without_the_store() -> None:
    book = Book()
    for text in ("a", "b", "a"):
        book.note(text=text)
        book.note("past", text=text, wish={"enabled": False})
    assert {one["id"]: (one["repeats"], one["uncached"]) for one in book.shown()} == {
        "c": (1, 0),
        "past": (1, 3),
    }


def test_what_cannot_be_told_apart_is_not_called_a_repeat() -> None:
    book = Book()
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    for _ in range(2):
        book.note(wish={"enabled": False}, deep=deep)
        book.note("bare", wish={"enabled": False}, with_call=False)
    assert {one["repeats"] for one in book.shown()} == {0}
    assert {one["id"]: one["messages"] for one in book.shown()} == {"bare": 0, "c": 1}


def test_no_text_stays() -> None:
    book = Book()
    book.note(text=SECRET)
    book.note(text=SECRET, wish={"enabled": False})
    (one,) = book.conversations.of("default")
    held = {field.name: getattr(one.tally, field.name) for field in fields(one.tally)}
    assert "swordfish" not in repr(held)
    assert all(len(question) == 8 for question in held["questions"])


def test_the_latest_of_all_tenants_come_first() -> None:
    book = Book()
    for tenant, name in (("t", "a"), ("u", "b"), ("t", "c"), ("u", "d"), ("t", "a")):
        book.clock.advance(10)
        book.note(name, principal=Principal(tenant))
    latest = [(one.tenant, one.name) for one in book.conversations.latest(3)]
    assert latest == [("t", "a"), ("u", "d"), ("t", "c")]
    assert len(book.conversations.latest(100)) == 4
