"""One plan in every make's own words; isolation never comes from a client."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.dialects import DIALECTS, Dialect, spoken, usage_of, with_reuse
from policies.keys import Principal
from policies.outcome import Usage
from tests.kit.entries import asked

ALICE, BOB = Principal("acme"), Principal("beta")
ISOLATES = {"deepseek": "user_id", "vllm": "cache_salt", "sglang": "cache_salt"}
LATEST = "gpt-5.6-mini"


def said(
    dialect: Dialect,
    kv_cache: object = True,
    *,
    principal: Principal = ALICE,
    alone: bool = True,
    **body: Any,
) -> dict[str, Any]:
    call, plan = asked(kv_cache=kv_cache, principal=principal, **body)
    return spoken(dialect, call, plan, alone=alone)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_no_make_defines_passes_untouched_and_our_words_do_not(dialect: Dialect) -> None:
    odd: dict[str, Any] = {"odd": {"nested": [1, None]}, "temperature": 0.5, "user": "u"}
    body = said(dialect, {"enabled": True, "cache_key": "faq:1"}, **odd)
    assert {name: body[name] for name in odd} == odd
    assert "kv_cache" not in body


@pytest.mark.parametrize("dialect", DIALECTS)
def test_embeddings_have_no_prompt_cache_to_speak_of(dialect: Dialect) -> None:
    call, plan = asked(endpoint="embeddings", input="text")
    assert spoken(dialect, call, plan, alone=True) == {**call.body, "model": "m"}


@pytest.mark.parametrize(("dialect", "name"), ISOLATES.items())
def test_isolation_is_derived_from_the_scope_whatever_the_client_sends(
    dialect: Dialect, name: str
) -> None:
    own, claimed = said(dialect)[name], {name: "mine"}
    call, plan = asked(principal=ALICE, **claimed)  # type: ignore[arg-type]  # names of the body
    assert (
        own == spoken(dialect, call, plan, alone=True)[name] == said(dialect, temperature=0)[name]
    )
    assert own != said(dialect, principal=BOB)[name]
    assert (
        own
        != said(dialect, {"enabled": True, "scope": "user"}, principal=Principal("acme", "u"))[name]
    )
    assert "acme" not in own


@pytest.mark.parametrize(("dialect", "name"), {**ISOLATES, "llamacpp": "cache_prompt"}.items())
def test_a_response_is_isolated_as_a_chat_is(dialect: Dialect, name: str) -> None:
    claimed: dict[str, Any] = {name: "mine"}
    for principal in (ALICE, BOB):
        call, plan = asked(endpoint="responses", input="Hi", principal=principal, **claimed)
        body = spoken(dialect, call, plan, alone=False)
        assert body[name] == said(dialect, principal=principal, alone=False)[name]
        assert "stream_options" not in body


def test_a_server_without_salts_reuses_nothing_where_tenants_meet() -> None:
    assert said("llamacpp")["cache_prompt"] is True
    assert said("llamacpp", cache_prompt=True, alone=False)["cache_prompt"] is False
    call, plan = asked(headers={"Cache-Control": "no-store"})
    assert spoken("llamacpp", call, plan, alone=True)["cache_prompt"] is False


def test_openai_is_told_which_prompts_belong_together() -> None:
    def key(**more: Any) -> str:
        text: str = said("openai", **more)["prompt_cache_key"]
        return text

    chat = {"enabled": True, "cache_key": "chat-1"}
    assert key(kv_cache=chat) == key(kv_cache=chat, temperature=1)
    assert len({key(kv_cache=chat), key(), key(kv_cache=chat, principal=BOB)}) == 3
    assert key(prompt_cache_key="theirs") == key()  # the route makes a cache key of it
    assert len(key()) <= 64


def test_older_models_are_sent_nothing_they_would_refuse() -> None:
    for model in ("gpt-4o", "gpt-5.5", "o9", "m"):
        body = said("openai", {"enabled": True, "priority": "high"}, model=model)
        assert "prompt_cache_options" not in body
        assert body["messages"] == [{"role": "user", "content": "?"}]


@pytest.mark.parametrize(
    ("content", "marked"),
    [
        ("Be brief.", [{"type": "text", "text": "Be brief."}]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], None),
    ],
)
def test_lasting_instructions_end_in_a_breakpoint(content: Any, marked: Any) -> None:
    messages = [
        {"role": "system", "content": "First."},
        {"role": "developer", "content": content},
        {"role": "user", "content": "?"},
    ]
    wish = {"enabled": True, "priority": "high"}
    body = said("openai", wish, model=LATEST, messages=messages)
    parts = body["messages"][1]["content"]
    assert parts[-1].pop("prompt_cache_breakpoint") == {"mode": "explicit"}
    assert parts == (marked or content)
    assert [body["messages"][0], body["messages"][2]] == [messages[0], messages[2]]
    assert body["prompt_cache_options"] == {"mode": "implicit", "ttl": "30m"}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "?"}],
        [{"role": "system", "content": None}, {"role": "user", "content": "?"}],
        [{"role": "system", "content": []}, {"role": "user", "content": "?"}],
    ],
)
def test_without_instructions_there_is_no_breakpoint(messages: list[Any]) -> None:
    body = said("openai", {"enabled": True, "priority": "high"}, model=LATEST, messages=messages)
    assert body["messages"] == messages


def test_what_must_not_be_stored_writes_no_provider_cache_where_that_can_be_said() -> None:
    call, plan = asked(model=LATEST, headers={"Cache-Control": "no-store"})
    body = spoken("openai", call, plan, alone=True)
    assert body["prompt_cache_options"]["mode"] == "explicit"
    assert body["messages"] == call.body["messages"]


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "kvgate"])
def test_a_stream_that_is_stored_brings_its_usage(dialect: Dialect) -> None:
    assert said(dialect, stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in said(dialect, False, stream=True)


@pytest.mark.parametrize(
    ("usage", "understood"),
    [
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4}, Usage(9, 0, 4)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}, Usage(9, 0, 3)),
        (
            {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 8}},
            Usage(9, 2, 8),
        ),
        ({"prompt_tokens": 2, "prompt_cache_hit_tokens": 4}, Usage(2, 0, 2)),
        ({"prompt_tokens": True, "completion_tokens": -1}, Usage()),
        ({"prompt_tokens_details": "none"}, Usage()),
    ],
)
def test_every_makes_figures_are_understood(usage: dict[str, Any], understood: Usage) -> None:
    assert usage_of(usage) == understood


def test_what_llama_cpp_says_in_timings_is_in_the_usage() -> None:
    data = {"usage": {"prompt_tokens": 9}, "timings": {"cache_n": 5}}
    assert with_reuse(data)["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}
    for untouched in (
        {"usage": {"prompt_tokens": 9}},
        {"timings": {"cache_n": 5}},
        {"usage": {"prompt_tokens_details": {"cached_tokens": 1}}, "timings": {"cache_n": 5}},
        {"usage": {}, "timings": {"cache_n": None}},
    ):
        assert with_reuse(untouched) is untouched


@given(st.text(max_size=8), st.text(max_size=8))
def test_names_that_are_not_equal_do_not_meet(one: str, other: str) -> None:
    def key(name: str) -> str:
        wish = {"enabled": True, "cache_key": f"k{name.encode('unicode_escape').decode()}"}
        text: str = said("openai", wish)["prompt_cache_key"]
        return text

    assert (key(one) == key(other)) == (one == other)
