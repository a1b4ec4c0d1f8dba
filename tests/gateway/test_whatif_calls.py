"""Calls of the journal become what the deciders know."""

from gateway.whatif_calls import as_recorded, computed_now, ending, linked, plan_of
from gateway.whatif_wishes import Decided
from policies.outcome import Completed, Failed
from tests.kit.journals import hashed, hit, missed, stored

WISH = Decided("hot", 60.0, "low")


def test_an_answer_is_linked_to_the_latest_call_that_had_it_computed() -> None:
    old, collapsed, new = missed(1.0, "a"), missed(2.0, "a", collapsed=True), missed(3.0, "a")
    unstored, other = missed(4.0, "a", store=False), missed(4.0, "b")
    first, second, nobodys = stored(5.0, "a"), stored(6.0, "a"), stored(7.0, "a")
    found = linked([old, collapsed, new, unstored, other, first, second, nobodys])
    assert {call.at: line.at for call, line in found.values()} == {3.0: 5.0, 1.0: 6.0}


def test_who_found_something_stale_had_it_renewed() -> None:
    fresh, stale = hit(1.0, "a"), hit(2.0, "a", stale=True)
    renewed = stored(3.0, "a")
    assert linked([fresh, stale, renewed]) == {id(stale): (stale, renewed)}
    assert linked([fresh, renewed]) == {}


def test_a_plan_reads_and_stores_as_the_call_did_and_keeps_as_is_decided_now() -> None:
    call = missed(1.0, "a", max_age_s=9.0, match="key")
    plan = plan_of(call, WISH)
    assert (plan.key.hex(), plan.tier, plan.ttl_s, plan.priority) == (hashed("a"), *WISH)
    assert (plan.may_read, plan.may_store, plan.max_age_s, plan.match) == (True, True, 9.0, "key")
    assert plan_of(call, WISH._replace(ttl_s=0.0)).may_store is False
    assert plan_of(missed(1.0, "a", read=False, store=False), WISH).why_not == "ttl_0"


def test_outcomes_are_those_of_the_journal_or_of_now() -> None:
    call = missed(1.0, "a", level="prefix", hit=True, hit_tokens=16, tokens_saved=16)
    assert (as_recorded(call).level, as_recorded(call).tokens_saved) == ("prefix", 16)
    along = as_recorded(call, collapsed=True)
    assert (along.collapsed, along.tokens_saved) == (True, 110)
    now = computed_now(hit(1.0, "a"), plan_of(call, WISH), reused=32, collapsed=False)
    assert (now.level, now.hit, now.tokens_saved, now.miss_tokens) == ("prefix", True, 32, 68)
    alone = computed_now(hit(1.0, "a"), plan_of(call, WISH), reused=0, collapsed=True)
    assert (alone.level, alone.hit, alone.tokens_saved) == ("none", False, 110)


def test_an_ending_is_the_answer_or_the_refusal() -> None:
    done = ending(stored(1.0, "a"))
    assert isinstance(done, Completed)
    assert (done.usage.prompt_tokens, done.duration_s) == (100, 1.0)
    refused = ending(stored(1.0, "a", status=404))
    assert isinstance(refused, Failed)
    assert refused.status == 404
