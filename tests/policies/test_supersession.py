"""The answer to the turn before is known by its key, without anybody saying so."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import supersession
from policies.call import canonical, canonical_before, parse_call
from policies.supersession import superseded
from tests.kit.entries import asked

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}

contents = st.one_of(
    st.text(max_size=12),
    st.sampled_from(['"]', ",{", '\\"role\\":', "]", None]),
    st.lists(st.dictionaries(st.just("text"), st.text(max_size=5), max_size=1), max_size=2),
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": contents}
    ),
    min_size=1,
    max_size=6,
)
others = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0, 0.5, 1.0]),
        "tools": st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=2),
        "a": st.integers(),
    },
)


def plain_before(body: dict[str, Any]) -> bytes | None:
    """The same by cutting the messages and making the form anew."""
    roles = [message["role"] for message in body["messages"]]
    if "assistant" not in roles:
        return None
    last = len(roles) - 1 - roles[::-1].index("assistant")
    if last == 0:
        return None
    return canonical(parse_call("chat", {**body, "messages": body["messages"][:last]}))


@given(messages, others)
def test_the_form_of_the_turn_before_is_the_one_it_had(said: Any, more: Any) -> None:
    body = {"model": "m", "messages": said, **more}
    call = parse_call("chat", body)
    assert canonical_before(call, canonical(call)) == plain_before(body)


def test_the_key_is_that_of_the_turn_before() -> None:
    wish = {"enabled": True, "cache_key": "talk"}
    before = asked(messages=[USER], kv_cache=wish, temperature=0.5)[1]
    call, plan = asked(messages=[USER, ANSWER, USER], kv_cache=wish, temperature=0.5)
    assert superseded(call, plan) == before.key
    tool = {"role": "tool", "content": "42", "tool_call_id": "t"}
    assert superseded(*asked(messages=[USER, ANSWER, tool], kv_cache=wish, temperature=0.5)) == (
        before.key
    )
    longer = [USER, ANSWER, USER, ANSWER, USER]
    assert superseded(*asked(messages=longer, kv_cache=wish, temperature=0.5)) == plan.key
    elsewhere = asked(messages=[USER], kv_cache=wish, temperature=0.6)[1]
    assert superseded(call, plan) != elsewhere.key


@pytest.mark.parametrize(
    ("more", "wish"),
    [
        ({"messages": [USER]}, True),
        ({"messages": [ANSWER, USER]}, True),
        ({"messages": [USER, ANSWER, USER]}, False),
        ({"messages": [USER, ANSWER, USER]}, {"enabled": True, "context_aware": False}),
        ({"messages": [USER, ANSWER, USER]}, {"enabled": True, "cache_key": "k", "match": "key"}),
        ({"endpoint": "completions"}, True),
    ],
)
def test_a_first_turn_and_what_is_found_otherwise_supersede_nothing(more: Any, wish: Any) -> None:
    assert superseded(*asked(kv_cache=wish, **more)) is None


def test_a_long_request_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    call, plan = asked(messages=[USER, ANSWER, USER])
    assert superseded(call, plan) is not None
    monkeypatch.setattr(supersession, "MOST_BYTES", len(plan.canonical) - 1)
    assert superseded(call, plan) is None
