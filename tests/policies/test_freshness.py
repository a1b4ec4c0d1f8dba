"""policies.freshness: what may still be served."""

from dataclasses import replace
from math import exp, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.freshness import Expired, Fresh, Stale, jittered, judge, last_use
from tests.policies.making import few, meta_of, plan_of

PLAN = plan_of()
SOFT = meta_of(stale_while_revalidate_s=30.0, stale_if_error_s=300.0)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (1000.0, Fresh(0, 100, False)),
        (1099.0, Fresh(99, 1, False)),
        (1100.0, Stale(100, 0, "revalidate")),
        (1129.0, Stale(129, -29, "revalidate")),
        (1130.0, Stale(130, -30, "on_error")),
        (1399.0, Stale(399, -299, "on_error")),
        (1400.0, Expired(400)),
    ],
)
def test_an_entry_is_fresh_then_stale_then_expired(now: float, expected: object) -> None:
    assert judge(SOFT, PLAN, now, 0.0, beta=1.0) == expected


def test_without_stale_rules_an_entry_expires_at_once() -> None:
    assert judge(meta_of(), PLAN, 1100.0, 0.0, beta=1.0) == Expired(100)


def test_a_refusal_is_never_served_stale() -> None:
    assert judge(replace(SOFT, status=404), PLAN, 1100.0, 0.0, beta=1.0) == Expired(100)


@pytest.mark.parametrize(("age_s", "verdict"), [(29, Fresh), (30, Fresh), (31, Expired)])
def test_a_client_may_ask_for_a_younger_answer(age_s: float, verdict: type) -> None:
    plan = replace(PLAN, max_age_s=30.0)
    assert isinstance(judge(SOFT, plan, 1000 + age_s, 0.0, beta=1.0), verdict)


def test_max_age_knows_no_stale_answer() -> None:
    plan = replace(PLAN, max_age_s=90.0)
    assert judge(SOFT, plan, 1110.0, 0.0, beta=1.0) == Expired(110)


def test_a_clock_set_back_makes_no_negative_age() -> None:
    assert judge(meta_of(), PLAN, 950.0, 0.0, beta=1.0) == Fresh(0, 100, False)


def test_a_clock_set_back_far_keeps_nothing_for_ever() -> None:
    assert judge(meta_of(), PLAN, 899.0, 0.0, beta=1.0) == Expired(0)


def is_refreshed(draw: float, *, left_s: float, beta: float = 1.0, **known: float) -> bool:
    verdict = judge(meta_of(**known), PLAN, 1100.0 - left_s, draw, beta=beta)
    assert isinstance(verdict, Fresh)
    return verdict.refresh_ahead


def test_refresh_ahead_follows_xfetch() -> None:
    # with cost 2 s and beta 1, the share of draws that refresh at 6 s before expiry is exp(-3)
    edge = 1 - exp(-3)
    assert not is_refreshed(edge - 0.001, left_s=6.0)
    assert is_refreshed(edge + 0.001, left_s=6.0)


def test_a_dearer_answer_is_refreshed_earlier_and_beta_scales_it() -> None:
    assert not is_refreshed(0.9, left_s=6.0)
    assert is_refreshed(0.9, left_s=6.0, cost_s=20.0)
    assert is_refreshed(0.9, left_s=6.0, beta=10.0)
    assert not is_refreshed(nextafter(1.0, 0.0), left_s=6.0, beta=0.0)


def test_nobody_refreshes_what_it_may_not_store_or_what_is_a_refusal() -> None:
    late = nextafter(1.0, 0.0)
    reader = plan_of(headers={"Cache-Control": "only-if-cached, no-store"})
    assert judge(meta_of(), reader, 1099.0, late, beta=9.0) == Fresh(99, 1, False)
    assert judge(meta_of(status=400), PLAN, 1099.0, late, beta=9.0) == Fresh(99, 1, False)


@given(
    now=st.floats(0, 1e10),
    ttl_s=st.floats(0, 1e6),
    draw=st.floats(0, 1, exclude_max=True),
    max_age_s=st.none() | st.floats(0, 1e6),
)
@few
def test_nothing_is_fresh_past_its_ttl_or_the_clients_patience(
    now: float, ttl_s: float, draw: float, max_age_s: float | None
) -> None:
    meta = replace(SOFT, ttl_s=ttl_s)
    verdict = judge(meta, replace(PLAN, max_age_s=max_age_s), now, draw, beta=1.0)
    assert verdict.age_s == max(0.0, now - meta.stored_at)
    if isinstance(verdict, Fresh):
        assert verdict.age_s < ttl_s
        assert 0 < verdict.ttl_left_s <= ttl_s
    if not isinstance(verdict, Expired):
        assert max_age_s is None or verdict.age_s <= max_age_s


@given(ttl_s=st.floats(0, 1e9), jitter=st.floats(-1, 2), draw=st.floats(0, 1))
@few
def test_jitter_only_shortens_and_by_no_more_than_its_share(
    ttl_s: float, jitter: float, draw: float
) -> None:
    found = jittered(ttl_s, jitter, draw)
    assert 0 <= found <= ttl_s
    assert found >= ttl_s * (1 - min(1.0, max(0.0, jitter))) * (1 - 1e-12)


def test_the_last_use_counts_the_longest_stale_rule() -> None:
    meta = meta_of(stale_while_revalidate_s=7.0, stale_if_error_s=30.0)
    assert last_use(meta) == meta.stored_at + meta.ttl_s + 30.0
