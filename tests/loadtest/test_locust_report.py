"""What a run of the users came to."""

from __future__ import annotations

from typing import Any

from loadtest.locust_report import Times, content, difference, markdown, saved_s, trends_of
from loadtest.tally import Tally

TIMES = {
    ("faq", "response"): Times(10, 2.0, 4.0),
    ("faq", "none"): Times(1, 300.0, 900.0),
    ("faq", "prefix"): Times(3, 100.0, 200.0),
    ("tenants", "response"): Times(5, 2.0, 4.0),
    ("document", "none"): Times(5, 700.0, 900.0),
}
KNOWN: dict[str, Any] = {
    "command": "locust -u 100",
    "at": "2026-11-26T12:00:00+00:00",
    "commit": "abc",
    "versions": {"python": "3.11.7"},
    "machine": {"cpu": "CPU", "cores": 2},
}
COUNTED = {
    "savings": {"response": {"seconds": 12.5}}, "prompt_tokens": 800, "prompt_tokens_reused": 300,
}  # fmt: skip


def tally() -> Tally:
    made = Tally()
    made.add("faq", "response", 10, tokens=400)
    made.add("faq", "none", 1)
    made.add("document", "none", 5)
    return made


def made(**other: Any) -> dict[str, Any]:
    memory = {"gateway": [(float(at), 60.0) for at in range(20)], "engine": [(0.0, 500.0)]}
    given: dict[str, Any] = {
        "rows": tally().rows(), "times": TIMES, "failures": 0, "requests": 16,
        "gateway": COUNTED, "memory": memory, "users": 100,
    }  # fmt: skip
    return content(**{**given, **other})


def test_a_stored_answer_saves_what_a_computed_one_of_its_scenario_took() -> None:
    # The computed ones took (1 x 300 + 3 x 100) / 4 = 150 ms; each of ten hits was 148 ms sooner.
    assert saved_s(TIMES) == {"faq": 1.48}


def test_hits_that_were_slower_saved_nothing() -> None:
    slower = {("faq", "response"): Times(1, 9.0, 9.0), ("faq", "none"): Times(1, 3.0, 3.0)}
    assert saved_s(slower) == {"faq": 0.0}


def test_counters_are_told_from_their_start() -> None:
    before = {"a": {"calls": 3, "note": "x"}, "b": None}
    after = {"a": {"calls": 5, "note": "x"}, "b": None, "c": 1.5}
    assert difference(before, after) == {"a": {"calls": 2, "note": "x"}, "b": None, "c": 1.5}
    assert difference(None, after) == after


def test_the_report_says_two_rates_saved_seconds_and_memory() -> None:
    found = made()
    assert (found["stored_rate"], found["reuse_rate"]) == (0.625, 0.375)
    assert found["saved_s"] == {"gateway": 12.5, "users": 1.5}
    assert found["memory"]["gateway"]["flat"] is True
    assert "engine" not in found["memory"]  # one sample is no trend
    assert [row["scenario"] for row in found["scenarios"]] == ["document", "faq", "all"]


def test_people_read_the_same() -> None:
    text = markdown(KNOWN, made(), tally().rows())
    assert "**0 failures**" in text
    assert "Answers from the store **62.5%**, prompt tokens reused **37.5%**" in text
    assert "**12 s** of computing" in text
    assert "| faq | 11 | 90.9% | 0.0% | 0.0% | 9.1% | 400 |" in text
    assert "| faq | response | 10 | 2.00 | 4.00 |" in text
    assert "| gateway | 60.0 | 0 | 0 | yes |" in text


def test_a_gateway_that_does_not_say_is_not_quoted() -> None:
    found = made(gateway=None, memory={})
    assert found["saved_s"]["gateway"] is None
    text = markdown(KNOWN, found, tally().rows())
    assert "of computing" not in text
    assert "prompt tokens reused (the gateway does not say)" in text
    assert "slope" not in text


def test_only_long_series_have_a_trend() -> None:
    assert list(trends_of({"a": [(0.0, 1.0)], "b": [(float(at), 1.0) for at in range(9)]})) == ["b"]
