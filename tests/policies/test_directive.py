"""policies.directive: what clients may say, where it came from, and what is malformed."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.call import RequestError
from policies.directive import Directive, parse_directive
from policies.rules import Limits
from tests.policies.making import directive_of, few, json_values


def headers_of(**known: str) -> list[tuple[str, str]]:
    return [(name.replace("_", "-"), value) for name, value in known.items()]


def header(name: str, value: str) -> Directive:
    return directive_of(None, [(name, value)])


def test_nothing_said_is_nothing_heard() -> None:
    assert directive_of() == Directive()
    assert directive_of({}, [("Host", "x"), ("X-Request-ID", "y")]) == Directive()


WORDS: list[tuple[str, object, str, str, object]] = [
    # member, its value, header, its text, what both mean
    ("enabled", True, "X-Cache-Enable", "true", True),
    ("cache_key", "faq:1", "X-Cache-ID", "faq:1", "faq:1"),
    ("ttl", 3600, "X-Cache-TTL", "3600", 3600.0),
    ("priority", "high", "X-Cache-Priority", "high", "high"),
    ("tier", "cold", "X-Cache-Tier", "cold", "cold"),
    ("prompt_type", "faq", "X-Cache-Prompt-Type", "faq", "faq"),
    ("context", "code_review", "X-Cache-Context", "code_review", "code_review"),
    ("strategy", "adaptive", "X-Cache-Strategy", "adaptive", "adaptive"),
    ("reuse", False, "X-Cache-Reuse", "false", False),
    ("context_aware", False, "X-Cache-Context-Aware", "0", False),
    ("match", "key", "X-Cache-Match", "key", "key"),
    ("scope", "user", "X-Cache-Scope", "user", "user"),
    ("stream", False, "X-Cache-Stream", "off", False),
    ("batch_mode", True, "X-Cache-Batch", "true", True),
    ("batch_id", "batch_1", "X-Cache-Batch-ID", "batch_1", "batch_1"),
    ("share", True, "X-Cache-Share", "true", True),
    ("preload", True, "X-Cache-Warm", "true", True),
    ("user", "dev1", "X-Cache-User", "dev1", "dev1"),
    ("tags", ["a", "b", "a"], "X-Cache-Tags", "a, b,, a ,", ("a", "b")),
    ("debug", True, "X-Cache-Debug", "true", True),
]


@pytest.mark.parametrize(("member", "value", "name", "text", "meaning"), WORDS)
def test_every_word_can_be_said_in_the_body_and_in_a_header(
    member: str, value: object, name: str, text: str, meaning: object
) -> None:
    field = "ttl_s" if member == "ttl" else member
    in_body = directive_of({member: value})
    assert getattr(in_body, field) == meaning
    assert in_body.origins == {field: f"body kv_cache.{member}"}
    for spelling in (name, name.lower(), name.upper()):
        in_header = header(spelling, f" {text}\t")
        assert getattr(in_header, field) == meaning
        assert in_header.origins == {field: f"header {name}"}


def test_shared_contexts_have_a_word_of_their_own_in_body_and_header() -> None:
    assert directive_of({"shared_context": "team"}).shared_context == "team"
    assert header("X-Cache-Shared", "true").shared is True


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", "On"])
def test_true_has_many_spellings(text: str) -> None:
    assert header("X-Cache-Enable", text).enabled is True
    assert directive_of({"enabled": text}).enabled is True


@pytest.mark.parametrize("text", ["false", "False", "0", "NO", "off"])
def test_false_has_many_spellings(text: str) -> None:
    assert header("X-Cache-Enable", text).enabled is False
    assert directive_of({"enabled": text}).enabled is False


@pytest.mark.parametrize("value", [True, False])
def test_a_bare_boolean_is_short_for_enabled(value: bool) -> None:
    said = directive_of(value)
    assert said.enabled is value
    assert said.origins == {"enabled": "body kv_cache"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0.0), (-0.0, 0.0), ("-0", 0.0), (0.5, 0.5), ("1.5", 1.5), ("007", 7.0), (604800, 604800)],
)
def test_a_ttl_is_a_number_or_says_one(value: object, seconds: float) -> None:
    found = directive_of({"ttl": value}).ttl_s
    assert (found, str(found)) == (seconds, str(float(seconds)))


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.001, "-1", float("nan"), float("inf"), "nan", "inf", 604801, 10**400, "9" * 32),
        *("9" * 33, "1e3", "1_000", " 5", "", "30m", "１２", True, [], {}),
    ],
)
def test_other_ttls_are_malformed(value: object) -> None:
    with pytest.raises(RequestError, match="seconds from 0 to 604800") as caught:
        directive_of({"ttl": value})
    assert caught.value.param == "kv_cache.ttl"


def test_the_largest_ttl_is_the_operators() -> None:
    said = parse_directive({"ttl": 20}, [], limits=Limits(max_ttl_s=20.0))
    assert said.ttl_s == 20
    with pytest.raises(RequestError, match="from 0 to 20"):
        parse_directive({"ttl": 21}, [], limits=Limits(max_ttl_s=20.0))


@pytest.mark.parametrize(
    "key", ["v1:namespace:rest", "k" * 512, "你好", "é 🔥", "a\u200db", "a\u3000b", " "]
)
def test_cache_keys_are_any_printable_text(key: str) -> None:
    assert directive_of({"cache_key": key}).cache_key == key


@pytest.mark.parametrize(
    "key", ["", "k" * 513, "a\nb", "\0", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\ud800"]
)
def test_empty_long_and_unprintable_keys_are_malformed(key: str) -> None:
    with pytest.raises(RequestError, match="1 to 512 printable characters") as caught:
        directive_of({"cache_key": key})
    assert caught.value.message.isprintable()
    with pytest.raises(RequestError):
        directive_of(None, None, key)


def test_a_header_of_undecodable_bytes_is_malformed() -> None:
    arrived = b"caf\xe9".decode("utf-8", "surrogateescape")
    with pytest.raises(RequestError, match="U\\+DCE9") as caught:
        header("X-Cache-ID", arrived)
    assert caught.value.param == "X-Cache-ID"
    caught.value.message.encode()


@pytest.mark.parametrize(
    ("kv_cache", "param"),
    [
        ([], "kv_cache"),
        ("true", "kv_cache"),
        (1, "kv_cache"),
        ({"enabled": 1}, "kv_cache.enabled"),
        ({"enabled": "maybe"}, "kv_cache.enabled"),
        ({"priority": "urgent"}, "kv_cache.priority"),
        ({"priority": 1}, "kv_cache.priority"),
        ({"priority": ["high"]}, "kv_cache.priority"),
        ({"tier": "HOT"}, "kv_cache.tier"),
        ({"strategy": "clever"}, "kv_cache.strategy"),
        ({"cache_key": 5}, "kv_cache.cache_key"),
        ({"prompt_type": "x" * 129}, "kv_cache.prompt_type"),
        ({"tags": "a,b"}, "kv_cache.tags"),
        ({"tags": [1]}, "kv_cache.tags"),
        ({"tags": [""]}, "kv_cache.tags"),
        ({"tags": ["x" * 65]}, "kv_cache.tags"),
        ({"tags": ["x"] * 33}, "kv_cache.tags"),
    ],
)
def test_a_malformed_member_is_a_400_that_names_it(kv_cache: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        directive_of(kv_cache)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_cache_directive", param)
    assert error.message.startswith(f"{param}: ")
    assert "; allowed: " in error.message


def test_a_message_repeats_no_more_than_forty_characters_and_escapes_them() -> None:
    with pytest.raises(RequestError) as caught:
        header("X-Cache-Priority", "\x1b[31m" + "x" * 400)
    assert caught.value.message == (
        "X-Cache-Priority: '\\x1b[31m" + "x" * 35 + "'...; allowed: high or medium or low"
    )


def test_the_body_wins_over_the_header() -> None:
    said = directive_of(
        {"ttl": 5, "enabled": None}, headers_of(x_cache_ttl="9", x_cache_enable="1")
    )
    assert (said.ttl_s, said.enabled) == (5.0, True)
    assert said.origins == {"ttl_s": "body kv_cache.ttl", "enabled": "header X-Cache-Enable"}


def test_a_malformed_header_is_malformed_even_where_the_body_wins() -> None:
    with pytest.raises(RequestError) as caught:
        directive_of({"ttl": 5}, headers_of(x_cache_ttl="soon"))
    assert caught.value.param == "X-Cache-TTL"


def test_a_header_sent_twice_must_say_the_same() -> None:
    assert directive_of(None, [("X-Cache-TTL", "5"), ("x-cache-ttl", "5")]).ttl_s == 5
    with pytest.raises(RequestError, match="sent twice") as caught:
        directive_of(None, [("X-Cache-TTL", "5"), ("x-cache-ttl", "6")])
    assert caught.value.param == "X-Cache-TTL"


def test_unknown_words_are_ignored_and_remembered() -> None:
    said = directive_of({"colour": "red", "ttl": 1}, [("X-Cache-Hit", "true"), ("X-Cache-Foo", "")])
    assert said.unknown == ("X-Cache-Hit", "X-Cache-Foo", "kv_cache.colour")
    assert said.ttl_s == 1


def test_unknown_words_are_remembered_within_limits() -> None:
    said = directive_of({f"{place:03}" + "x" * 100: 1 for place in range(50)})
    assert len(said.unknown) == 16
    assert max(map(len, said.unknown)) == 40


def test_prompt_cache_key_steers_when_no_cache_key_is_given_and_names_nothing() -> None:
    said = directive_of(None, None, "user-7")
    assert (said.cache_key, said.affinity) == (None, "user-7")
    assert said.origins["prompt_cache_key"] == "body prompt_cache_key"
    both = directive_of({"cache_key": "mine"}, None, "user-7")
    assert (both.cache_key, both.affinity) == ("mine", "mine")


def test_a_malformed_prompt_cache_key_is_a_400() -> None:
    with pytest.raises(RequestError) as caught:
        directive_of({"cache_key": "mine"}, None, 7)
    assert caught.value.param == "prompt_cache_key"


def test_cache_control_means_what_rfc_9111_says() -> None:
    said = header("cache-control", "No-Cache, no-store,max-age=60 , only-if-cached, max-stale=5")
    assert (said.no_cache, said.no_store, said.only_if_cached) == (True, True, True)
    assert said.max_age_s == 60
    assert set(said.origins.values()) == {"Cache-Control"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("max-age=0", 0),
        ('max-age="7"', 7),
        ("max-age=9,max-age=8", 8),
        ("max-age=" + "9" * 99, 2**31),
    ],
)
def test_max_age_is_whole_seconds(value: str, seconds: float) -> None:
    assert header("Cache-Control", value).max_age_s == seconds


def test_cache_control_may_come_in_several_headers() -> None:
    said = directive_of(None, [("Cache-Control", "no-store"), ("Cache-Control", "max-age=1")])
    assert (said.no_store, said.max_age_s) == (True, 1)


@pytest.mark.parametrize("value", ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age=٣"])
def test_another_max_age_is_malformed(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        header("Cache-Control", value)
    assert caught.value.param == "Cache-Control"


members = st.sampled_from([word[0] for word in WORDS] + ["shared_context", "other"])


@pytest.mark.parametrize(
    "value",
    [
        'x="no-store"', 'x="a, no-store, b"', 'x="a\\", no-store"', "no-storeX", "x=no-store",
        'x="no-cache=1, max-age=5"', ", ,", 'x="", y=""', "xno-cache=1;max-age=3",
    ],
)  # fmt: skip
def test_what_stands_in_a_quoted_string_is_no_directive(value: str) -> None:
    said = header("Cache-Control", value)
    assert (said.no_store, said.no_cache, said.max_age_s) == (False, False, None)


def test_directives_beside_quoted_strings_count() -> None:
    said = header("Cache-Control", 'private="a, b", no-store , max-age="6\\0",x="\\\\", no-cache')
    assert (said.no_store, said.no_cache, said.max_age_s) == (True, True, 60)


@pytest.mark.parametrize("value", ['x="no-store', 'no-cache"', 'x="a"b, no-store', 'max-age="60'])
def test_quotes_that_do_not_close_are_refused(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        header("Cache-Control", value)
    assert (caught.value.code, caught.value.param) == ("invalid_cache_directive", "Cache-Control")


def test_header_and_body_must_name_the_same_user() -> None:
    spoken = [("X-Cache-User", "ann")]
    assert directive_of({"user": "ann"}, spoken).user == "ann"
    with pytest.raises(RequestError) as caught:
        directive_of({"user": "bob"}, spoken)
    assert (caught.value.status, caught.value.code) == (403, "user_mismatch")
    assert caught.value.param == "kv_cache.user"


names = st.sampled_from([word[2] for word in WORDS] + ["X-Cache-Shared", "Cache-Control", "Host"])


@given(
    kv_cache=json_values | st.dictionaries(members, json_values, max_size=4),
    headers=st.lists(st.tuples(names | st.text(max_size=9), st.text(max_size=9)), max_size=4),
    key=json_values,
)
@few
def test_any_input_is_a_directive_or_a_request_error(
    kv_cache: Any, headers: list[tuple[str, str]], key: Any
) -> None:
    with suppress(RequestError):
        said = directive_of(kv_cache, headers, key)
        assert said.ttl_s is None or 0 <= said.ttl_s <= Limits().max_ttl_s


GUIDES: list[tuple[dict[str, Any] | None, dict[str, str]]] = [
    # every directive written in the two guides that kvgate's users come from
    ({"enabled": True, "cache_key": "ml_explanation_basic"}, {}),
    ({"enabled": True, "cache_key": "0cc175b9c0f1b6a8", "ttl": 3600}, {}),
    ({"enabled": True, "cache_key": "standard:0cc1", "ttl": 1800, "priority": "medium"}, {}),
    ({"enabled": True, "cache_key": "context:conv_001:900150", "context_aware": True}, {}),
    ({"enabled": True, "cache_key": "batch:0:item:3:900150", "batch_mode": True}, {}),
    ({"enabled": True, "cache_key": "faq:9001", "ttl": 86400, "preload": True}, {}),
    ({"enabled": True, "cache_key": "template:python:sort", "ttl": 3600}, {}),
    (None, {"X-Cache-Enable": "true", "X-Cache-TTL": "3600"}),
    (None, {"X-Cache-Enable": "true", "X-Cache-Reuse": "true"}),
    (None, {"X-Cache-Enable": "true", "X-Cache-ID": "cache_user_123", "X-Cache-TTL": "3600"}),
    (None, {"X-Cache-Enable": "true", "X-Cache-ID": "a_1", "X-Cache-Strategy": "adaptive"}),
    (
        None,
        {
            "X-Cache-Enable": "true",
            "X-Cache-TTL": "7200",
            "X-Cache-Priority": "high",
            "X-Cache-Context": "code_review",
        },
    ),
    (None, {"X-Cache-Enable": "true", "X-Cache-ID": "ml", "X-Cache-Stream": "true"}),
    (
        None,
        {
            "X-Cache-Enable": "true",
            "X-Cache-Batch": "true",
            "X-Cache-Batch-ID": "batch_1",
            "X-Cache-Share": "true",
        },
    ),
    (
        None,
        {
            "X-Cache-Enable": "true",
            "X-Cache-ID": "shared_code_review_team",
            "X-Cache-Shared": "true",
            "X-Cache-TTL": "7200",
        },
    ),
    (
        None,
        {
            "X-Cache-Enable": "true",
            "X-Cache-ID": "shared_code_review_team",
            "X-Cache-User": "dev1",
            "X-Cache-Reuse": "true",
        },
    ),
    (None, {"X-Cache-Enable": "true", "X-Cache-ID": "warm_qa_var_0", "X-Cache-Warm": "true"}),
    (None, {"X-Cache-Enable": "true", "X-Cache-ID": "debug", "X-Cache-Debug": "true"}),
]


@pytest.mark.parametrize(("kv_cache", "headers"), GUIDES)
def test_every_directive_of_the_guides_is_understood(
    kv_cache: dict[str, Any] | None, headers: dict[str, str]
) -> None:
    said = directive_of(kv_cache, list(headers.items()))
    assert said.enabled is True
    assert said.unknown == ()
    assert len(said.origins) == len(kv_cache or headers)
