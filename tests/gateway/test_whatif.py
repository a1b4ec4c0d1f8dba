"""The journal's calls against the tiers that serve, under the journal's rules and under others."""

from typing import Any

import pytest

from gateway.trace import ClearedLine, Event, JournalTrace, Recorded
from gateway.whatif import Blank, Replayed, Responses, _now
from policies.rules import Rules
from tests.kit.journals import (
    OVERHEAD,
    asked_and_stored,
    begun,
    configured,
    hashed,
    hit,
    missed,
    rules_of,
    stored,
    trace_of,
)


class Kv:
    """Finds eight tokens in every prompt, and counts what was computed."""

    def __init__(self) -> None:
        self.computed: list[float] = []

    def computes(self, call: Recorded) -> int:
        self.computed.append(call.at)
        return 8


def replayed(
    events: list[Event], *, trace: JournalTrace | None = None, kv: Kv | None = None, **tiers: Any
) -> Replayed:
    found = trace or trace_of(events)
    return run(found, rules_of(found, **tiers), kv).run()


def run(trace: JournalTrace, rules: Rules, kv: Kv | None = None) -> Responses:
    freshness = trace.begin.config["freshness"]
    return Responses(
        trace,
        rules,
        {},
        kv or Kv(),
        recorded_jitter=freshness["jitter"],
        recorded_negative_ttl_s=freshness["negative_ttl"],
    )


def levels(found: Replayed) -> dict[str, int]:
    return {level: one.requests for level, one in found.statistics.by("level").items()}


def fill(found: Replayed, tier: str) -> Any:
    return next(one for one in found.fills if one.tier == tier)


def test_what_ran_is_found_again() -> None:
    found = replayed([*asked_and_stored(0.0, "a"), hit(5.0, "a"), missed(6.0, "b", store=False)])
    assert levels(found) == {"none": 2, "response": 1}
    total = found.statistics.total
    assert (total.hits, total.tokens_saved, total.seconds_saved) == (1, 110, 1.0)
    assert fill(found, "warm").size_bytes == found.peak_bytes["warm"] == 800 + OVERHEAD
    assert found.there_before == 0


def test_a_shorter_ttl_makes_misses_of_hits_which_are_computed_and_stored_again() -> None:
    kv = Kv()
    events = [*asked_and_stored(0.0, "a"), hit(50.0, "a", stored_at=1.0), hit(55.0, "a")]
    found = replayed(events, kv=kv, warm={"ttl": 30})
    # at 50 it is too old; computed in the second that it took, it is there again at 55
    assert levels(found) == {"none": 1, "prefix": 1, "response": 1}
    assert kv.computed == [0.0, 50.0]
    assert found.statistics.total.tokens_saved == 8 + 110


def test_a_longer_ttl_makes_hits_of_misses_and_nothing_is_stored_for_them() -> None:
    events = [*asked_and_stored(0.0, "a"), *asked_and_stored(2000.0, "a"), hit(2010.0, "a")]
    assert levels(replayed(events)) == {"none": 2, "response": 1}
    found = replayed(events, warm={"ttl": 4000})
    assert levels(found) == {"none": 1, "response": 2}
    assert fill(found, "warm").entries == 1


def test_what_has_no_room_sinks_and_then_is_gone() -> None:
    events = [
        event for place, name in enumerate("abcd") for event in asked_and_stored(place * 10.0, name)
    ]
    events += [hit(100.0, name) for name in "abcd"]
    room = 2 * (800 + OVERHEAD)
    found = replayed(events, warm={"max_bytes": room}, cold={"max_bytes": room})
    assert found.statistics.total.hits >= 3
    assert fill(found, "warm").entries == fill(found, "cold").entries == 2
    none = replayed(events, warm={"max_bytes": 0}, cold={"max_bytes": 0})
    assert levels(none) == {"none": 4, "prefix": 4}


def test_a_call_that_comes_while_its_like_is_computed_reads_along_once_more() -> None:
    events = [*asked_and_stored(0.0, "a"), hit(50.0, "a"), hit(50.5, "a"), hit(52.0, "a")]
    found = replayed(events, warm={"ttl": 10})
    total = found.statistics.total
    assert (total.collapsed, total.requests) == (1, 4)
    assert levels(found) == {"none": 2, "prefix": 1, "response": 1}


