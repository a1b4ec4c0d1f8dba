"""What readers of the events hear, and that they hear what they missed."""

import pytest

from engine.kv.events import EventLog, shown_salt
from tests.kit.holder import P, kept, make


def log_of(count: int, size: int = 4) -> EventLog:
    log = EventLog(clock=lambda: 12.3456, size=size)
    for number in range(count):
        log.note("stored", bytes([number]) * 32, salt="s", tokens=P)
    return log


@pytest.mark.parametrize(
    ("after", "limit", "seen", "missed", "last"),
    [
        (0, 9, [3, 4, 5, 6], 2, 6),
        (2, 9, [3, 4, 5, 6], 0, 6),
        (1, 2, [3, 4], 1, 4),
        (4, 9, [5, 6], 0, 6),
        (4, 1, [5], 0, 5),
        (6, 9, [], 0, 6),
        (99, 2, [3, 4], 2, 4),
    ],
)
def test_a_page_holds_what_came_after_and_says_what_is_gone(
    after: int, limit: int, seen: list[int], missed: int, last: int
) -> None:
    page = log_of(6).after(after, limit=limit)
    assert [event.seq for event in page.events] == seen
    assert (page.missed, page.last) == (missed, last)


def test_an_empty_log_has_an_empty_page() -> None:
    assert log_of(0).after(0, limit=5).as_json() == {"events": [], "missed": 0, "last": 0}


def test_following_page_by_page_hears_everything_once() -> None:
    log, heard, last = log_of(100, size=1000), [], 0
    while (page := log.after(last, limit=7)).events:
        heard += [event.seq for event in page.events]
        last = page.last
    assert heard == list(range(1, 101))


def test_an_event_shows_neither_salt_nor_key() -> None:
    log = EventLog(clock=lambda: 12.3456)
    log.note("evicted", bytes(range(32)), salt="secret", tokens=P, cause="quota")
    assert log.after(0, limit=1).events[0].as_json() == {
        "seq": 1,
        "at": 12.346,
        "kind": "evicted",
        "block": "0001020304050607",
        "salt": shown_salt("secret"),
        "tokens": P,
        "cause": "quota",
    }
    assert len(shown_salt("secret")) == 16
    assert shown_salt("secret") != shown_salt("")
    assert repr(log) == "EventLog(last=1 stored=0 evicted=1 moved=0 invalidated=0)"


def test_who_waits_is_told_of_each_event() -> None:
    log, told = log_of(0), []
    log.heard = lambda: told.append(log.last)
    log.note("moved", b"k" * 32, salt="", tokens=P, cause="warm")
    assert told == [1]


def test_the_index_tells_what_comes_and_goes() -> None:
    index = make(3)
    kept(index, list(range(8)), "a")
    kept(index, [9] * 4, "b")
    index.take(1, now=0.0)
    index.invalidate("b")
    page = index.keeper.events.after(0, limit=99)
    said = [(event.kind, event.salt, event.cause) for event in page.events]
    assert said == [
        ("stored", "a", None),
        ("stored", "a", None),
        ("stored", "b", None),
        ("evicted", "a", "capacity"),
        ("invalidated", "b", None),
    ]
