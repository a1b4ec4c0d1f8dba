"""The arithmetic of the benchmark; the rest of it is run by hand."""

from loadtest.bench_speculation import QUESTIONS, SIMILAR, Answered, Kind, prompts


def answered(
    tokens: int, steps: int, seconds: float, *, drafted: int = 0, right: int = 0
) -> Answered:
    return Answered(tuple(range(tokens)), steps, seconds, {"answers": drafted}, {"answers": right})


def test_rates_are_of_the_tokens_after_the_first_and_ratios_of_pairs() -> None:
    kind = Kind("repeated", 0.0)
    kind.pairs = [
        (answered(11, 10, 2.0), answered(11, 2, 0.5, drafted=10, right=8)),
        (answered(21, 20, 2.0), answered(21, 4, 1.0, drafted=20, right=16)),
    ]
    row = kind.row()
    assert row.off_per_s.median == 7.5
    assert row.on_per_s.median == 20.0
    assert (row.faster.low, row.faster.high) == (2.0, 4.0)
    assert row.tokens_a_step == 5.0
    assert row.acceptance("answers") == "24/30"
    assert row.acceptance("prompt") == "-"
    assert row.same


def test_another_text_is_noticed() -> None:
    kind = Kind("fresh", 0.0, [(answered(3, 2, 1.0), answered(4, 2, 1.0))])
    assert not kind.row().same


def test_what_is_repeated_was_fresh_before_and_what_is_similar_was_not() -> None:
    asked = prompts(len(QUESTIONS))
    assert list(asked) == ["fresh", "repeated", "similar", "quoting"]
    assert asked["repeated"] == asked["fresh"]
    assert not set(SIMILAR) & set(QUESTIONS)
    assert len(set(asked["quoting"])) == len(QUESTIONS)
    assert all(len(prompt) > 300 for prompt in asked["quoting"])
