"""The member `kv`, and what is refused of it by name."""

import math
from typing import Any

import pytest

from engine.errors import RequestError
from engine.fields import Fields
from engine.kv.retention import Wish
from engine.wishes import BaseWish, KvWish, parse_base, parse_kv, parse_retain


def test_an_absent_member_asks_for_nothing() -> None:
    assert parse_kv(None) == parse_kv({}) == KvWish()
    assert parse_kv({}, lane="warm") == parse_kv(None, lane="warm") == KvWish(lane="warm")
    assert parse_kv({"newer": 1, "floor": None}) == KvWish()


def test_everything_can_be_said() -> None:
    said = {
        "salt": "s",
        "priority": "high",
        "ttl_s": 5,
        "lane": "batch",
        "reuse": False,
        "base": {"salt": "b", "messages": 2, "characters": 9},
        "floor": "warm",
        "ceiling": "hot",
        "session": "c",
        "quota_bytes": 7,
        "own_salts": ["t"],
        "verify": True,
    }
    base = BaseWish("b", messages=2, characters=9)
    wish = KvWish(
        "s", "high", 5.0, "batch", False, base, "warm", "hot", "c", 7, ("t",), True
    )  # fmt: skip
    assert parse_kv(said) == wish


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ([], "kv"),
        ({"salt": 1}, "kv.salt"),
        ({"salt": "x" * 513}, "kv.salt"),
        ({"priority": "urgent"}, "kv.priority"),
        ({"ttl_s": -1}, "kv.ttl_s"),
        ({"ttl_s": math.nan}, "kv.ttl_s"),
        ({"lane": "fast"}, "kv.lane"),
        ({"reuse": 1}, "kv.reuse"),
        ({"floor": "none"}, "kv.floor"),
        ({"ceiling": "disk"}, "kv.ceiling"),
        ({"session": 5}, "kv.session"),
        ({"quota_bytes": -1}, "kv.quota_bytes"),
        ({"quota_bytes": 0.5}, "kv.quota_bytes"),
        ({"own_salts": "s"}, "kv.own_salts"),
        ({"own_salts": [1]}, "kv.own_salts"),
        ({"own_salts": ["s"] * 9}, "kv.own_salts"),
        ({"verify": "yes"}, "kv.verify"),
        ({"base": "s"}, "kv.base"),
        ({"base": {"messages": 1}}, "kv.base.salt"),
        ({"base": {"salt": "b"}}, "kv.base.messages"),
        ({"base": {"salt": "b", "messages": 0}}, "kv.base.messages"),
        ({"base": {"salt": "b", "characters": True}}, "kv.base.characters"),
        ({"base": {"salt": "b", "tokens": -3}}, "kv.base.tokens"),
    ],
)
def test_what_is_malformed_is_refused_by_name(said: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_kv(said)
    assert refused.value.param == param
    assert str(refused.value).startswith(param)


def test_a_base_may_stand_at_the_top_of_a_body() -> None:
    assert parse_base(Fields({})) is None
    fields = Fields({"base": {"salt": "b", "tokens": 4}})
    assert parse_base(fields) == BaseWish("b", tokens=4)
    with pytest.raises(RequestError) as refused:
        parse_base(Fields({"base": {"salt": "b"}}))
    assert refused.value.param == "base.messages"


def test_a_retention_is_read_member_by_member() -> None:
    assert parse_retain(Fields({})) == Wish()
    assert not parse_retain(Fields({})).changes
    said = {"priority": "low", "ttl_s": 0, "pin": True, "pin_s": 5, "floor": "none"}
    wish = Wish(priority="low", ttl_s=0.0, pin=True, pin_s=5.0, floor="none", ceiling="warm")
    assert parse_retain(Fields({**said, "ceiling": "warm"})) == wish
    assert parse_retain(Fields({"pin": False})) == Wish(pin=False)


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"ttl_s": "1h"}, "ttl_s"),
        ({"pin": 1}, "pin"),
        ({"pin_s": 5}, "pin_s"),
        ({"pin": False, "pin_s": 5}, "pin_s"),
        ({"pin": True, "pin_s": -5}, "pin_s"),
        ({"floor": "disk"}, "floor"),
        ({"ceiling": "none"}, "ceiling"),
    ],
)
def test_a_malformed_retention_is_refused_by_name(said: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_retain(Fields(said))
    assert refused.value.param == param
