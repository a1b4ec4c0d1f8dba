"""What the numbers of one conversation recommend, and that they are its numbers."""

from dataclasses import replace
from typing import Any

import pytest

from policies.analytics import (
    RECENT_GAPS,
    RECENT_QUESTIONS,
    Recommendation,
    Tally,
    recommend,
    spoken,
)
from policies.conversation import Shape
from policies.outcome import Outcome
from tests.policies.making import RULES, plan_of

SHAPE = Shape(messages=3, mean_characters=10.0, kind="general", repetition=0.5)
HIT = Outcome(key="k", tier="warm", level="response", hit=True, tokens_saved=7)
MISS = Outcome(key="k", tier="warm", miss_reason="cold", miss_tokens=5, completion_tokens=2)
STORED = plan_of({"enabled": True})
PASSED_BY = plan_of({})


class Told:
    """A conversation, told call by call."""

    def __init__(self, shape: Shape = SHAPE) -> None:
        self.now = 1000.0
        self.tally = Tally(first_s=self.now, last_s=self.now, shape=shape)

    def call(
        self,
        outcome: Outcome = MISS,
        *,
        plan: Any = STORED,
        question: bytes | None = None,
        after_s: float = 10.0,
        times: int = 1,
    ) -> "Told":
        for _ in range(times):
            self.now += after_s
            if outcome.level in {"none", "prefix"}:
                self.tally.computed(plan, outcome, seconds=0.5, question=question, now=self.now)
            else:
                self.tally.stored(plan, outcome, cost_s=2.0, now=self.now)
        return self

    @property
    def advice(self) -> dict[str, Recommendation]:
        return {one.action: one for one in recommend(self.tally, RULES)}


def test_calls_are_summed_by_what_became_of_them() -> None:
    told = Told().call(question=b"a").call(HIT, times=2, after_s=5)
    told.call(replace(MISS, level="prefix", hit=True, tokens_saved=4))
    told.call(replace(HIT, level="negative", tokens_saved=0))
    told.call(replace(MISS, collapsed=True, miss_reason="expired", tokens_saved=7))
    tally = told.tally
    assert (tally.calls, tally.hits, tally.stored_hits, tally.repeats) == (6, 4, 3, 3)
    assert tally.levels == {"none": 2, "response": 2, "prefix": 1, "negative": 1}
    assert (tally.tokens_saved, tally.seconds_saved) == (7 + 7 + 4 + 7, 4.0)
    assert (tally.answers, tally.seconds_computing, tally.miss_tokens) == (2, 1.0, 10)
    assert (tally.expired, tally.first_s, tally.last_s) == (1, 1000.0, told.now)
    assert list(tally.gaps_s) == [5, 5, 10, 10, 10]
    assert (tally.tier, tally.ttl_s) == ("warm", 1800)


def test_a_question_that_comes_again_is_a_repeat_whether_or_not_it_was_stored() -> None:
    told = Told().call(question=b"a").call(question=b"b").call(question=b"a").call(question=None)
    assert (told.tally.repeats, told.tally.uncached_repeats) == (1, 0)
    told.call(question=b"b", plan=PASSED_BY)
    assert (told.tally.repeats, told.tally.uncached, told.tally.uncached_repeats) == (2, 1, 1)


def test_only_recent_questions_and_gaps_are_remembered() -> None:
    told = Told()
    for number in range(RECENT_QUESTIONS + 1):
        told.call(question=b"%d" % number)
    assert len(told.tally.questions) == RECENT_QUESTIONS
    assert len(told.tally.gaps_s) == RECENT_GAPS
    told.call(question=b"0")
    assert told.tally.repeats == 0
    told.call(question=b"%d" % RECENT_QUESTIONS)
    assert told.tally.repeats == 1


def test_a_clock_set_back_makes_no_gap_shorter_than_nothing() -> None:
    told = Told().call().call(after_s=-5)
    told.call(HIT, after_s=-5)
    assert list(told.tally.gaps_s) == [0.0, 0.0]


def test_too_few_numbers_recommend_nothing() -> None:
    assert Told().advice == {}
    assert Told().call(times=4).advice == {}
    assert Told().call(HIT, times=4).advice == {}


def test_what_repeats_past_the_cache_should_be_stored() -> None:
    told = Told().call(question=b"a", plan=PASSED_BY, times=2)
    assert told.advice == {}
    advice = told.call(question=b"a", plan=PASSED_BY).advice["enable"]
    assert advice.value is True
    assert advice.measured == {"uncached_calls": 3, "repeats": 2, "mean_compute_s": 0.5}
    assert advice.because.startswith("2 of 3 calls")


