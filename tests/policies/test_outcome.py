"""policies.outcome: the facts of an answer."""

from dataclasses import fields

from policies.outcome import Abandoned, Completed, Ending, Failed, Outcome, Usage


def test_what_was_not_found_had_to_be_computed() -> None:
    assert Usage(prompt_tokens=100, hit_tokens=64).miss_tokens == 36
    assert Usage(prompt_tokens=10, hit_tokens=64).miss_tokens == 0


def test_an_outcome_of_which_nothing_is_known_claims_nothing() -> None:
    outcome = Outcome(key="ab", tier="warm")
    claims = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    assert not any(
        value for name, value in claims.items() if name not in {"key", "tier", "level", "status"}
    )
    assert outcome.level == "none"


def test_an_ending_is_one_of_three() -> None:
    endings: list[Ending] = [
        Completed(Usage(), 1.0),
        Failed(status=503, code="x", message="y", fault="backend"),
        Abandoned(),
    ]
    assert len(set(endings)) == 3
