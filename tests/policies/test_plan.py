"""policies.plan: where the client's wishes and the operator's rules meet."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.call import RequestError, canonical
from policies.keys import Principal, Scope, entry_key, fingerprint, kv_salt, public_key, scope_key
from policies.plan import Plan
from policies.rules import PrefixRule, ProfileRule, Rules
from tests.policies.making import OPEN, RULES, because, call_of, few, plan_of, terms_of

ACME = Principal("acme")
MEMBER = Principal("acme", user="ann")


def retention(plan: Plan) -> tuple[str, float, str]:
    return (plan.tier, plan.ttl_s, plan.priority)


class TestWhoMayBeEnabled:
    def test_the_config_decides_when_nobody_speaks(self) -> None:
        off = plan_of({})
        assert (off.enabled, off.may_read, off.may_store) == (False, False, False)
        assert off.why_not == "disabled"
        assert because(off, "enabled") == ("false", "config defaults.enabled")
        on = plan_of({}, rules=replace(RULES, enabled_default=True))
        assert (on.enabled, on.may_read, on.may_store, on.why_not) == (True, True, True, None)

    def test_the_client_may_say_so_or_not(self) -> None:
        assert plan_of({"enabled": True}).enabled
        off = plan_of({"enabled": False}, rules=replace(RULES, enabled_default=True))
        assert not off.enabled
        assert because(off, "enabled") == ("false", "body kv_cache.enabled")

    def test_preload_and_only_if_cached_ask_for_the_cache(self) -> None:
        assert plan_of({"preload": True}).enabled
        asked = plan_of(headers={"Cache-Control": "only-if-cached"})
        assert asked.enabled
        assert asked.only_if_cached
        assert not plan_of({"preload": True, "enabled": False}).enabled
        assert not plan_of({"preload": False}).enabled

    @pytest.mark.parametrize(("messages", "enabled"), [(4, False), (5, True), (6, True)])
    def test_adaptive_waits_for_enough_messages(self, messages: int, enabled: bool) -> None:
        call = call_of(*["hi"] * messages)
        plan = plan_of({"enabled": True, "strategy": "adaptive"}, call=call)
        assert plan.enabled is enabled
        assert plan.why_not == (None if enabled else "too_short")
        assert because(plan, "enabled")[1] == f"strategy adaptive: {messages} messages, from 5 on"

    @pytest.mark.parametrize(
        "kept", [{"conversation": "conv_1"}, {"background": True}, {"model": None}]
    )
    def test_what_the_backend_remembers_is_asked_for_each_time(self, kept: dict[str, Any]) -> None:
        call = call_of(endpoint="responses", **{"input": "Hi", **kept})
        plan = plan_of(call=call)
        assert (plan.enabled, plan.why_not) == (False, "stateful")

    def test_the_prefix_level_is_on_whatever_becomes_of_the_response_level(self) -> None:
        assert plan_of({}).reuse_prefix
        assert plan_of({"enabled": False}).reuse_prefix
        assert plan_of({"enabled": True, "reuse": False}).reuse_prefix

    def test_no_store_covers_the_prefix_level_too(self) -> None:
        assert not plan_of(headers={"Cache-Control": "no-store"}).reuse_prefix


class TestRights:
    @pytest.mark.parametrize(
        ("kv_cache", "cache_control", "stream", "expected"),
        [
            ({}, "", False, (True, True, None)),
            ({"reuse": True}, "", False, (True, True, None)),
            ({"reuse": False}, "", False, (False, True, "no_cache")),
            ({}, "no-cache", False, (False, True, "no_cache")),
            ({}, "no-store", False, (True, False, "no_store")),
            ({}, "no-store, no-cache", False, (False, False, "no_cache")),
            ({"ttl": 0}, "", False, (True, False, "ttl_0")),
            ({"ttl": 0, "reuse": False}, "", False, (False, False, "no_cache")),
            ({"stream": False}, "", True, (False, False, "stream")),
            ({"stream": False}, "", False, (True, True, None)),
            ({"stream": True}, "", True, (True, True, None)),
        ],
    )
    def test_reading_and_storing_are_decided_apart(
        self,
        kv_cache: dict[str, Any],
        cache_control: str,
        stream: bool,
        expected: tuple[bool, bool, str | None],
    ) -> None:
        plan = plan_of(
            {"enabled": True, **kv_cache},
            headers={"Cache-Control": cache_control},
            call=call_of(stream=stream),
        )
        assert (plan.may_read, plan.may_store, plan.why_not) == expected

    def test_the_reasons_name_the_word_that_forbade_it(self) -> None:
        assert because(plan_of({"enabled": True, "reuse": False}), "read") == (
            "false",
            "body kv_cache.reuse",
        )
        bypass = plan_of({"enabled": True}, headers={"Cache-Control": "no-cache, no-store"})
        assert because(bypass, "read") == ("false", "Cache-Control")
        assert because(bypass, "store") == ("false", "Cache-Control")

    def test_max_age_is_handed_on(self) -> None:
        plan = plan_of({"enabled": True}, headers={"Cache-Control": "max-age=30"})
        assert plan.max_age_s == 30
        assert because(plan, "max_age_s") == ("30", "Cache-Control")


class TestRetention:
    def test_without_a_word_the_default_tier_decides(self) -> None:
        plan = plan_of()
        assert retention(plan) == ("warm", 1800, "medium")
        for field in ("tier", "ttl_s", "priority"):
            assert because(plan, field)[1] == "default tier"

    @pytest.mark.parametrize(
        ("kv_cache", "expected"),
        [
            ({"tier": "hot"}, ("hot", 300, "high")),
            ({"tier": "hot", "ttl": 7}, ("hot", 7, "high")),
            ({"tier": "hot", "priority": "low"}, ("hot", 300, "low")),
            ({"prompt_type": "faq"}, ("hot", 300, "high")),
            ({"prompt_type": "common_query"}, ("hot", 300, "high")),
            ({"prompt_type": "template"}, ("warm", 1800, "medium")),
            ({"prompt_type": "poem"}, ("cold", 7200, "low")),
            ({"prompt_type": "faq", "tier": "cold"}, ("cold", 7200, "low")),
            ({"context": "code_review"}, ("warm", 7200, "high")),
            ({"context": "casual_chat"}, ("warm", 1800, "low")),
            ({"context": "gossip"}, ("warm", 3600, "medium")),
            ({"context": "code_review", "prompt_type": "faq"}, ("hot", 300, "high")),
            ({"context": "code_review", "ttl": 60}, ("warm", 60, "high")),
            ({"cache_key": "faq:1"}, ("hot", 86400, "high")),
            ({"cache_key": "faq:1", "ttl": 60}, ("hot", 60, "high")),
            ({"cache_key": "faq:1", "context": "casual_chat"}, ("hot", 1800, "low")),
            ({"cache_key": "faq:1", "tier": "cold"}, ("cold", 7200, "low")),
            ({"cache_key": "faq"}, ("warm", 1800, "medium")),
        ],
    )
    def test_the_nearer_word_wins_for_tier_ttl_and_priority_apart(
        self, kv_cache: dict[str, Any], expected: tuple[str, float, str]
    ) -> None:
        assert retention(plan_of({"enabled": True, **kv_cache})) == expected

    @pytest.mark.parametrize(
        ("said", "ttl_s", "kind"),
        [
            ("fix this function", 7200, "programming"),
            ("what is a monad", 14_400, "educational"),
            ("I have a problem", 3600, "support"),
            ("hello there", 1800, "general"),
        ],
    )
    def test_adaptive_takes_the_lifetime_from_what_the_conversation_is_about(
        self, said: str, ttl_s: float, kind: str
    ) -> None:
        wish = {"enabled": True, "strategy": "adaptive"}
        plan = plan_of(wish, call=call_of(*[said] * 5))
        assert retention(plan) == ("warm", ttl_s, "medium")
        assert because(plan, "ttl_s")[1] == f"strategy adaptive: {kind}"

    def test_adaptive_follows_the_operators_profiles_and_yields_to_every_other_word(self) -> None:
        call, wish = call_of(*["fix this code"] * 5), {"enabled": True, "strategy": "adaptive"}
        other = {"*": ProfileRule(ttl_s=77)}
        plan = plan_of(wish, call=call, rules=replace(RULES, contexts=other))
        assert retention(plan) == ("warm", 77, "medium")
        plan = plan_of(wish, call=call, rules=replace(RULES, contexts={}))
        assert retention(plan) == ("warm", 1800, "medium")
        plan = plan_of({**wish, "cache_key": "faq:1"}, call=call)
        assert retention(plan) == ("hot", 86_400, "high")

    def test_each_word_of_the_precedence_beats_all_after_it(self) -> None:
        words: list[tuple[dict[str, Any], float]] = [
            ({"ttl": 1}, 1),
            ({"tier": "hot"}, 300),
            ({"prompt_type": "other"}, 7200),
            ({"context": "documentation"}, 14400),
            ({"cache_key": "faq:1"}, 86400),
            ({}, 1800),
        ]
        said: dict[str, Any] = {"enabled": True}
        for word, ttl_s in reversed(words):
            said |= word
            assert plan_of(said).ttl_s == ttl_s

    def test_the_longest_matching_prefix_wins(self) -> None:
        rules = replace(
            RULES,
            key_prefixes=(
                PrefixRule("a:", ttl_s=1.0),
                PrefixRule("a:b:", priority="high"),
                PrefixRule("b", tier="cold"),
            ),
        )
        plan = plan_of({"enabled": True, "cache_key": "a:b:c"}, rules=rules)
        assert retention(plan) == ("warm", 1800, "high")
        assert because(plan, "priority") == ("high", "key prefix a:b:")
        assert retention(plan_of({"cache_key": "bee"}, rules=rules)) == ("cold", 7200, "low")

    def test_tables_without_a_word_for_others_leave_others_alone(self) -> None:
        rules = replace(RULES, prompt_types={}, contexts={"x": ProfileRule(priority="low")})
        plan = plan_of({"prompt_type": "faq", "context": "y"}, rules=rules)
        assert retention(plan) == ("warm", 1800, "medium")
        assert retention(plan_of({"context": "x"}, rules=rules)) == ("warm", 1800, "low")

    def test_reasons_name_the_rule(self) -> None:
        plan = plan_of({"prompt_type": "faq", "priority": "low"}, headers={"X-Cache-TTL": "1.5"})
        assert because(plan, "tier") == ("hot", "prompt type faq")
        assert because(plan, "ttl_s") == ("1.5", "header X-Cache-TTL")
        assert because(plan, "priority") == ("low", "body kv_cache.priority")
        assert because(plan_of({"context": "x"}), "ttl_s") == ("3600", "context x")
        assert because(plan_of({"cache_key": "faq:x"}), "ttl_s") == ("86400", "key prefix faq:")


class TestScope:
    def test_the_tenant_shares_unless_told_otherwise(self) -> None:
        plan = plan_of(principal=MEMBER)
        assert plan.scope == Scope("tenant", "acme")
        assert because(plan, "scope") == ("tenant", "config defaults.scope")

    def test_a_user_may_keep_to_itself(self) -> None:
        plan = plan_of({"scope": "user"}, principal=MEMBER)
        assert plan.scope == Scope("user", "acme", user="ann")
        assert because(plan, "scope") == ("user", "body kv_cache.scope")

    def test_the_config_may_keep_users_apart(self) -> None:
        rules = replace(RULES, scope_default="user")
        assert plan_of(principal=MEMBER, rules=rules).scope.user == "ann"
        with pytest.raises(RequestError) as caught:
            plan_of(principal=ACME, rules=rules)
        assert caught.value.param == "scope"

    @pytest.mark.parametrize(
        ("kv_cache", "headers", "param"),
        [
            ({"scope": "user"}, None, "kv_cache.scope"),
            (None, {"X-Cache-Scope": "user"}, "X-Cache-Scope"),
        ],
    )
    def test_scope_user_without_a_user_is_a_400(
        self, kv_cache: object, headers: dict[str, str] | None, param: str
    ) -> None:
        with pytest.raises(RequestError) as caught:
            plan_of(kv_cache, headers=headers, principal=ACME)
        error = caught.value
        assert (error.status, error.code, error.param) == (400, "invalid_cache_directive", param)

    def test_under_a_shared_context_its_users_share(self) -> None:
        team = terms_of(id="team", edition="e1", ttl_s=900.0, priority="low")
        plan = plan_of({"enabled": True}, principal=MEMBER, context=team)
        assert plan.scope == Scope("shared", "acme", context="team", edition="e1")
        assert because(plan, "scope") == ("shared", "shared context team")
        assert (plan.ttl_s, plan.priority) == (900.0, "low")
        assert because(plan, "ttl_s") == ("900", "shared context team")
        other = plan_of({"enabled": True}, principal=MEMBER, context=replace(team, edition="e2"))
        assert plan.key != other.key
        assert plan.salt != other.salt

    def test_the_name_of_the_context_is_no_key_beside_it(self) -> None:
        plain, its_name, another = (
            plan_of({"enabled": True, "cache_key": key}, principal=MEMBER, context=terms_of())
            for key in (None, "team", "another")
        )
        assert plain.key == its_name.key != another.key
        assert its_name.cache_key == "team"

    def test_what_the_call_says_comes_before_what_the_context_brings(self) -> None:
        plan = plan_of({"ttl": 60, "tier": "hot"}, principal=MEMBER, context=terms_of())
        assert (plan.ttl_s, plan.priority, plan.tier) == (60, "high", "hot")

    @pytest.mark.parametrize(("principal", "kind"), [(MEMBER, "user"), (ACME, "tenant")])
    def test_a_context_that_is_not_there_lets_nobody_in_instead(
        self, principal: Principal, kind: str
    ) -> None:
        asked = {"enabled": True, "scope": "shared", "cache_key": "team"}
        plan = plan_of(asked, principal=principal)
        assert plan.scope.kind == kind
        assert because(plan, "scope") == (kind, "no shared context")
        plan = plan_of(asked, principal=principal, without="the store does not answer")
        assert (plan.scope.kind, plan.enabled, plan.why_not) == (kind, False, "disabled")
        assert because(plan, "enabled") == ("false", "the store does not answer")

    def test_a_batch_shares_across_users_who_keep_to_themselves(self) -> None:
        asked = {"scope": "user", "share": True, "batch_id": "b1"}
        plan = plan_of(asked, principal=MEMBER)
        assert plan.scope == Scope("batch", "acme", batch="b1")
        assert plan.batch_id == "b1"
        assert because(plan, "scope") == ("batch", "body kv_cache.share")
        assert plan_of(asked, principal=ACME).scope == plan.scope

    def test_sharing_where_others_share_already_changes_nothing(self) -> None:
        plan = plan_of({"share": True, "batch_id": "b1"}, principal=MEMBER)
        assert plan.scope == Scope("tenant", "acme")
        assert because(plan, "share") == ("ignored", "scope tenant reaches other users already")

    def test_sharing_needs_a_batch(self) -> None:
        plan = plan_of({"share": True, "scope": "user"}, principal=MEMBER)
        assert plan.scope.kind == "user"
        assert because(plan, "share") == ("ignored", "share needs a batch_id")

    def test_no_word_of_a_client_changes_the_tenant(self) -> None:
        said = {"cache_key": "open", "user": "open", "scope": "user", "batch_id": "open"}
        assert plan_of(said, principal=replace(OPEN, tenant="other")).scope.tenant == "other"


class TestUser:
    def test_a_trusted_key_speaks_for_others(self) -> None:
        plan = plan_of(headers={"X-Cache-User": "dev1"}, principal=OPEN)
        assert plan.user == "dev1"
        assert because(plan, "user") == ("given", "header X-Cache-User")

    def test_a_key_speaks_for_its_own_user(self) -> None:
        assert plan_of({"user": "ann"}, principal=MEMBER).user == "ann"
        assert plan_of(principal=MEMBER).user == "ann"
        assert plan_of(principal=ACME).user is None

    @pytest.mark.parametrize("principal", [ACME, MEMBER, Principal("acme", admin=True)])
    def test_another_user_is_a_403(self, principal: Principal) -> None:
        with pytest.raises(RequestError) as caught:
            plan_of(headers={"X-Cache-User": "bob"}, principal=principal)
        error = caught.value
        assert (error.status, error.code, error.param) == (403, "user_mismatch", "X-Cache-User")


class TestKeys:
    def test_the_key_is_made_of_scope_model_cache_key_and_fingerprint(self) -> None:
        call = call_of("hi")
        plan = plan_of({"enabled": True, "cache_key": "k"}, call=call, model="served")
        form = canonical(call)
        assert plan.canonical == form
        assert plan.fingerprint == fingerprint(form)
        assert plan.model == "served"
        assert plan.key == entry_key(plan.scope_key, "served", "k", plan.fingerprint)
        assert plan.public_key == public_key(plan.key)
        assert plan.scope_key == scope_key(plan.scope, RULES.kv_secret)
        assert plan.salt == kv_salt(plan.scope, RULES.kv_secret)
        assert because(plan, "cache_key") == ("given", "body kv_cache.cache_key")

    def test_without_an_alias_the_model_is_as_named(self) -> None:
        assert plan_of().model == "m"

    def test_one_cache_key_with_two_questions_is_two_entries(self) -> None:
        said = {"enabled": True, "cache_key": "k"}
        assert plan_of(said, call=call_of("a")).key != plan_of(said, call=call_of("b")).key

    def test_match_key_leaves_the_question_out_and_nothing_else(self) -> None:
        said = {"match": "key", "cache_key": "k"}
        here = plan_of(said, call=call_of("a"))
        assert here.match == "key"
        assert plan_of(said, call=call_of("b")).key == here.key
        others = [
            plan_of(said, call=call_of("a"), model="other"),
            plan_of(said, call=call_of("a"), principal=Principal("other")),
            plan_of({**said, "cache_key": "l"}, call=call_of("a")),
            plan_of(said, call=call_of(endpoint="completions", prompt="a")),
            plan_of({"cache_key": "k"}, call=call_of("a")),
        ]
        assert here.key not in {plan.key for plan in others}

    def test_match_key_without_a_key_is_a_400(self) -> None:
        with pytest.raises(RequestError) as caught:
            plan_of({"match": "key"})
        assert caught.value.param == "kv_cache.match"
        assert caught.value.code == "invalid_cache_directive"

    def test_match_key_of_the_config_waits_for_a_key(self) -> None:
        rules = replace(RULES, match_default="key")
        assert plan_of(rules=rules).match == "exact"
        assert plan_of({"cache_key": "k"}, rules=rules).match == "key"

    def test_match_key_does_not_take_a_prompt_cache_key_for_an_answers_name(self) -> None:
        plan = plan_of({"match": "key"}, prompt_cache_key="user-7")
        assert plan.match == "exact"
        assert (plan.cache_key, plan.affinity) == (None, "user-7")

    def test_a_prompt_cache_key_splits_and_names_no_entry(self) -> None:
        plain = plan_of({"enabled": True})
        assert plan_of({"enabled": True}, prompt_cache_key="user-7").key == plain.key
        named = plan_of({"cache_key": "k", "match": "key"})
        assert plan_of({"cache_key": "k", "match": "key"}, prompt_cache_key="u").key == named.key

    @pytest.mark.parametrize("rules", [RULES, replace(RULES, match_default="key")])
    def test_the_name_of_a_shared_context_identifies_no_answer(self, rules: Rules) -> None:
        match: dict[str, str] = {} if rules.match_default == "key" else {"match": "key"}
        one, other = (
            plan_of(
                {"enabled": True, "cache_key": "team", **match},
                call=call_of(text),
                principal=MEMBER,
                context=terms_of(),
                rules=rules,
            )
            for text in ("one", "other")
        )
        assert one.match == "exact"
        assert because(one, "match")[1] == "the key names a shared context, not an answer"
        assert one.key != other.key
        wish = {"cache_key": "a", **match}
        named = plan_of(wish, principal=MEMBER, context=terms_of(), rules=rules)
        assert named.match == "key", "a name of its own does, under a context too"

    def test_semantic_matching_falls_back_to_exact_and_says_so(self) -> None:
        plan = plan_of({"enabled": True, "match": "semantic"})
        assert plan.match == "exact"
        assert because(plan, "match") == ("exact", "semantic matching is not available")
        assert plan.key == plan_of({"enabled": True}).key

    def test_a_plan_that_touches_no_entry_has_no_canonical_form(self) -> None:
        plan = plan_of({"enabled": False})
        assert plan.canonical == b""
        assert not plan.may_read
        assert not plan.may_store

    def test_the_last_question_alone_may_be_the_key(self) -> None:
        long = call_of("a", {"role": "assistant", "content": "b"}, "c")
        short = plan_of({"enabled": True, "context_aware": False}, call=call_of("c"))
        assert plan_of({"enabled": True, "context_aware": False}, call=long).key == short.key
        assert plan_of({"enabled": True, "context_aware": True}, call=long).key != short.key
        assert plan_of({}, call=call_of("c")).key != short.key
        assert because(short, "context_aware") == ("false", "body kv_cache.context_aware")

    @given(
        tenants=st.tuples(st.text(max_size=3), st.text(max_size=3)),
        kv_cache=st.fixed_dictionaries(
            {"scope": st.sampled_from(["tenant", "user", "shared"])},
            optional={
                "cache_key": st.sampled_from(["k", "a", "faq:1"]),
                "user": st.sampled_from(["k", "a"]),
                "share": st.booleans(),
                "batch_id": st.sampled_from(["k", "a"]),
                "shared_context": st.sampled_from(["k", "a"]),
            },
        ),
    )
    @few
    def test_two_tenants_never_share_a_key_or_a_salt(
        self, tenants: tuple[str, str], kv_cache: dict[str, Any]
    ) -> None:
        one, other = (
            plan_of(kv_cache, principal=Principal(tenant, user="u", trusted=True))
            for tenant in tenants
        )
        assert (one.key == other.key) == (tenants[0] == tenants[1])
        assert (one.salt == other.salt) == (tenants[0] == tenants[1])


class TestTheRest:
    @pytest.mark.parametrize(
        ("kv_cache", "lane"),
        [
            ({}, "interactive"),
            ({"batch_mode": True}, "batch"),
            ({"preload": True}, "warm"),
            ({"preload": True, "batch_mode": True}, "warm"),
            ({"batch_mode": False, "preload": False}, "interactive"),
            ({"batch_id": "b1"}, "batch"),
            ({"batch_id": "b1", "batch_mode": False}, "interactive"),
        ],
    )
    def test_batches_and_warming_yield_to_people(self, kv_cache: dict[str, Any], lane: str) -> None:
        plan = plan_of(kv_cache)
        assert plan.lane == lane
        assert plan.preload is kv_cache.get("preload", False)

    def test_labels_context_debug_and_unknown_words_are_handed_on(self) -> None:
        plan = plan_of({"tags": ["a"], "context": "chat", "debug": True, "colour": 1})
        assert (plan.tags, plan.context, plan.debug) == (("a",), "chat", True)
        assert plan.unknown == ("kv_cache.colour",)

    def test_the_same_inputs_make_the_same_plan(self) -> None:
        assert plan_of({"cache_key": "k"}) == plan_of({"cache_key": "k"})
