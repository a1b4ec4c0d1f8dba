"""How many guesses are made for whom, and what is learned from them."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.drafts import Answers, Guess
from engine.kv.salts import Layered
from engine.request import GenerationRequest, SamplingParams, Sequence
from engine.speculation import Chances, RowCost, Speculation, share_rows

NO_PADDING = RowCost(fixed=2.0)


def decoding(prompt: list[int], *, name: str = "a", **how: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=how.pop("max_tokens", 20))
    request = GenerationRequest(id=name, prompt=tuple(prompt), sampling=sampling, **how)
    return Sequence(request=request, serial=0, tokens=list(prompt), computed=len(prompt) - 1)


def all_room(sequence: Sequence, tokens: int) -> int:
    return tokens


def test_a_step_is_padded_to_the_next_row_count_and_to_whole_tiles() -> None:
    cost = RowCost((8, 32, 128), fixed=32.0)
    assert [cost.of(rows) for rows in (1, 8, 9, 32, 33, 128)] == [40, 40, 64, 64, 160, 160]
    assert cost.of(129) == 64 + 128 + 8
    assert NO_PADDING.of(3) == 5.0


def test_rows_that_are_padding_anyway_are_used_and_not_one_more() -> None:
    padded = RowCost((8, 16), fixed=32.0)
    hopeless = [[0.02] * 12]
    assert share_rows(hopeless, padded, 20) == [7]
    assert share_rows([[0.9] * 12], padded, 20) == [12]
    assert share_rows([[], []], padded, 20) == [0, 0]


def test_where_each_row_costs_the_best_chances_get_them() -> None:
    assert share_rows([[0.9, 0.8, 0.1], [0.2]], NO_PADDING, 20) == [2, 0]
    assert share_rows([[0.05]], NO_PADDING, 20) == [0]
    assert share_rows([[0.9, 0.8], [0.85]], NO_PADDING, 2) == [1, 1]


@given(
    st.lists(
        st.lists(st.floats(0.01, 1), max_size=3).map(lambda some: sorted(some, reverse=True)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([NO_PADDING, RowCost((2, 4, 8), fixed=4.0), RowCost()]),
)
def test_no_other_sharing_gives_more_tokens_for_its_cost(
    chances: list[list[float]], cost: RowCost
) -> None:
    def gain(counts: tuple[int, ...]) -> float:
        expected = len(chances) + sum(
            sum(own[:count]) for own, count in zip(chances, counts, strict=True)
        )
        return expected / cost.of(len(chances) + sum(counts))

    found = share_rows(chances, cost, 9)
    best = max(map(gain, product(*(range(len(own) + 1) for own in chances))))
    assert gain(tuple(found)) >= best - 1e-12


@pytest.mark.parametrize(
    ("streams", "cost", "most"),
    [
        (1, NO_PADDING, 8),
        (8, NO_PADDING, 8),
        (15, NO_PADDING, 1),
        (16, NO_PADDING, 0),
        (64, NO_PADDING, 0),
        (60, RowCost((32, 64), fixed=32.0), 4),
    ],
)
def test_the_more_answer_at_once_the_less_is_guessed(
    streams: int, cost: RowCost, most: int
) -> None:
    made = Speculation(most=8, cost=cost)
    ones = [decoding([1, 2] * 20, name=str(n), max_tokens=90) for n in range(streams)]
    for _ in range(3):  # all is right: every guess seems worth it
        made.draft(ones, all_room)
        made.withdraw()
        for one in ones:
            made.judge(one, len(one.drafter.guesses))
    made.draft(ones, all_room)
    assert sum(one.drafted for one in ones) == most


def test_chances_follow_what_happened() -> None:
    chances, one = Chances(), Guess(1, 4, 1.0, "prompt")
    other = Guess(1, 4, 1.0, "answers")
    first = chances.of(one)
    for _ in range(2000):
        chances.note(one, right=True)
    assert chances.of(one) > 0.98 > first
    assert chances.of(other) == first, "another source"
    for _ in range(2000):
        chances.note(one, right=False)
    assert chances.of(one) < 0.1, "what was long ago fades"


def test_guesses_stand_behind_the_tokens_until_they_are_withdrawn() -> None:
    made = Speculation(most=3, cost=RowCost())
    one, other = decoding([1, 2, 3, 1, 2]), decoding([4, 5, 6], name="b")
    made.draft([one, other], all_room)
    assert one.tokens == [1, 2, 3, 1, 2, 3, 1, 2]
    assert one.drafted == 3
    assert one.generated == 0
    assert other.drafted == 0
    assert made.withdraw() == [one]
    assert one.tokens == [1, 2, 3, 1, 2]
    assert one.drafted == 0
    assert made.withdraw() == []
    made.judge(one, 1)
    assert made.as_json()["prompt"] == {"drafted": 3, "accepted": 1}
    assert repr(made).startswith("Speculation(most=3 prompt=1/3 answers=0/0 Answers(")


def test_no_more_is_guessed_than_may_be_said_or_has_room() -> None:
    made = Speculation(most=8, cost=RowCost())
    one = decoding([1, 2, 3, 1, 2], max_tokens=3)
    made.draft([one], all_room)
    assert one.drafted == 2, "the third token comes from the last guess's row"
    made.withdraw()
    last = decoding([1, 2, 3, 1, 2], max_tokens=1)
    made.draft([last], all_room)
    assert last.drafted == 0
    tight = decoding([1, 2, 3, 1, 2])
    made.draft([tight], lambda sequence, tokens: 1)
    assert tight.drafted == 1


def test_off_means_off() -> None:
    made = Speculation(most=0, cost=RowCost())
    one = decoding([1, 2, 3, 1, 2])
    made.draft([one], all_room)
    made.ended(one)
    assert one.drafted == 0
    assert made.answers.nbytes == 0
    some = Speculation(most=4, cost=RowCost())
    some.stop(one)
    some.draft([one], all_room)
    assert one.drafted == 0, "for this sequence"


def test_guesses_that_are_never_right_stop_but_for_one_now_and_then() -> None:
    made = Speculation(most=4, cost=NO_PADDING)
    one = decoding([1, 2, 3, 1, 2], max_tokens=500)
    made.draft([one], all_room)
    tried = []
    for _ in range(200):
        tried.append(one.drafted)
        made.withdraw()
        if tried[-1]:
            made.judge(one, 0)
        made.draft([one], all_room)
    assert tried[0] > 0
    assert 1 <= sum(tried[100:]) <= 4


def answered(made: Speculation, *, name: str = "x", **how: Any) -> Sequence:
    one = decoding([7, 8], name=name, **how)
    one.tokens += [9, 10, 11]
    made.ended(one)
    return one


def guesses_after(made: Speculation, **how: Any) -> int:
    one = decoding([6, 7, 8], name="after", **how)
    made.draft([one], all_room)
    made.withdraw()
    return len(one.drafter.guesses)


def test_an_answer_is_proposed_to_its_own_salt_and_only_if_it_may_be_kept() -> None:
    made = Speculation(most=4, cost=RowCost())
    answered(made, salt="a")
    assert guesses_after(made, salt="a") == 4
    assert guesses_after(made, salt="b") == 0
    assert guesses_after(made, salt="a", reuse=False) == 0
    for how in ({"reuse": False}, {"ttl_s": 0.0}):
        other = Speculation(most=4, cost=RowCost(), answers=Answers())
        answered(other, **how)
        assert guesses_after(other) == 0, how


def test_what_is_forgotten_is_not_proposed_nor_is_what_was_being_answered() -> None:
    made = Speculation(most=4, cost=RowCost())
    answered(made, salt="a")
    running = decoding([7, 8], salt=Layered("base", "a", 1))
    after_base = decoding([7, 8], salt=Layered("base", "c", 1))
    elsewhere = decoding([7, 8], salt="b", name="b")
    made.forget("a", [running, elsewhere, after_base])
    made.forget("base", [after_base])
    assert guesses_after(made, salt="a") == 0
    for one in (running, elsewhere, after_base):
        one.tokens += [9, 10, 11]
        made.ended(one)
    assert guesses_after(made, salt="a") == 0
    assert guesses_after(made, salt="c") == 0
    assert guesses_after(made, salt="b") == 4
    made.forget(None, [])
    assert guesses_after(made, salt="b") == 0
