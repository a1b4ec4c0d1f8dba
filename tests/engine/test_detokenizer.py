"""Text as it comes: whole characters only, and nothing of a stop string."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.text.detokenizer import Detokenizer, Piece


def run(tokens: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, list[Piece]]:
    detokenizer = Detokenizer(stops)
    pieces = []
    for token in tokens:
        pieces.append(detokenizer.push(token))
        if pieces[-1].stopped:
            break
    else:
        pieces.append(detokenizer.finish())
    return "".join(piece.text for piece in pieces), pieces


def test_half_a_character_waits_for_the_other_half() -> None:
    euro = "€".encode()
    text, pieces = run([b"5 ", euro[:1], euro[1:2], euro[2:]])
    assert [piece.text for piece in pieces] == ["5 ", "", "", "€", ""]
    assert [piece.shown_tokens for piece in pieces] == [1, 1, 1, 4, 4]
    assert text == "5 €"


def test_bytes_that_are_no_utf_8_become_replacement_characters() -> None:
    assert run([b"a", b"\xff", b"b"])[0] == "a�b"
    assert run([b"a", b"\xe2\x82"])[0] == "a�"


def test_a_stop_string_over_three_tokens_is_never_seen() -> None:
    text, pieces = run([b"Hi.", b"\nUs", b"e", b"r: what"], stops=("\nUser:",))
    assert text == "Hi."
    assert pieces[-1].stopped
    assert pieces[-1].shown_tokens == 1


def test_text_that_only_looked_like_a_stop_is_sent_as_soon_as_that_is_clear() -> None:
    _, pieces = run([b"Hi.", b"\nUs", b"age"], stops=("\nUser:",))
    assert [piece.text for piece in pieces] == ["Hi.", "", "\nUsage", ""]


def test_text_before_a_stop_in_the_same_token_is_kept() -> None:
    text, pieces = run([b"one", b" two. END three"], stops=("END",))
    assert text == "one two. "
    assert pieces[-1].shown_tokens == 2


def test_the_stop_that_is_complete_first_cuts() -> None:
    assert run([b"a;b.c"], stops=(".", ";"))[0] == "a"
    assert run([b"abcd"], stops=("abcd", "c"))[0] == "ab"


def test_what_was_held_back_is_sent_at_the_end() -> None:
    assert run([b"almost EN"], stops=("END",))[0] == "almost EN"


def test_a_stop_completed_by_the_flush_of_a_half_character_still_cuts() -> None:
    assert run([b"a\xe2"], stops=("�",))[0] == "a"


@given(
    text=st.text(alphabet="ab€🙂\n", max_size=40),
    cuts=st.lists(st.integers(0, 120), max_size=12),
    stops=st.lists(st.text(alphabet="ab€🙂\n", min_size=1, max_size=4), max_size=3),
)
def test_any_cutting_into_tokens_gives_the_text_before_the_first_stop(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[a:b] for a, b in pairwise(edges)]
    sent, pieces = run(tokens, tuple(stops))
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert sent == (text[: min(found)[1]] if found else text)
    assert pieces[-1].stopped == bool(found)
    shown = [piece.shown_tokens for piece in pieces]
    assert shown == sorted(shown)


def test_a_token_after_half_a_character_begins_behind_its_replacement() -> None:
    detokenizer = Detokenizer()
    for token in (b"a", b"\xf0\x9f", b"", b"b", "€".encode()[:1], "€".encode()[1:]):
        detokenizer.push(token)
    assert detokenizer.starts == [0, 1, 1, 2, 3, 3]
    assert detokenizer.end == 4
