"""The past in rows: what was counted since the row before, in coarser steps the older it is."""

from gateway.history import COARSE_S, COLUMNS, FINE_S, KEPT_S, History, counts_of
from gateway.numbers import Numbers
from gateway.tally import BUCKETS_S, Statistics
from policies.outcome import Outcome

WIDE = len(COLUMNS) + 2 * (len(BUCKETS_S) + 1)


def counts(total: float) -> list[float]:
    return [total] * WIDE


def test_a_row_holds_what_came_since_the_one_before() -> None:
    history = History()
    assert history.note(10.0, counts(3))[1] == counts(3)
    assert history.note(11.0, counts(5))[1] == counts(2)
    assert [at for at, _ in history.rows()] == [10.0, 11.0]


def test_what_became_less_counts_as_nothing() -> None:
    history = History()
    history.note(10.0, counts(7))
    assert history.note(11.0, counts(4))[1] == counts(0)
    assert history.note(12.0, counts(5))[1] == counts(1)


def test_older_rows_are_added_up_and_the_oldest_forgotten() -> None:
    history, seconds = History(), int(KEPT_S + FINE_S)
    for second in range(seconds + 1):
        history.note(1000.0 + second, counts(second + 1))
    rows = history.rows()
    assert len(rows) <= FINE_S + (KEPT_S - FINE_S) / COARSE_S + 2
    times = [at for at, _ in rows]
    assert times == sorted(times)
    assert times[-1] - times[0] >= KEPT_S - 2 * COARSE_S
    # Nothing is lost between: every second of what is kept counted one.
    assert sum(row[0] for _, row in rows[1:]) == times[-1] - times[0]
    assert repr(history).startswith("<History ")


def test_the_columns_are_those_that_are_named() -> None:
    statistics = Statistics()
    hit = Outcome(key="k", tier="hot", level="response", hit=True, tokens_saved=7)
    group = ("chat", "response", 200, "hot", "m", "t", None)
    statistics.group(group).add(hit, seconds=0.0004, seconds_saved=1.5, money=0.25)
    miss = Outcome(key="k", tier="hot")
    statistics.group(("chat", "none", 200, "hot", "m", "t", "cold")).add(
        miss, seconds=70.0, seconds_saved=0.0, money=0.0
    )
    statistics.refused("chat", 404)
    row = counts_of(Numbers(statistics), statistics.views())
    assert len(row) == WIDE
    assert dict(zip(COLUMNS, row, strict=False)) == {
        "response": 1, "semantic": 0, "prefix": 0, "negative": 0, "none": 1, "errors": 1,
        "tokens_saved": 7, "seconds_saved": 1.5, "money_saved": 0.25,
        "prompt_tokens": 0, "prompt_tokens_reused": 0,
    }  # fmt: skip
    stored, computed = row[len(COLUMNS) : -len(BUCKETS_S) - 1], row[-len(BUCKETS_S) - 1 :]
    assert (stored[0], sum(stored)) == (1, 1)
    assert (computed[-1], sum(computed)) == (1, 1)