def test_repeats_that_others_computed_are_named_without_a_time() -> None:
    waiting = replace(MISS, collapsed=True)
    told = Told().call(waiting, question=b"a", plan=PASSED_BY, times=3)
    assert told.advice["enable"].measured["mean_compute_s"] == 0


def test_what_never_repeats_need_not_be_stored_once_an_answer_could_have_grown_old() -> None:
    told = Told()
    for number in range(5):
        told.call(question=b"%d" % number, after_s=350)
    assert told.advice == {}, "an answer lives for 1800 s, and 1750 s were seen"
    advice = told.call(question=b"5", after_s=50).advice["disable"]
    assert (advice.value, advice.measured) == (False, {"cached_calls": 6, "repeats": 0})
    assert advice.span_s == 1800
    assert "disable" not in told.call(question=b"0").advice
    assert "disable" not in Told().call(plan=PASSED_BY, times=9, after_s=3600).advice


EXPIRED = replace(MISS, miss_reason="expired")


@pytest.mark.parametrize(
    ("gap_s", "ttl_s", "tier"),
    [
        (10.0, None, None),  # they expired, though not for want of ttl
        (1000.0, 3600, "cold"),
        (500_000.0, 604_800, "cold"),
    ],
)
def test_lifetime_and_tier_follow_the_gaps_where_answers_expired(
    gap_s: float, ttl_s: float | None, tier: str | None
) -> None:
    told = Told().call(HIT, times=4, after_s=gap_s)
    assert told.advice == {}, "nothing expired, so nothing is to be gained"
    advice = told.call(EXPIRED, after_s=gap_s).advice
    found = {action: one.value for action, one in advice.items()}
    assert found == ({} if ttl_s is None else {"ttl": ttl_s, "tier": tier})
    for one in advice.values():
        assert (one.measured["gaps"], one.measured["gap_p90_s"]) == (4, gap_s)
        assert one.measured["expired"] == 1
        assert one.span_s == 5 * gap_s


@pytest.mark.parametrize("last", [HIT, EXPIRED, replace(HIT, stale=True)])
def test_a_ttl_is_never_lowered(last: Outcome) -> None:
    long = plan_of({"enabled": True, "ttl": 86_400})
    told = Told().call(HIT, plan=long, times=100).call(last, plan=long)
    assert told.advice == {}


def test_no_tier_with_a_shorter_life_is_recommended() -> None:
    long = plan_of({"enabled": True, "ttl": 86_400, "tier": "hot"})
    told = Told().call(HIT, plan=long, times=14, after_s=50_000).call(EXPIRED, plan=long)
    assert {action: one.value for action, one in told.advice.items()} == {"ttl": 604_800}


def test_a_ttl_is_not_recommended_beyond_what_was_observed() -> None:
    told = Told().call(after_s=1).call(HIT, after_s=950)
    told.call(HIT, times=2, after_s=600).call(EXPIRED, after_s=600)
    assert told.tally.gap_p90_s == 950
    assert told.advice == {}, "3600 s were wanted, and 2751 s were seen"
    assert told.call(EXPIRED, times=2, after_s=600).advice["ttl"].value == 3600


def test_one_long_gap_in_ten_does_not_decide() -> None:
    told = Told().call(HIT, times=10, after_s=2000).call(EXPIRED, after_s=50_000)
    assert told.tally.gap_p90_s == 2000
    assert told.advice["ttl"].value == 7200


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45, "45 s"), (480, "8 min"), (7200, "2 h"), (93_600, "26 h"), (259_200, "3 d")],
)
def test_a_span_is_said_in_a_fitting_unit(seconds: float, words: str) -> None:
    assert spoken(seconds) == words
    told = Told().call(question=b"a", plan=PASSED_BY, times=3, after_s=seconds)
    assert f"observed for {spoken(3 * seconds)}" in told.advice["enable"].because


def test_without_the_store_there_is_no_lifetime_to_mend() -> None:
    told = Told().call(question=b"a", plan=PASSED_BY, times=9)
    assert told.advice.keys() == {"enable"}


@pytest.mark.parametrize(("messages", "advised"), [(20, False), (21, True)])
def test_a_very_long_conversation_is_better_cut(messages: int, *, advised: bool) -> None:
    told = Told(replace(SHAPE, messages=messages)).call()
    assert ("chunking" in told.advice) is advised


def test_why_to_cut_says_what_is_computed() -> None:
    told = Told(replace(SHAPE, messages=30)).call(HIT)
    assert told.advice == {}, "nothing is computed that shorter ones would save"
    measured = told.call(times=2).advice["chunking"].measured
    assert measured == {"messages": 30, "mean_prompt_tokens_computed": 5}
