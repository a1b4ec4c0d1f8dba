"""policies.numbers: numbers that stay what they are, and the one text that equal numbers have."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.numbers import ExactNumber, canonical_text, decimal, integer, marked, unmarked
from tests.policies.making import few


@pytest.mark.parametrize("text", ["0", "-0", "12", str(2**64 - 1), str(-(2**63))])
def test_an_integer_of_64_bits_is_an_int(text: str) -> None:
    assert integer(text) == int(text)


@pytest.mark.parametrize("text", [str(2**64), str(-(2**63) - 1), "9" * 5000])
def test_a_longer_integer_keeps_its_text(text: str) -> None:
    assert integer(text) == ExactNumber(text)


@pytest.mark.parametrize("text", ["0.1", "1.50", "1e5", "-2.5E-3", "0.30000000000000004", "1E308"])
def test_a_decimal_that_a_double_holds_is_a_float(text: str) -> None:
    assert decimal(text) == float(text)


@pytest.mark.parametrize("text", ["1.5000000000000000000000", "0e999", "1234567890123456000e-18"])
def test_zeros_and_exponents_make_no_other_number(text: str) -> None:
    assert decimal(text) == float(text)


@pytest.mark.parametrize(
    "text", ["0.10000000000000001", "9007199254740993.0", "1e400", "-1e-400", f"1e{'9' * 30}"]
)
def test_a_decimal_that_a_double_cannot_tell_from_another_keeps_its_text(text: str) -> None:
    assert decimal(text) == ExactNumber(text)


def test_numbers_written_alike_are_equal_and_nothing_else_is() -> None:
    assert ExactNumber("1e400") == ExactNumber("1e400") != ExactNumber("10e399")
    assert hash(ExactNumber("1e400")) == hash(ExactNumber("1e400"))
    assert ExactNumber("1e400") != "1e400"
    assert repr(ExactNumber("1e400")) == "ExactNumber(1e400)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (str(2**64), f"{2**64}.00"),
        ("10e399", "1e400"),
        ("-0.010000000000000000010", "-10000000000000000010e-21"),
    ],
)
def test_equal_numbers_have_one_canonical_text(one: str, other: str) -> None:
    assert canonical_text(ExactNumber(one)) == canonical_text(ExactNumber(other))


def test_numbers_too_long_to_write_out_have_a_text_with_an_exponent() -> None:
    assert canonical_text(ExactNumber("12e9000")) == "12E9000"
    assert canonical_text(ExactNumber(f"1.5e{'9' * 30}")) == f"15E{'9' * 30}-1"
    assert canonical_text(ExactNumber("0e" + "9" * 30)) == "0"
    assert canonical_text(1e300) == "1" + "0" * 300
    assert canonical_text(ExactNumber("NaN")) == "NaN"


@few
@given(st.from_regex(r"-?(0|[1-9][0-9]{0,24})\.[0-9]{1,24}(e-?[0-9]{1,2})?", fullmatch=True))
def test_a_canonical_text_is_the_same_number(text: str) -> None:
    assert Decimal(canonical_text(ExactNumber(text))) == Decimal(text)


def test_a_marked_number_is_written_as_itself() -> None:
    text = json.dumps(["1e400", ExactNumber("1e400")], default=marked, ensure_ascii=False)
    assert unmarked(text) == '["1e400", 1e400]'
    with pytest.raises(TypeError):
        marked(object())