def test_who_read_along_then_does_so_now_and_its_leader_may_have_become_a_hit() -> None:
    pair: list[Event] = [missed(2000.0, "a"), missed(2000.5, "a", collapsed=True, tokens_saved=110)]
    events = [*asked_and_stored(0.0, "a"), *pair, stored(2001.0, "a")]
    assert replayed(events).statistics.total.collapsed == 1
    assert levels(replayed(events, warm={"ttl": 4000})) == {"none": 1, "response": 2}


def test_a_miss_of_then_reads_along_with_what_is_computed_only_now() -> None:
    events = [*asked_and_stored(0.0, "a"), hit(50.0, "a"), missed(50.2, "a"), stored(51.2, "a")]
    found = replayed(events, warm={"ttl": 10})
    assert found.statistics.total.collapsed == 1
    assert found.statistics.total.tokens_saved == 8 + 110


def test_removals_remove_and_what_is_computed_meanwhile_is_not_stored() -> None:
    events = [
        *asked_and_stored(0.0, "a"),
        ClearedLine(at=3.0, keys=[hashed("a"), hashed("never there")]),
        missed(5.0, "a"),  # has no line "stored": cleared on its way
        missed(8.0, "a"),
    ]
    assert levels(replayed(events)) == {"none": 3}
    cleared: list[Event] = [
        *asked_and_stored(0.0, "a"),
        hit(50.0, "a"),
        ClearedLine(at=50.5, keys=[hashed("a")]),
        hit(60.0, "a"),
    ]
    assert levels(replayed(cleared, warm={"ttl": 10})) == {"none": 1, "prefix": 2}


def test_stale_answers_are_served_and_renewed_as_the_rules_say() -> None:
    events = [*asked_and_stored(0.0, "a"), hit(50.0, "a"), hit(55.0, "a")]
    found = replayed(events, warm={"ttl": 30, "stale_while_revalidate": 60})
    assert levels(found) == {"none": 1, "response": 2}
    assert found.statistics.total.stale == 1, "by 55 it has been renewed"


def test_a_renewal_of_the_journal_happens_to_who_finds_something_stale_now_too() -> None:
    config = configured(
        freshness={"jitter": 0}, tiers={"warm": {"ttl": 30, "stale_while_revalidate": 60}}
    )
    events = [
        *asked_and_stored(0.0, "a", ttl_s=30.0),
        hit(50.0, "a", stale=True, ttl_s=30.0),
        stored(51.0, "a"),
        hit(60.0, "a", stored_at=51.0, ttl_s=30.0),
    ]
    trace = trace_of(events, begun(config))
    found = replayed([], trace=trace)
    assert (levels(found), found.statistics.total.stale) == ({"none": 1, "response": 2}, 1)
    longer = replayed([], trace=trace, warm={"ttl": 55})
    assert (levels(longer)["response"], longer.statistics.total.stale) == (2, 1)


def test_a_stale_answer_stands_in_for_a_failing_backend_as_it_did() -> None:
    rule = {"ttl": 30, "stale_if_error": 300}
    failed = hit(50.0, "a", stale=True)
    assert levels(replayed([*asked_and_stored(0.0, "a"), failed], warm=rule))["response"] == 1
    worked = replayed([*asked_and_stored(0.0, "a"), hit(50.0, "a")], warm=rule)
    assert levels(worked) == {"none": 1, "prefix": 1}


def test_refusals_are_remembered_as_long_as_the_rules_say() -> None:
    told: dict[str, Any] = {"status": 404, "level": "negative", "tokens_saved": 0}
    events: list[Event] = [stored(0.0, "a", status=404, entry_ttl_s=60.0), hit(30.0, "a", **told)]
    assert levels(replayed(events)) == {"negative": 1}
    late: list[Event] = [stored(0.0, "a", status=404, entry_ttl_s=60.0), hit(90.0, "a", **told)]
    assert levels(replayed([*late, hit(95.0, "a", **told)])) == {"prefix": 1, "negative": 1}


def test_what_a_job_stored_is_there_and_lives_as_long_as_who_asks_for_it_decides() -> None:
    warmed = stored(0.0, "a", tier="hot", entry_ttl_s=100.0)
    assert levels(replayed([warmed, hit(50.0, "a")])) == {"response": 1}
    assert levels(replayed([warmed, hit(500.0, "a")])) == {"prefix": 1}
    again = stored(60.0, "a", tier="hot", entry_ttl_s=100.0)
    assert levels(replayed([warmed, hit(50.0, "a"), again, hit(200.0, "a")])) == {"response": 2}


