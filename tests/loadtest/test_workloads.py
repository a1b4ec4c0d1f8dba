"""The requests that the load test makes."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from loadtest.workloads import (
    REVIEWS,
    Ask,
    Batch,
    Conversation,
    Faq,
    Habit,
    SharedDocument,
    Stampede,
    Streaming,
    Tenants,
    asks,
    table,
)
from policies.call import parse_call
from policies.directive import parse_directive
from policies.keys import Principal
from policies.plan import decide
from policies.rules import default_rules

HABITS = (Faq, Conversation, SharedDocument, Streaming, Batch, Tenants)


def first(habit: Habit, count: int = 50) -> list[Ask]:
    return list(islice(asks(habit), count))


def plan_of(ask: Ask) -> object:
    body = ask.body("m")
    rules = default_rules()
    wish = parse_directive(body.pop("kv_cache", None), ask.headers.items(), limits=rules.limits)
    return decide(parse_call("chat", body), wish, Principal(tenant="t"), rules).key


@pytest.mark.parametrize("habit", HABITS)
def test_the_same_seed_gives_the_same_requests(habit: type) -> None:
    assert first(habit(7)) == first(habit(7))


@pytest.mark.parametrize("habit", HABITS)
def test_another_seed_gives_others(habit: type) -> None:
    assert first(habit(7)) != first(habit(8))


@pytest.mark.parametrize("habit", HABITS)
def test_every_request_is_understood_in_full(habit: type) -> None:
    rules = default_rules()
    for ask in first(habit(1)):
        body = ask.body("m")
        wish = parse_directive(body.pop("kv_cache", None), ask.headers.items(), limits=rules.limits)
        assert parse_call("chat", body).stream is ask.stream
        assert wish.enabled
        assert wish.unknown == ()


def test_a_frequent_question_has_one_key_however_the_wish_is_spoken() -> None:
    keys: dict[str, set[object]] = {}
    spoken: dict[str, set[bool]] = {}
    for ask in first(Faq(3), 200):
        question = ask.messages[-1]["content"]
        keys.setdefault(question, set()).add(plan_of(ask))
        spoken.setdefault(question, set()).add(ask.kv_cache is None)
    assert {len(found) for found in keys.values()} == {1}
    assert {True, False} in spoken.values()
    assert len({key for found in keys.values() for key in found}) == len(keys)


def test_the_first_question_is_asked_most() -> None:
    questions = [ask.messages[-1]["content"] for ask in first(Faq(3), 500)]
    counts = sorted((questions.count(question) for question in set(questions)), reverse=True)
    assert counts[0] > 5 * counts[-1]


def test_each_turn_repeats_the_turns_before_it_until_a_new_talk_begins() -> None:
    habit = Conversation(1, turns=3)
    talks: dict[str, list[Ask]] = {}
    for number in range(9):
        ask = habit.ask()
        habit.heard(f"answer {number}")
        talks.setdefault(ask.headers["X-Cache-ID"], []).append(ask)
    assert [len(talk) for talk in talks.values()] == [3, 3, 3]
    for talk in talks.values():
        for before, after in pairwise(talk):
            assert after.messages[: len(before.messages)] == before.messages
            assert [message["role"] for message in after.messages[-2:]] == ["assistant", "user"]
    assert len({talk[0].messages[0]["content"] for talk in talks.values()}) == 3


def test_documents_are_shared_by_users_and_their_questions_come_last() -> None:
    one, other = first(SharedDocument(1)), first(SharedDocument(2))
    tables = {table(number, rows=40) for number in range(3)}
    for ask in (*one, *other):
        document, _, question = ask.messages[0]["content"].rpartition("\n")
        assert document in tables
        assert question.startswith("Question: ")


def test_streams_ask_for_their_usage_and_sometimes_for_a_new_answer() -> None:
    found = first(Streaming(1), 200)
    assert all(ask.body("m")["stream_options"] == {"include_usage": True} for ask in found)
    anew = sum("X-Cache-Reuse" in ask.headers for ask in found)
    assert 5 < anew < 50


def test_a_stampede_asks_the_same_new_question_of_all_in_each_round() -> None:
    now = 100.0
    users = [Stampede(seed, now=lambda: now, every_s=8) for seed in range(5)]
    first_round = [user.ask() for user in users]
    assert len({plan_of(ask) for ask in first_round}) == 1
    assert users[0].until_next_s() == 4.0
    now += users[0].until_next_s()
    second_round = [user.ask() for user in users]
    assert len({plan_of(ask) for ask in second_round}) == 1
    assert plan_of(first_round[0]) != plan_of(second_round[0])


def test_clients_of_a_batch_do_the_same_work_in_orders_of_their_own() -> None:
    one, other = (first(Batch(seed), len(REVIEWS)) for seed in (1, 2))
    assert [ask.messages for ask in one] != [ask.messages for ask in other]
    assert {plan_of(ask) for ask in one} == {plan_of(ask) for ask in other}
    assert len({plan_of(ask) for ask in one}) == len(REVIEWS)
    assert all(ask.kv_cache and ask.kv_cache["batch_mode"] for ask in one)


def test_a_new_batch_is_new_work() -> None:
    asked = first(Batch(1), 2 * len(REVIEWS))
    assert len({plan_of(ask) for ask in asked}) == len(asked)


def test_tenants_name_their_entries_alike() -> None:
    one, other = (first(Tenants(seed), 100) for seed in (1, 2))
    assert {plan_of(ask) for ask in one} == {plan_of(ask) for ask in other}
