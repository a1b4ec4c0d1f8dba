"""Where answers came from, counted."""

from __future__ import annotations

from loadtest.tally import Row, Tally, Walls


def shares(*, response: float = 0, prefix: float = 0, none: float = 0) -> dict[str, float]:
    return {"response": response, "prefix": prefix, "collapsed": 0.0, "none": none}


def test_a_tally_gives_shares_by_scenario_and_the_sum() -> None:
    tally = Tally()
    tally.add("faq", "response", 3, tokens=90)
    tally.add("faq", "none")
    tally.add("chat", "prefix", 4, tokens=10)
    assert tally.rows() == [
        Row("chat", 4, shares(prefix=1.0), 10),
        Row("faq", 4, shares(response=0.75, none=0.25), 90),
        Row("all", 8, shares(response=0.375, prefix=0.5, none=0.125), 100),
    ]
    assert [row.stored_rate for row in tally.rows()] == [0.0, 0.75, 0.375]


def test_who_read_along_is_counted_apart_and_is_no_hit() -> None:
    tally = Tally()
    tally.add("stampede", "none")
    tally.add("stampede", "collapsed", 3)
    (row,) = tally.rows()
    assert (row.shares["collapsed"], row.stored_rate) == (0.75, 0.0)
    assert row.as_dict()["stored_rate"] == 0.0


def test_what_was_taken_from_a_tally_fills_another() -> None:
    one, other = Tally(), Tally()
    one.add("faq", "none", tokens=7)
    one.add("faq", "prefix", 3, tokens=5)
    other.give(one.take())
    assert one.rows() == []
    assert other.rows() == [Row("faq", 4, shares(prefix=0.75, none=0.25), 12)]
    other.give(one.take())
    assert other.rows()[0].tokens_saved == 12


def test_a_key_belongs_to_who_had_it_first() -> None:
    walls = Walls()
    assert walls.breached_by("acme", "k1") is None
    assert walls.breached_by("acme", "k1") is None
    assert walls.breached_by("globex", "k2") is None
    assert walls.breached_by("globex", "k1") == "acme"
    assert walls.breached_by("globex", None) is None


def test_a_scenario_that_waits_for_its_first_answer_has_a_row() -> None:
    tally, master = Tally(), Tally()
    tally.ask("batch")
    master.give(tally.take())
    assert master.rows() == [Row("batch", 0, shares(), 0)]
