"""What the bundled engine is told, word for word."""

from dataclasses import replace

from gateway.backends.kv_words import kv_member, lookup_wish, salts
from policies.kv import After, KvTerms
from tests.policies.making import call_of, plan_of

PLAIN = {"salt": "s", "priority": "medium", "ttl_s": 1800.0, "lane": "interactive", "reuse": True}
PLAN = replace(plan_of(), salt="s")


def test_a_plain_plan_says_five_words() -> None:
    assert kv_member(PLAN) == PLAIN


def test_what_else_is_decided_is_said() -> None:
    terms = KvTerms(After("own", 2, 9), "c", ("t",), 0, "warm")
    assert kv_member(replace(PLAN, kv=terms)) == {
        **PLAIN,
        "salt": "own",
        "base": {"salt": "s", "messages": 2, "characters": 9},
        "floor": "warm",
        "session": "c",
        "quota_bytes": 0,
        "own_salts": ["t"],
    }


def test_a_base_is_counted_as_it_can_be() -> None:
    parts = replace(PLAN, kv=KvTerms(After("own", 1, None)))
    assert salts(parts) == {"salt": "own", "base": {"salt": "s", "messages": 1}}
    text = replace(PLAN, kv=KvTerms(After("own", None, 4)))
    assert salts(text) == {"salt": "own", "base": {"salt": "s", "characters": 4}}


def test_a_prompt_is_looked_up_where_it_would_be_computed() -> None:
    call = call_of("hi")
    assert lookup_wish(call, PLAN) == {"messages": call.body["messages"], "salt": "s"}
    text = call_of(endpoint="completions", prompt="hi")
    based = replace(PLAN, kv=KvTerms(After("own", None, 1)))
    assert lookup_wish(text, based) == {"prompt": "hi", **salts(based)}
    assert lookup_wish(call, replace(PLAN, reuse_prefix=False)) is None
    assert lookup_wish(call_of(endpoint="embeddings", input="hi"), PLAN) is None
