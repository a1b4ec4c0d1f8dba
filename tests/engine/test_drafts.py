"""What is guessed from what was there before, and that it stays with its salt and within its room."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from engine.drafts import LONGEST, Answers, History, Match, guess
from engine.kv.salts import Layered

TOKENS = st.lists(st.integers(0, 4), max_size=60)


def history(tokens: list[int]) -> History:
    made = History()
    made.extend(tokens)
    return made


def guessed(tokens: list[int], most: int = 8) -> list[int]:
    return [one.token for one in guess(history(tokens).matches(tokens, "prompt"), most)]


def plain_matches(tokens: list[int], context: list[int]) -> list[tuple[int, int]]:
    """The twin: every place that is followed by something, compared token by token."""
    found = []
    for place in range(len(tokens) - 1, 1, -1):
        length = 0
        while length < min(place, len(context), LONGEST):
            if tokens[place - 1 - length] != context[-1 - length]:
                break
            length += 1
        if length >= 2:
            found.append((length, place))
    return found[:8]


def test_what_followed_the_same_words_is_guessed() -> None:
    assert guessed([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9, 2, 3, 4, 5, 9]


def test_nothing_is_guessed_after_words_that_were_not_there() -> None:
    assert guessed([1, 2, 3, 4]) == []
    assert guessed([1]) == []
    assert guessed([]) == []


def test_an_end_that_repeats_itself_goes_on_repeating() -> None:
    assert guessed([7, 8, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]
    assert guessed([9, 5, 5, 5, 5], 3) == [5, 5, 5]


def test_the_longer_match_is_believed_and_of_equals_the_more_frequent() -> None:
    longer = [1, 2, 3, 50, 8, 2, 3, 60, 9, 1, 2, 3]
    assert guessed(longer, 1) == [50]
    often = [2, 3, 50, 2, 3, 60, 2, 3, 50, 7, 2, 3]
    [one] = guess(history(often).matches(often, "prompt"), 1)
    assert one.token == 50
    assert one.share == 2 / 3
    assert one.length == 2


def test_each_right_guess_makes_the_match_longer() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 2, 3]
    lengths = [one.length for one in guess(history(tokens).matches(tokens, "prompt"), 3)]
    assert lengths == [2, 3, 4]


@given(tokens=TOKENS, pieces=st.lists(st.integers(1, 9), max_size=30))
def test_places_are_those_that_comparing_everything_finds(
    tokens: list[int], pieces: list[int]
) -> None:
    made, start = History(), 0
    for piece in pieces:  # it does not matter in which pieces the tokens came
        made.extend(tokens[start : start + piece])
        start += piece
    made.extend(tokens[start:])
    found = [(match.length, match.place) for match in made.matches(tokens, "prompt")]
    # the pair at the very end is the first place that is tried, and nothing follows it
    assert found == plain_matches(tokens, tokens)[: len(found)]
    assert len(found) >= min(7, len(plain_matches(tokens, tokens)))


@given(st.lists(TOKENS, max_size=5), TOKENS)
def test_no_guess_runs_from_one_answer_into_the_next(
    answers: list[list[int]], context: list[int]
) -> None:
    store = Answers()
    for answer in answers:
        store.note("s", answer, answer_start=0)
    texts = [tuple(answer) for answer in answers]
    for match in store.matches("s", context):
        tokens = [one.token for one in guess([match], 5)]
        words = (*context[len(context) - match.length :], *tokens)
        assert any(_within(words, text) for text in texts) or _repeats(match)


def _within(words: tuple[int, ...], text: tuple[int, ...]) -> bool:
    return any(text[at : at + len(words)] == words for at in range(len(text)))


def _repeats(match: Match) -> bool:
    """The last answer has no end yet: its guess may go on with itself."""
    return match.place + 5 > len(match.history.tokens)


def test_an_answer_is_guessed_from_its_first_word_under_its_salt_alone() -> None:
    store = Answers()
    store.note("a", [1, 2, 3, 4, 5], answer_start=3)
    assert [one.token for one in guess(store.matches("a", [9, 2, 3]), 4)][:2] == [4, 5]
    assert store.matches("b", [9, 2, 3]) == []
    assert guess(store.matches("a", [9, 2, 3]), 1)[0].source == "answers"
    store.note("a", [1, 2, 3], answer_start=3)  # nothing was answered
    assert store.salts == 1


def test_a_forgotten_salt_guesses_nothing_more() -> None:
    store = Answers()
    for salt in "abc":
        store.note(salt, [1, 2, 3, 4], answer_start=2)
    store.forget("a")
    store.forget("unknown")
    assert store.matches("a", [1, 2]) == []
    assert store.matches("b", [1, 2]) != []
    store.forget()
    assert store.matches("b", [1, 2]) == []
    assert repr(store) == "Answers(salts=0 bytes=0 of 16777216)"


def test_of_two_salts_the_one_of_the_end_parts_and_either_can_be_forgotten() -> None:
    store = Answers()
    mine, yours = Layered("base", "me", 2), Layered("base", "you", 2)
    store.note(mine, [1, 2, 3, 4], answer_start=2)
    assert store.matches(yours, [1, 2]) == []
    assert store.matches("base", [1, 2]) == []
    assert store.matches("me", [1, 2]) == store.matches(mine, [1, 2]) != []
    store.note("you", [1, 2, 3, 4], answer_start=2)
    store.forget("base")
    assert store.matches(mine, [1, 2]) == []
    assert store.matches(yours, [1, 2]) != []
    store.forget("you")
    assert repr(store) == "Answers(salts=0 bytes=0 of 16777216)"


def test_the_salt_that_was_quiet_longest_goes_first() -> None:
    store = Answers(budget_bytes=10_000)
    answer = list(range(20))
    for salt in "abcd":
        store.note(salt, answer, answer_start=0)
    assert store.salts == 4
    store.matches("a", [1, 2])  # asked for: no longer the quietest
    store.note("e", answer, answer_start=0)
    assert {salt for salt in "abcde" if store.matches(salt, [1, 2])} == set("acde")
    assert 0 < store.nbytes <= 10_000


def test_one_salt_takes_at_most_half_and_keeps_its_latest_answers() -> None:
    dice = random.Random(0)
    store = Answers(budget_bytes=100_000)
    answer: list[int] = []
    for _ in range(60):
        answer = [dice.randrange(50_000) for _ in range(30)]
        store.note("a", answer, answer_start=0)
        assert store.nbytes <= 50_000
        assert [one.token for one in guess(store.matches("a", answer[:5]), 3)] == answer[5:8]
    endless = [dice.randrange(50_000) for _ in range(5000)]
    store.note("a", endless, answer_start=0)
    assert store.nbytes <= 50_000


def test_the_bytes_that_are_counted_are_about_those_that_are_taken() -> None:
    dice = random.Random(0)
    tokens = [dice.randrange(50_000) for _ in range(20_000)]
    tracemalloc.start()
    made = history(tokens)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.6 < made.nbytes / taken < 1.6
