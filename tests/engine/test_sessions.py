"""A conversation that goes on without its old tail gives that tail first."""

import pytest

from engine.kv.sessions import END_TOKENS, Sessions
from tests.kit.holder import Holder, P, kept, make

ASKED = list(range(100, 140))


def test_a_later_turn_contains_the_end_of_the_one_before() -> None:
    sessions = Sessions()
    assert sessions.left_behind("c", ASKED) is None
    sessions.note("c", ASKED, b"leaf")
    later = [7, 8, 9, *ASKED[-END_TOKENS:], 1, 2, 3]
    assert sessions.left_behind("c", later) == b"leaf"
    assert sessions.left_behind("d", later) is None
    assert sessions.left_behind("c", [*later[:20], 0, *later[21:]]) is None
    assert sessions.left_behind("c", ASKED) == b"leaf", "asked again"


def test_a_find_that_begins_inside_a_token_is_none() -> None:
    sessions = Sessions()
    sessions.note("c", [1], b"leaf")
    assert sessions.left_behind("c", [256, 0, 0]) is None
    assert sessions.left_behind("c", [256, 1, 0]) == b"leaf"


def test_conversations_are_few_and_the_silent_go_first() -> None:
    sessions = Sessions(2)
    for name in ("a", "b", "a", "c"):
        sessions.note(name, ASKED, name.encode())
    assert [sessions.left_behind(name, ASKED) for name in "abc"] == [b"a", None, b"c"]
    assert len(sessions) == 2


@pytest.mark.parametrize("window", [0, 1])
def test_a_window_that_moved_on_leaves_its_old_tail_to_go_first(window: int) -> None:
    """Turn 1 is system, old, question; turn 2 drops the old part, or builds on all of it."""
    index = make(16)
    system, old, question = [1] * P, [2] * P, [3] * P
    first = [*system, *old, *question]
    kept(index, [8] * P)  # the longest unused of all
    kept(index, first, priority="high")
    leaf = index.chain(first, "")[-1]
    then = [*system, *question, 4] if window else [*first, 4]
    holder = Holder(index, then)
    assert index.supersede(leaf) == (2 if window else 0)
    holder.publish()
    holder.leave()
    index.take(index.pool.free_blocks + 2, now=0.0)
    if window:
        assert index.stats().evicted_by == {"superseded": 2}
        assert index.lookup([*first, 0], "") == P
        assert index.lookup([*system, *question, 0], "") == 2 * P
    else:
        assert index.stats().evicted_by == {"capacity": 2}
    index.check_integrity()


def test_what_another_built_on_is_not_superseded() -> None:
    index = make(16)
    kept(index, [1] * P + [2] * P + [3] * P)
    kept(index, [1] * P + [2] * P + [4] * P)
    leaf = index.chain([1] * P + [2] * P + [3] * P, "")[-1]
    assert index.supersede(leaf) == 1
    assert index.supersede(b"unknown") == 0
    Holder(index, [1] * P + [2] * P + [3] * P + [5]).leave()  # used again: it is not
    index.take(index.pool.free_blocks + 1, now=0.0)
    assert index.stats().evicted_by == {"capacity": 1}
    index.check_integrity()
