"""policies.kv: what an engine is told of a call's KV."""

from dataclasses import replace
from typing import Any

import pytest

from policies.call import Call
from policies.contexts import Base, scope_of
from policies.keys import Principal, Scope, kv_salt
from policies.kv import After, KvTerms, own_scope
from policies.plan import Plan, decide
from tests.policies.making import RULES, call_of, directive_of, plan_of, terms_of

ANN = Principal("acme", user="ann")
SYSTEM = {"role": "system", "content": "Review."}
ASKED = call_of(SYSTEM, "Look.")


def under(
    base: Base = (SYSTEM,), *, principal: Principal = ANN, call: Call = ASKED, **said: Any
) -> Plan:
    directive = directive_of({"enabled": True, **said})
    context = terms_of(tenant="acme", id="team")
    return decide(call, directive, principal, RULES, context=context, base=base)


def salt(scope: Scope) -> str:
    return kv_salt(scope, RULES.kv_secret)


def test_a_plain_call_has_one_salt_and_no_more_to_say() -> None:
    plan = plan_of(principal=ANN)
    assert plan.kv == KvTerms()
    assert plan.salt == salt(Scope("tenant", "acme"))


def test_under_a_context_the_base_is_everybodys_and_the_rest_ones_own() -> None:
    plan = under()
    assert plan.salt == salt(scope_of(terms_of(tenant="acme", id="team")))
    assert plan.kv.after == After(salt(Scope("user", "acme", user="ann")), 1, len("Review."))
    nobody = under(principal=Principal("acme"))
    assert nobody.kv.after == After(salt(Scope("tenant", "acme")), 1, len("Review."))


def test_a_user_named_by_a_proxy_has_what_that_user_has() -> None:
    proxy = Principal("acme", trusted=True)
    named = under(principal=proxy, user="ann")
    assert named.kv.after == under().kv.after


def test_a_base_without_a_text_ends_with_its_last_message() -> None:
    parts = {"role": "system", "content": [{"type": "text", "text": "Review."}]}
    after = under((SYSTEM, parts)).kv.after
    assert after is not None
    assert (after.messages, after.characters) == (2, None)


def test_a_plain_prompts_base_is_counted_in_characters() -> None:
    call = call_of(endpoint="completions", prompt="Review. Look.")
    after = under(call=call).kv.after
    assert after is not None
    assert (after.messages, after.characters) == (None, len("Review."))


def test_a_conversation_is_named_without_its_name() -> None:
    one, same, other = (plan_of({"enabled": True, "cache_key": key}) for key in ("a", "a", "b"))
    assert one.kv.session == same.kv.session != other.kv.session
    assert one.kv.session is not None
    assert len(one.kv.session) == 32
    keyed = plan_of({"cache_key": "a"}, rules=replace(RULES, kv_secret=b"x" * 100))
    assert keyed.kv.session != one.kv.session


def test_the_name_of_a_context_is_no_conversations() -> None:
    assert under(cache_key="team").kv.session is None
    assert under(cache_key="mine").kv.session is not None


def test_other_salts_are_named_to_explain_and_only_ones_own() -> None:
    tenant, user = Scope("tenant", "acme"), Scope("user", "acme", user="ann")
    asked = {"enabled": True, "debug": True}
    assert plan_of({"enabled": True}, principal=ANN).kv.own_salts == ()
    assert plan_of(asked, principal=ANN).kv.own_salts == (salt(user),)
    assert plan_of({**asked, "scope": "user"}, principal=ANN).kv.own_salts == (salt(tenant),)
    assert plan_of(asked, principal=Principal("acme")).kv.own_salts == ()
    assert under(debug=True).kv.own_salts == (salt(tenant), salt(user))


def test_a_tenants_quota_goes_along() -> None:
    rules = replace(RULES, kv_quotas={"acme": 5})
    assert plan_of(principal=ANN, rules=rules).kv.quota_bytes == 5
    assert plan_of(principal=Principal("other"), rules=rules).kv.quota_bytes is None


@pytest.mark.parametrize(("tier", "floor"), [("hot", "warm"), ("warm", None), ("cold", None)])
def test_who_names_the_tier_hot_does_not_wait_for_a_disk(tier: str, floor: str | None) -> None:
    assert plan_of({"tier": tier}).kv.floor == floor


def test_ones_own_is_the_users_or_the_tenants() -> None:
    shared = scope_of(terms_of(tenant="acme", id="team"))
    assert own_scope(shared, "ann") == Scope("user", "acme", user="ann")
    assert own_scope(shared, None) == Scope("tenant", "acme")
