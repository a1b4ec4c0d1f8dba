"""The short memory behind miss reasons: per place, bounded, and forgetting what was cleared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import recall as module
from gateway.recall import Recall
from policies.keys import Principal
from policies.plan import Plan
from tests.kit.entries import asked

ALICE, BOB = Principal("t", user="alice"), Principal("t", user="bob")


def test_why_a_key_left_is_remembered_until_it_is_back() -> None:
    recall, (_, plan) = Recall(), asked()
    assert recall.departure(plan.key) is None
    recall.left([plan.key], "evicted")
    assert recall.departure(plan.key) == "evicted"
    recall.left([plan.key], "invalidated")
    assert recall.departure(plan.key) == "invalidated"
    recall.stored(plan)
    assert recall.departure(plan.key) is None


def test_the_nearest_is_the_one_that_agrees_longest() -> None:
    recall = Recall()
    stored = [asked(text)[1] for text in ("about cats", "about dogs", "other")]
    for plan in stored:
        recall.stored(plan)
    assert recall.nearest(asked("about dogma")[1]) == stored[1].canonical
    assert recall.any_other(asked("about dogma")[1]) is not None


@given(st.binary(max_size=40), st.binary(max_size=9), st.binary(max_size=9))
def test_how_far_two_requests_agree_is_what_a_look_at_each_byte_says(
    start: bytes, one: bytes, other: bytes
) -> None:
    a, b = start + one, start + other
    plain = next((at for at in range(min(len(a), len(b))) if a[at] != b[at]), min(len(a), len(b)))
    assert module._common(a, b) == plain


def test_the_same_request_is_no_other() -> None:
    recall, (_, plan) = Recall(), asked()
    recall.stored(plan)
    recall.stored(plan)
    assert recall.nearest(plan) is None
    assert recall.any_other(plan) is None


@pytest.mark.parametrize(
    "elsewhere",
    [
        asked("b", principal=Principal("another tenant"))[1],
        asked("b", {"enabled": True, "cache_key": "another"})[1],
        asked("b", model="another")[1],
        asked("b", {"enabled": True, "scope": "user"}, principal=ALICE)[1],
    ],
)
def test_nobody_is_told_of_another_place(elsewhere: Plan) -> None:
    recall = Recall()
    recall.stored(elsewhere)
    assert recall.nearest(asked("a", principal=BOB)[1]) is None
    assert recall.any_other(asked("a", principal=BOB)[1]) is None


def test_a_users_own_place_is_not_another_users() -> None:
    recall, wish = Recall(), {"enabled": True, "scope": "user"}
    recall.stored(asked("a", wish, principal=ALICE)[1])
    assert recall.nearest(asked("b", wish, principal=BOB)[1]) is None
    assert recall.nearest(asked("b", wish, principal=ALICE)[1]) is not None


@pytest.mark.parametrize("why", ["evicted", "invalidated", "expired"])
def test_what_left_the_store_is_no_longer_held_against_a_request(why: module.Departure) -> None:
    """Its text is forgotten with it: who clears an entry clears all of it."""
    recall = Recall()
    gone, kept = asked("gone")[1], asked("kept")[1]
    recall.stored(gone)
    recall.stored(kept)
    recall.left([gone.key], why)
    assert recall.nearest(asked("gone!")[1]) == kept.canonical
    recall.left([kept.key], why)
    assert recall.nearest(asked("gone!")[1]) is None
    assert recall.any_other(asked("gone!")[1]) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PLACES", 3)
    monkeypatch.setattr(module, "MAX_DEPARTED", 5)
    recall = Recall()
    for number in range(20):
        recall.stored(asked("a", {"enabled": True, "cache_key": str(number)})[1])
        recall.left([bytes([number])], "evicted")
    assert repr(recall) == "<Recall 5 departed, 3 places>"


def test_of_one_place_the_latest_few_are_remembered() -> None:
    recall = Recall()
    for number in range(module.SHAPES_PER_PLACE + 2):
        recall.stored(asked(f"question {number}")[1])
    assert recall.nearest(asked("question 0!")[1]) != asked("question 0")[1].canonical
    last = module.SHAPES_PER_PLACE + 1
    assert recall.nearest(asked(f"question {last}!")[1]) == asked(f"question {last}")[1].canonical


def test_a_very_long_request_is_not_remembered() -> None:
    recall = Recall()
    recall.stored(asked("x" * module.MAX_SHAPE_BYTES)[1])
    assert recall.nearest(asked("x")[1]) is None


def test_a_key_without_fingerprint_has_the_shape_it_was_stored_with_last() -> None:
    wish = {"enabled": True, "cache_key": "k", "match": "key"}
    recall = Recall()
    recall.stored(asked("first", wish)[1])
    recall.stored(asked("second", wish)[1])
    assert recall.nearest(asked("firs", wish)[1]) == asked("second", wish)[1].canonical


def test_what_made_an_entry_and_its_hits_are_noted_until_it_leaves() -> None:
    recall, (_, plan) = Recall(), asked("a")
    recall.served(plan)
    assert recall.note(plan.key) is None
    recall.stored(plan)
    recall.served(plan)
    recall.served(plan)
    note = recall.note(plan.key)
    assert note is not None
    assert (note.hits, note.plan.reasons, note.plan.canonical) == (2, plan.reasons, b"")
    assert recall.canonical(plan.key) == plan.canonical
    recall.left([plan.key], "evicted")
    assert recall.note(plan.key) is None
    assert recall.canonical(plan.key) is None
