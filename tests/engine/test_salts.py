"""Which salt a block is under."""

from engine.kv.salts import Layered, begins_anew, salt_at


def test_one_salt_is_under_every_block_and_begins_nowhere_anew() -> None:
    assert [salt_at("s", number) for number in range(3)] == ["s"] * 3
    assert not any(begins_anew("s", number) for number in range(3))


def test_two_salts_meet_at_one_block() -> None:
    both = Layered("base", "own", 2)
    assert [salt_at(both, number) for number in range(4)] == ["base", "base", "own", "own"]
    assert [begins_anew(both, number) for number in range(4)] == [False, False, True, False]


def test_a_base_of_no_block_is_no_base() -> None:
    none = Layered("base", "own", 0)
    assert [salt_at(none, number) for number in range(2)] == ["own", "own"]
    assert not any(begins_anew(none, number) for number in range(2))