def test_what_answered_before_the_journal_begins_was_there() -> None:
    events: list[Event] = [missed(99.0, "b", store=False), hit(100.0, "a", stored_at=50.0)]
    found = replayed(events)
    assert (found.there_before, found.statistics.total.hits) == (1, 1)
    late = replayed([missed(10.0, "b", store=False), hit(100.0, "a", stored_at=50.0)])
    assert (late.there_before, late.statistics.total.hits) == (0, 1)
    assert levels(late) == {"none": 1, "prefix": 1}, "a line is missing: it was stored unseen"


def test_lists_and_calls_without_the_store_are_as_they_were() -> None:
    kv = Kv()
    events: list[Event] = [
        hit(1.0, "a", parts=True, endpoint="embeddings", forwarded="partial"),
        missed(2.0, "b", key=None, tier=None, level="prefix", hit=True, hit_tokens=50),
        hit(3.0, "c", level="semantic"),
        missed(4.0, "d", preload=True),
    ]
    found = replayed(events, kv=kv)
    assert levels(found) == {"response": 1, "prefix": 1, "semantic": 1}
    assert kv.computed == [2.0, 4.0]
    assert set(found.statistics.by("tier")) == {"warm"}


def test_an_answer_that_is_too_large_now_is_not_kept() -> None:
    trace = trace_of([*asked_and_stored(0.0, "a"), hit(5.0, "a")])
    trace.begin.config["limits"]["max_entry_bytes"] = 500
    assert levels(replayed([], trace=trace)) == {"none": 1, "prefix": 1}


def test_lifetimes_are_shortened_by_the_draw_of_then() -> None:
    config = configured(freshness={"jitter": 0.5})
    events: list[Event] = [missed(0.0, "a"), stored(1.0, "a", entry_ttl_s=1350.0), hit(1300.0, "a")]
    trace = trace_of([*events, hit(1400.0, "a")], begun(config))
    assert levels(replayed([], trace=trace)) == {"none": 1, "response": 1, "prefix": 1}
    assert levels(replayed([], trace=trace, warm={"ttl": 2000})) == {"none": 1, "response": 2}
    unknown = trace_of([missed(0.0, "a"), stored(1.0, "a", entry_ttl_s=0.0), hit(9.0, "a")])
    assert levels(replayed([], trace=unknown))["response"] == 1


def test_calls_that_do_not_read_are_computed_and_replace_what_is_there() -> None:
    events = [*asked_and_stored(0.0, "a"), missed(10.0, "a", read=False), stored(11.0, "a")]
    found = run(trace_of([*events, hit(1805.0, "a")]), rules_of(trace_of(events)))
    assert levels(found.run()) == {"none": 2, "response": 1}
    assert [(call.at, good) for call, good in found.asked] == [(0.0, False), (1805.0, True)]


def test_a_turn_that_went_on_makes_room_for_others() -> None:
    events: list[Event] = []
    for at, name in ((0.0, "turn 1"), (10.0, "other")):
        events += asked_and_stored(at, name)
    events += [hit(20.0, "turn 1"), hit(21.0, "turn 1")]
    for at, name, older in ((30.0, "turn 2", "turn 1"), (40.0, "newer", None)):
        supersedes = None if older is None else hashed(older)
        events += asked_and_stored(at, name, supersedes=supersedes)
    events += [hit(50.0, "other"), hit(51.0, "turn 2")]
    room = {"max_bytes": 3 * (800 + OVERHEAD)}
    found = replayed(events, warm=room, cold={"max_bytes": 0})
    assert levels(found) == {"none": 4, "response": 4}


def test_a_blank_is_as_large_as_it_says_and_takes_nothing() -> None:
    assert len(Blank(10**12)) == 10**12
    assert bytes(Blank(5)) == b""


def test_a_store_that_waits_is_no_store_in_memory() -> None:
    async def waits() -> None:
        import asyncio

        await asyncio.sleep(0)

    waiting = waits()
    with pytest.raises(AssertionError, match="waited"):
        _now(waiting)
    waiting.close()
