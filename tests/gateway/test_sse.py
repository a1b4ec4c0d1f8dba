"""Server-sent events: what is written is read back, however the bytes are cut."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import sse
from gateway.sse import Event, EventTooLarge, Parser, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
LINES = st.sampled_from(
    b"|data|data:|data: x|data:x|data:  x|: comment|:|event: e|id: 7|retry: 10|unknown|data: [DONE]"
    b"|data: \xc3\xa9|data: \xff".split(b"|")
)


def parsed(*pieces: bytes) -> list[Event]:
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[start:stop] for start, stop in pairwise(edges)]


@given(
    st.lists(st.tuples(LINES, LINE_ENDS), max_size=12), st.lists(st.integers(0, 999), max_size=9)
)
@example([(b"data: a", b"\r\n"), (b"", b"\r\n")], [8])
def test_where_the_bytes_are_cut_changes_nothing(
    lines: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    raw = b"".join(line + end for line, end in lines) + b"\n"
    whole = parsed(raw)
    assert parsed(*cut(raw, places)) == whole
    assert parsed(*(raw[at : at + 1] for at in range(len(raw)))) == whole


@given(st.lists(LINES, max_size=12))
def test_how_lines_end_changes_nothing(lines: list[bytes]) -> None:
    plain, crlf, cr = [
        parsed(b"".join(line + end for line in lines), b"x") for end in (b"\n", b"\r\n", b"\r")
    ]
    assert plain == crlf == cr


@given(st.lists(JSON, max_size=4), st.lists(st.integers(0, 9999), max_size=6))
def test_what_is_encoded_is_read_back(values: list[Any], places: list[int]) -> None:
    raw = b"".join(encode(value) for value in values) + sse.DONE
    *events, done = parsed(*cut(raw, places))
    assert [orjson.loads(event.data) for event in events] == values
    assert done == Event("", b"[DONE]")


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: a\n\n", [Event("", b"a")]),
        (b"data: a\ndata: b\n\n", [Event("", b"a\nb")]),
        (b": keep-alive\n\ndata: a\n\n", [Event("", b"a")]),
        (b"event: error\ndata: a\n\n", [Event("error", b"a")]),
        (b"event: error\n\ndata: a\n\n", [Event("", b"a")]),  # the name goes with its event
        (b"data\n\n", [Event("", b"")]),
        (b"data:  two spaces\n\n", [Event("", b" two spaces")]),
        (b"id: 1\nretry: 5\n\n", []),
        (b"data: a\r\rdata: b\r\n\r\n", [Event("", b"a"), Event("", b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("", b"a")]),  # one byte order mark may lead
        (b"data: \xef\xbb\xbfa\n\n", [Event("", b"\xef\xbb\xbfa")]),
    ],
)
def test_the_grammar_is_that_of_the_standard(raw: bytes, events: list[Event]) -> None:
    assert parsed(raw) == events
    assert parsed(*(raw[at : at + 1] for at in range(len(raw))), b"x\n") == events


def test_an_event_that_was_not_ended_is_not_given_out() -> None:
    assert parsed(b'data: {"half": ') == []
    assert parsed(b"data: whole but not ended\n") == []


def test_a_carriage_return_at_the_end_is_held_until_it_is_known_what_follows() -> None:
    parser = Parser()
    assert list(parser.feed(b"data: a\r\n\r")) == []
    assert list(parser.feed(b"\n")) == [Event("", b"a")]


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(EventTooLarge):
        parsed(b"data: ", *[b"x" * 30] * 4)
    with pytest.raises(EventTooLarge):
        parsed(*[b"data: " + b"x" * 30 + b"\n"] * 4)
    assert len(parsed(*[b"data: " + b"x" * 30 + b"\n\n"] * 9)) == 9


def test_a_large_event_in_small_pieces_is_not_copied_for_each_of_them() -> None:
    parser = Parser()
    for _ in range(200):
        assert list(parser.feed(b"data: " + b"x" * 994)) == []
    assert max(map(len, parser._rest)) == 1000
    assert len(next(parser.feed(b"\n\n")).data) == 200_000 - len(b"data: ")
