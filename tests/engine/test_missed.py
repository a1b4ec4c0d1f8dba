"""What is remembered of blocks that are there no more."""

from array import array

import pytest

from engine.kv.missed import MOST_COMPARED, Forgotten, Missed, common_tokens


def test_what_went_is_remembered_with_its_cause_and_time() -> None:
    gone = Forgotten(8)
    gone.note(b"a", "quota", now=3.0)
    assert gone.why(b"a", at_token=64, now=5.0) == Missed("evicted", 64, "quota", 2.0)
    assert gone.why(b"b", at_token=64, now=5.0) is None
    assert gone.why(b"a", at_token=0, now=1.0) == Missed("evicted", 0, "quota", 0.0)
    gone.back(b"a")
    gone.back(b"never")
    assert gone.why(b"a", at_token=64, now=5.0) is None


@pytest.mark.parametrize(
    ("cause", "reason"),
    [("ttl", "expired"), ("invalidated", "invalidated"), ("capacity", "evicted")],
)
def test_the_cause_decides_the_word(cause: str, reason: str) -> None:
    gone = Forgotten(8)
    gone.note(b"a", cause, now=0.0)  # type: ignore[arg-type]  # a parameter of the test
    why = gone.why(b"a", at_token=0, now=0.0)
    assert why is not None
    assert why.reason == reason


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    gone = Forgotten(3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        gone.note(name, "ttl", now=0.0)
    assert len(gone) == 3
    there = [gone.why(bytes([name]), at_token=0, now=0.0) is not None for name in b"abcd"]
    assert there == [True, False, True, True]


def test_the_closest_beginning_counts() -> None:
    def block(*tokens: int) -> bytes:
        return array("I", tokens).tobytes()

    wanted = (1, 2, 3, 4)
    assert common_tokens(wanted, []) == 0
    assert common_tokens(wanted, [block(9, 2, 3, 4)]) == 0
    assert common_tokens(wanted, [block(1, 9, 3, 4), block(1, 2, 3, 9), block(1, 2, 9, 4)]) == 3
    far = [block(9, 9, 9, 9)] * MOST_COMPARED
    assert common_tokens(wanted, [*far, block(1, 2, 3, 9)]) == 0


def test_it_is_shown_with_when_and_by_what_where_that_is_known() -> None:
    assert Missed("diverged", 7).as_json() == {"reason": "diverged", "at_token": 7}
    shown = Missed("evicted", 0, "capacity", 1.26).as_json()
    assert shown == {"reason": "evicted", "at_token": 0, "cause": "capacity", "ago_s": 1.3}
