"""gateway.exact_json: numbers as they came, strict requests, lenient answers."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import exact_json
from gateway.exact_json import JSONDecodeError, JSONEncodeError, NotStrict
from tests.policies.making import few

NUMBERS = [
    str(2**64),
    str(2**64 + 1),
    str(-(2**63) - 1),
    "9" * 400,
    "9" * 5000,
    "0.1000000000000000055511151231257827",
    "0.10000000000000001",
    "9007199254740993.0",
    "1e400",
    "-1E-400",
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("load", [exact_json.loads, exact_json.loads_answer])
def test_a_number_that_no_double_holds_is_written_as_it_came(load: Any, number: str) -> None:
    raw = b'{"a":[%b,{"b":%b}],"c":1.5}' % (number.encode(), number.encode())
    assert exact_json.dumps(load(raw)) == raw
    assert exact_json.dumps_strict(load(raw)) == raw
    assert exact_json.dumps(load(b"[ " + raw + b" ]"), sort_keys=True) == b"[%b]" % raw


numbers = st.one_of(
    st.integers(),
    st.integers(0, 2**70),
    st.decimals(allow_nan=False, allow_infinity=False).map(lambda one: f"{one:E}"),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,22})\.[0-9]{1,22}", fullmatch=True),
).map(str)


@few
@given(st.lists(numbers, min_size=1, max_size=5))
def test_no_number_changes_its_value_on_the_way(texts: list[str]) -> None:
    raw = f"[{', '.join(texts)}]".encode()
    written = json.loads(exact_json.dumps(exact_json.loads(raw)), parse_float=Decimal)
    assert [Decimal(one) for one in written] == [Decimal(text) for text in texts]


def test_digits_in_a_text_and_floats_of_any_server_stay_what_they_are() -> None:
    value = {
        "text": "call 1234567890123456789",
        "vector": [
            5.3e-05,
            1.2345678901234567e-05,
            1e-05,
            9e-06,
            1.5e16,
            -0.006929283495992422,
            1e-07,
        ],
    }
    for raw in (json.dumps(value).encode(), json.dumps(value, separators=(",", ":")).encode()):
        assert exact_json.loads(raw) == value
        assert type(exact_json.loads(raw)["vector"][0]) is float


@pytest.mark.parametrize(
    "raw",
    [
        b"NaN", b"[-Infinity]", rb'"\ud83d"', rb'["\ud83d", 1e400]', b'["\xff"]', b"[1,]", b"",
        b"[NaN, 18446744073709551616]", b"[" * 600 + b"1e400" + b"]" * 600, b"[" * 3000,
    ],
)  # fmt: skip
def test_a_request_is_strict_json(raw: bytes) -> None:
    with pytest.raises(JSONDecodeError):
        exact_json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"logprob":NaN}',
        b"[-Infinity,Infinity]",
        rb'{"content":"\ud83d"}',
        rb'{"\udc00":["\ud83d \udc00",18446744073709551616,null,true,1.5]}',
    ],
)
def test_an_answer_keeps_what_is_no_strict_json_and_no_store_takes_it(raw: bytes) -> None:
    answer = exact_json.loads_answer(raw)
    assert exact_json.dumps(answer) == exact_json.dumps(answer, sort_keys=True) == raw
    with pytest.raises(NotStrict):
        exact_json.dumps_strict(answer)


@pytest.mark.parametrize("raw", [b"[1,]", b'["\xff"]', b"nan", b"[" * 3000, b"[NaN" + b"]" * 9])
def test_an_answer_that_is_no_json_at_all_is_none(raw: bytes) -> None:
    with pytest.raises(JSONDecodeError):
        exact_json.loads_answer(raw)


def test_two_halves_of_a_pair_that_meet_are_one_character() -> None:
    halves = exact_json.loads_answer(rb'["\ud83d","\ude00"]')
    assert exact_json.dumps_strict({"content": "".join(halves)}) == '{"content":"😀"}'.encode()


def test_integers_that_were_added_up_are_written_whole() -> None:
    assert exact_json.dumps_strict({"total_tokens": 2**64}) == b'{"total_tokens":%d}' % 2**64


def test_what_is_nested_too_deep_is_written_by_nothing() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    for write in (exact_json.dumps, exact_json.dumps_strict):
        with pytest.raises(JSONEncodeError):
            write(deep)
    raw = b"[" * 990 + b"1234567890123456789012" + b"]" * 990
    with pytest.raises(JSONEncodeError):
        exact_json.dumps(exact_json.loads(raw))
    with pytest.raises(JSONEncodeError):
        exact_json.dumps(["\ud800", _deep_halves()])


def _deep_halves() -> Any:
    deep: Any = "\ud800"
    for _ in range(2000):
        deep = [deep]
    return deep
