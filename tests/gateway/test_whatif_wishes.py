"""Another configuration decides about what its own tables say, and never about what a client said."""

from typing import Any

import pytest

from gateway.whatif_wishes import Decided, decided
from tests.kit.journals import configured, missed

OTHER = configured(
    tiers={"hot": {"ttl": 11, "priority": "high"}, "warm": {"ttl": 22}, "cold": {"ttl": 33}},
    prompt_types={"faq": "cold"},
    contexts={"code_review": {"ttl": 44, "priority": "low"}, "*": {"ttl": 55}},
    key_prefixes={"faq:": {"tier": "hot", "ttl": 66}, "long:": {"priority": "high"}},
).rules(kv_secret=b"")


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ({"tier": "default", "ttl_s": "tier", "priority": "tier"}, ("warm", 22.0, "medium")),
        ({"tier": "request", "ttl_s": "tier", "priority": "tier"}, ("cold", 33.0, "low")),
        ({"tier": "default", "ttl_s": "request", "priority": "request"}, ("warm", 7.0, "high")),
        ({"tier": "prompt_type:faq", "ttl_s": "tier", "priority": "tier"}, ("cold", 33.0, "low")),
        ({"tier": "prompt_type:*", "ttl_s": "tier", "priority": "tier"}, ("cold", 33.0, "low")),
        (
            {"tier": "default", "ttl_s": "context:code_review", "priority": "context:code_review"},
            ("warm", 44.0, "low"),
        ),
        (
            {"tier": "default", "ttl_s": "context:*", "priority": "context:*"},
            ("warm", 55.0, "medium"),
        ),
        (
            {"tier": "key_prefix:faq:", "ttl_s": "key_prefix:faq:", "priority": "key_prefix:faq:"},
            ("hot", 66.0, "high"),
        ),
        (
            {"tier": "default", "ttl_s": "tier", "priority": "key_prefix:long:"},
            ("warm", 22.0, "high"),
        ),
        (
            {"tier": "key_prefix:gone:", "ttl_s": "key_prefix:gone:", "priority": "tier"},
            ("warm", 22.0, "medium"),
        ),
        ({"tier": "default", "ttl_s": "shared", "priority": "shared"}, ("warm", 7.0, "high")),
        ({}, ("cold", 7.0, "high")),
    ],
)
def test_each_origin_is_decided_by_its_own_rule(by: Any, expected: Any) -> None:
    call = missed(1.0, "a", by=by, plan_tier="cold", ttl_s=7.0, priority="high")
    assert decided(call, OTHER) == Decided(*expected)
