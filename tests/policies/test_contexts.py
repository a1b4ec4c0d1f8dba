"""policies.contexts: what a context is asked to be, who may use it, where a call leaves its text."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.call import RequestError
from policies.contexts import (
    Base,
    Wanted,
    base_from,
    base_of,
    base_record,
    fitted,
    forbidden,
    may_manage,
    may_see,
    may_use,
    not_found,
    parse_context,
    scope_of,
    terms_from,
    terms_record,
    wanted,
)
from policies.keys import Principal, Scope, as_user
from policies.numbers import ExactNumber
from policies.rules import Limits
from tests.policies.making import call_of, directive_of, few, json_values, terms_of

SYSTEM = {"role": "system", "content": "Review code."}
RULES = {"role": "developer", "content": "Be kind."}
ASKED = {"role": "user", "content": "Look."}
BASE: Base = (SYSTEM, RULES)


def refused(problem: Any) -> RequestError:
    error = problem.value
    assert isinstance(error, RequestError)
    return error


class TestWanted:
    @pytest.mark.parametrize(
        ("kv_cache", "headers", "found"),
        [
            ({"shared_context": "team"}, {}, Wanted("team", "named", "shared_context")),
            (
                {"shared_context": "team"},
                {"X-Cache-Shared": "true", "X-Cache-ID": "k"},
                Wanted("team", "named", "shared_context"),
            ),
            ({}, {"X-Cache-Shared": "true", "X-Cache-ID": "k"}, Wanted("k", "shared", "shared")),
            ({"cache_key": "k"}, {"X-Cache-Shared": "true"}, Wanted("k", "shared", "shared")),
            ({"cache_key": "k", "scope": "shared"}, {}, Wanted("k", "scope", "scope")),
            ({"cache_key": "k"}, {}, Wanted("k", "key", "cache_key")),
            ({"cache_key": "k"}, {"X-Cache-Shared": "false"}, None),
            ({"cache_key": "k", "scope": "tenant"}, {}, None),
            ({"cache_key": "k", "scope": "user"}, {}, None),
            ({"cache_key": "k", "enabled": False}, {}, None),
            ({"enabled": True}, {}, None),
        ],
    )
    def test_a_context_is_named_in_four_ways(
        self, kv_cache: Any, headers: dict[str, str], found: Wanted | None
    ) -> None:
        assert wanted(directive_of(kv_cache, headers.items()), "chat") == found

    def test_a_prompt_cache_key_names_no_context(self) -> None:
        assert wanted(directive_of({}, prompt_cache_key="k"), "chat") is None
        shared = directive_of({}, [("X-Cache-Shared", "true")], prompt_cache_key="k")
        with pytest.raises(RequestError) as caught:
            wanted(shared, "chat")
        assert refused(caught).param == "X-Cache-Shared"

    @pytest.mark.parametrize(
        ("kv_cache", "headers", "param"),
        [
            ({}, {"X-Cache-Shared": "true"}, "X-Cache-Shared"),
            ({"scope": "shared"}, {}, "kv_cache.scope"),
            ({"shared_context": "a", "scope": "user"}, {}, "kv_cache.scope"),
            ({"cache_key": "a", "scope": "tenant"}, {"X-Cache-Shared": "1"}, "kv_cache.scope"),
        ],
    )
    def test_half_a_wish_is_refused_and_the_field_is_named(
        self, kv_cache: Any, headers: dict[str, str], param: str
    ) -> None:
        with pytest.raises(RequestError) as caught:
            wanted(directive_of(kv_cache, headers.items()), "chat")
        error = refused(caught)
        assert (error.status, error.code, error.param) == (400, "invalid_cache_directive", param)

    def test_embeddings_have_no_context_but_may_have_keys(self) -> None:
        assert wanted(directive_of({"cache_key": "k"}), "embeddings") is None
        with pytest.raises(RequestError) as caught:
            wanted(directive_of({"shared_context": "k"}), "embeddings")
        assert refused(caught).param == "kv_cache.shared_context"


class TestParse:
    def test_a_text_is_a_system_prompt_and_the_rest_has_defaults(self) -> None:
        wish = parse_context({"base_prompt": "Review code.", "model": None}, limits=Limits())
        assert wish.base == (SYSTEM,)
        assert (wish.allowed_users, wish.ttl_s, wish.priority, wish.model) == (
            (),
            7200.0,
            "high",
            None,
        )

    @pytest.mark.parametrize("name", ["base_messages", "messages"])
    def test_everything_may_be_said(self, name: str) -> None:
        body = {
            name: [SYSTEM, RULES],
            "allowed_users": ["dev1", "dev2", "dev1"],
            "ttl": "60",
            "priority": "low",
            "model": "m",
        }
        wish = parse_context(body, limits=Limits())
        assert wish.base == BASE
        assert wish.allowed_users == ("dev1", "dev2")
        assert (wish.ttl_s, wish.priority, wish.model) == (60.0, "low", "m")

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "base_prompt"),
            ({"base_prompt": "x", "messages": [SYSTEM]}, "messages"),
            ({"base_prompt": "x", "allowed_user": ["a"]}, "allowed_user"),
            ({"base_prompt": 7}, "base_prompt"),
            ({"base_prompt": ""}, "base_prompt"),
            ({"base_prompt": "x" * 200}, "base_prompt"),
            ({"base_messages": "x"}, "base_messages"),
            ({"base_messages": []}, "base_messages"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"base_prompt": "x", "allowed_users": "dev1"}, "allowed_users"),
            ({"base_prompt": "x", "allowed_users": ["a", ""]}, "allowed_users[1]"),
            ({"base_prompt": "x", "allowed_users": ["a"] * 10_001}, "allowed_users"),
            ({"base_prompt": "x", "ttl": 0}, "ttl"),
            ({"base_prompt": "x", "ttl": -1}, "ttl"),
            ({"base_prompt": "x", "priority": "highest"}, "priority"),
            ({"base_prompt": "x", "model": ""}, "model"),
        ],
    )
    def test_a_mistake_is_refused_and_named(self, body: dict[str, Any], param: str) -> None:
        with pytest.raises(RequestError) as caught:
            parse_context(body, limits=Limits(max_entry_bytes=200))
        assert (refused(caught).status, refused(caught).param) == (400, param)

    def test_depth_is_limited_like_that_of_a_call(self) -> None:
        deep: Any = "x"
        for _ in range(200):
            deep = [deep]
        body = {"base_messages": [{"role": "system", "content": "x", "more": deep}]}
        with pytest.raises(RequestError) as caught:
            parse_context(body, limits=Limits())
        assert refused(caught).param == "base_messages"


class TestBaseOfACall:
    def test_it_is_the_leading_system_prompt_and_nothing_of_a_user(self) -> None:
        assert base_of(call_of(SYSTEM, RULES, ASKED, SYSTEM)) == BASE
        assert base_of(call_of(SYSTEM)) == (SYSTEM,)

    def test_a_call_without_one_makes_no_context(self) -> None:
        with pytest.raises(RequestError) as caught:
            base_of(call_of(ASKED, SYSTEM))
        assert refused(caught).param == "messages"
        with pytest.raises(RequestError) as caught:
            base_of(call_of(endpoint="completions", prompt="x"))
        assert refused(caught).param == "prompt"


class TestRights:
    def test_an_empty_list_is_the_whole_tenant(self) -> None:
        assert may_use(terms_of(), None)
        assert may_use(terms_of(), "anybody")

    def test_otherwise_who_is_not_named_may_not(self) -> None:
        team = terms_of(allowed_users=("dev1", "dev2"))
        assert may_use(team, "dev1")
        assert not may_use(team, "dev3")
        assert not may_use(team, None)
        assert not may_use(team, "")

    @pytest.mark.parametrize(
        ("principal", "user", "made_by", "may"),
        [
            (Principal("acme"), None, "ann", True),
            (Principal("acme", user="ann"), "ann", "ann", True),
            (Principal("acme", user="bob"), "bob", "ann", False),
            (Principal("acme", user="bob"), "bob", None, False),
            (Principal("acme", user="root", admin=True), "root", "ann", True),
            (Principal("acme", trusted=True), "bob", "ann", False),
            (Principal("acme", trusted=True, admin=True), "bob", "ann", False),
            (Principal("acme", trusted=True), "ann", "ann", True),
        ],
    )
    def test_a_context_is_managed_by_its_maker_the_tenant_and_admins(
        self, principal: Principal, user: str | None, made_by: str | None, may: bool
    ) -> None:
        assert may_manage(terms_of(made_by=made_by), as_user(principal, user)) is may

    def test_keys_of_no_user_and_admins_see_what_lies_under_any(self) -> None:
        team = terms_of(allowed_users=("ann",))
        for view, sees in (
            (Principal("acme"), True),
            (Principal("acme", user="ann"), True),
            (Principal("acme", user="bob"), False),
            (Principal("acme", user="bob", admin=True), True),
        ):
            assert may_see(team, view) is sees

    def test_everybody_may_make_one(self) -> None:
        assert may_manage(None, Principal("acme", user="bob"))

    def test_refusals_say_nothing_of_the_context(self) -> None:
        assert (not_found("x").status, not_found("x").code) == (404, "context_not_found")
        assert (forbidden().status, forbidden().code) == (403, "context_forbidden")

    def test_the_scope_has_the_edition(self) -> None:
        assert scope_of(terms_of()) == Scope("shared", "acme", context="team", edition="e1")


class TestFitted:
    def test_a_call_that_starts_with_the_base_is_left_alone(self) -> None:
        call = call_of(SYSTEM, RULES, ASKED)
        assert fitted(call, BASE, stands_in=False) is call
        assert fitted(call, BASE, stands_in=True) is call

    def test_the_base_may_go_on_in_its_last_message(self) -> None:
        longer = {**RULES, "content": "Be kind. And brief.", "name": None}
        call = call_of(SYSTEM, longer)
        assert fitted(call, BASE, stands_in=False) is call

    def test_a_named_context_is_put_in_front(self) -> None:
        call = fitted(call_of(ASKED, temperature=0), BASE, stands_in=True)
        assert call.messages == [*BASE, ASKED]
        assert call.body["temperature"] == 0

    @pytest.mark.parametrize(
        ("messages", "param", "at"),
        [
            ([{**SYSTEM, "content": "Review prose."}, RULES], "messages[0].content", 7),
            ([{**SYSTEM, "content": "Review code. Now."}, RULES], "messages[0].content", 12),
            ([SYSTEM, {**RULES, "content": "Be"}], "messages[1].content", 2),
            ([SYSTEM, {**RULES, "role": "user"}], "messages[1].role", None),
            ([SYSTEM, {**RULES, "name": "x"}], "messages[1].name", None),
            ([SYSTEM, {**RULES, "content": None}], "messages[1].content", None),
            ([SYSTEM], "messages[1]", None),
        ],
    )
    def test_the_first_difference_is_named(
        self, messages: list[Any], param: str, at: int | None
    ) -> None:
        with pytest.raises(RequestError) as caught:
            fitted(call_of(*messages), BASE, stands_in=False)
        error = refused(caught)
        assert (error.status, error.param) == (400, param)
        assert ("character" in error.message) is (at is not None)
        if at is not None:
            assert f"from character {at} on" in error.message
        assert "kind" not in error.message

    def test_a_text_begins_a_completion(self) -> None:
        base: Base = (SYSTEM,)
        whole = call_of(endpoint="completions", prompt="Review code. Look.")
        rest = call_of(endpoint="completions", prompt=" Look.")
        assert fitted(whole, base, stands_in=False) is whole
        assert fitted(rest, base, stands_in=True) == whole
        with pytest.raises(RequestError) as caught:
            fitted(rest, base, stands_in=False)
        assert refused(caught).param == "prompt"
        assert "from character 0 on" in refused(caught).message

    @pytest.mark.parametrize(
        ("base", "prompt"),
        [
            (BASE, "x"),
            (({"role": "system", "content": [{"type": "text", "text": "x"}]},), "x"),
            ((SYSTEM,), ["x"]),
        ],
    )
    def test_what_is_no_text_begins_none(self, base: Base, prompt: Any) -> None:
        with pytest.raises(RequestError) as caught:
            fitted(call_of(endpoint="completions", prompt=prompt), base, stands_in=True)
        assert refused(caught).param == "prompt"

    @given(
        base=st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), min_size=1)
    )
    @few
    def test_what_was_put_in_front_is_found_there(self, base: list[dict[str, Any]]) -> None:
        once = fitted(call_of(ASKED), tuple(base), stands_in=True)
        assert fitted(once, tuple(base), stands_in=False) is once


class TestRecords:
    @given(
        users=st.lists(st.text(), max_size=3),
        model=st.none() | st.text(),
        ttl_s=st.floats(0.001, 1e9),
    )
    @few
    def test_terms_come_back_as_they_were(self, users: Any, model: Any, ttl_s: float) -> None:
        team = terms_of(allowed_users=tuple(users), model=model, ttl_s=ttl_s)
        assert terms_from(terms_record(team)) == team

    @given(content=json_values)
    @few
    def test_a_base_comes_back_as_it_was(self, content: Any) -> None:
        base = ({"role": "system", "content": content},)
        assert base_from(base_record(base)) == base

    @pytest.mark.parametrize(
        "record",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"version": 1}',
            b'{"version": 2, "allowed_users": []}',
            b'{"version": 1, "allowed_users": "dev1"}',
            b'{"version": 1, "allowed_users": [], "more": 1}',
            terms_record(replace(terms_of(), allowed_users=()))[:-1],
        ],
    )
    def test_what_is_not_understood_is_no_context(self, record: bytes) -> None:
        assert terms_from(record) is None


def test_the_text_of_a_context_keeps_numbers_that_no_double_holds() -> None:
    base = ({"role": "system", "content": "a", "seed": ExactNumber(str(2**64 + 1)), "x": 0.5},)
    assert base_from(base_record(base)) == base
