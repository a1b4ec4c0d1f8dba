from dataclasses import replace

import pytest

from policies.freshness import EntryMeta
from policies.outcome import Outcome
from policies.plan import Plan
from policies.record import record


@record
class Point:
    x: int
    y: int = 0


def test_a_record_has_fields_equality_and_defaults() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert Point(x=1) != Point(x=2)


def test_a_record_takes_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(x=1).z = 2  # type: ignore[attr-defined]  # the point of the test


def test_a_record_is_copied_with_changes() -> None:
    outcome = Outcome(key="k", tier="hot")
    assert replace(outcome, stored=True) == Outcome(key="k", tier="hot", stored=True)
    assert not outcome.stored


@pytest.mark.parametrize("kind", [EntryMeta, Outcome, Plan])
def test_the_records_of_the_hot_path_have_no_dict(kind: type) -> None:
    assert "__slots__" in vars(kind)
