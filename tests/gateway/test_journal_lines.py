"""What the journal says, and that it never says what anybody said."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config
from gateway.journal_lines import BLOCK_BYTES, Hasher, Lines, Names, origin, origins, prompt_text
from gateway.request_log import Answered, Visit
from policies.call import parse_call
from policies.keys import Principal
from policies.outcome import Forwarded, Level, Outcome
from policies.plan import Lane
from policies.rules import default_rules
from tests.kit.entries import NOW, asked, meta_of

SECRET = Hasher(b"k" * 32)
CONFIG = Config.model_validate(
    {"backends": [{"name": "up", "base_url": "http://127.0.0.1:1", "models": ["m"]}]}
)
HASH = re.compile(r"[0-9a-f]{16}")
WORDS = {
    *get_args(Level), *get_args(Forwarded), *get_args(Lane), "call", "stored", "cleared", "chat",
    "completions", "embeddings", "responses", "hot", "warm", "cold", "high", "medium", "low", "exact",
    "key", "m", "up", "request", "tier", "default", "shared", "prompt_type:faq", "prompt_type:*",
    "context:*", "context:code_review", "key_prefix:faq:", "fingerprint", "disabled",
}  # fmt: skip


def lines(worker: int | None = None, hasher: Hasher = SECRET) -> Lines:
    return Lines(hasher, CONFIG, default_rules(), Names.of(CONFIG, ["m"]), worker=worker)


def answered(
    text: Any = "?", kv_cache: object = True, *, entry: Any = None, outcome: Any = None, **body: Any
) -> Answered:
    call, plan = asked(text, kv_cache, **body)
    visit = Visit("r", call.endpoint, 1.0, call, plan, seconds=0.25, asked_at=NOW, order=2)
    visit.entry = entry
    found = outcome or Outcome(
        key="k", tier=plan.tier, miss_reason="cold", prompt_tokens=9, backend="up"
    )
    return Answered(visit, plan, found)


def texts(value: Any) -> Iterator[str]:
    """Every string in a line, but for the names of its fields."""
    match value:
        case str():
            yield value
        case dict():
            for one in value.values():
                yield from texts(one)
        case list():
            for one in value:
                yield from texts(one)


def test_a_call_says_what_a_replay_needs() -> None:
    line = lines().call(answered("x" * 2000, {"enabled": True, "cache_key": "c", "ttl": 60}))
    assert (line["kind"], line["at"], line["order"], line["took_s"]) == ("call", NOW, 2, 0.25)
    assert (line["plan_tier"], line["ttl_s"], line["priority"]) == ("warm", 60.0, "medium")
    assert line["by"] == {"tier": "default", "ttl_s": "request", "priority": "tier"}
    assert (line["model"], line["backend"], line["prompt_tokens"], line["turn"]) == (
        "m",
        "up",
        9,
        1,
    )
    assert line["read"]
    assert line["store"]
    assert len(line["blocks"]) == line["bytes_sent"] // BLOCK_BYTES == 3
    for name in ("key", "tenant", "scope", "conversation"):
        assert HASH.fullmatch(line[name]), name
    assert "bytes" not in line


@pytest.mark.parametrize(("header", "expected"), [(None, None), ("max-age=0", 0), ("max-age=9", 9)])
def test_how_old_an_answer_may_be_is_said_even_where_it_is_not_at_all(
    header: str | None, expected: float | None
) -> None:
    spoken = {} if header is None else {"Cache-Control": header}
    call, plan = asked("?", headers=spoken)
    visit = Visit("r", call.endpoint, 1.0, call, plan, asked_at=NOW)
    line = lines().call(Answered(visit, plan, Outcome(key="k", tier=plan.tier)))
    assert line.get("max_age_s") == expected


def test_a_hit_says_how_large_the_answer_is_and_what_it_cost() -> None:
    meta = meta_of(size_bytes=321, tags=("ab",), cost_s=1.5, ttl_s=77.0)
    one = answered(entry=meta, outcome=Outcome(key="k", tier="hot", level="response", hit=True))
    one.visit.cost_s = meta.cost_s
    line = lines().call(one)
    assert (line["bytes"], line["beside_bytes"], line["cost_s"]) == (321, 1208, 1.5)
    assert (line["stored_at"], line["entry_ttl_s"], line["level"]) == (NOW, 77.0, "response")


def test_a_turn_names_the_answer_that_it_makes_useless() -> None:
    first = [{"role": "user", "content": "q"}]
    later = [*first, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    turn, more = answered(messages=first), answered(messages=later)
    assert lines().call(more)["supersedes"] == lines().call(turn)["key"]
    assert "supersedes" not in lines().call(turn)
    unstored = answered(messages=later, kv_cache={"enabled": True, "ttl": 0})
    assert "supersedes" not in lines().call(unstored)


def test_what_was_stored_and_cleared_has_the_key_of_the_call() -> None:
    one = answered()
    key = lines().call(one)["key"]
    meta = meta_of(key=one.plan.key)
    stored = lines().stored(meta, at=NOW + 1, order=3)
    assert (stored["key"], stored["at"], stored["order"]) == (key, NOW + 1, 3)
    assert (stored["bytes"], stored["entry_ttl_s"], stored["tier"]) == (2, 100.0, "warm")
    assert lines().cleared([one.plan.key], at=NOW, order=4)["keys"] == [key]


def test_a_file_begins_with_the_configuration_that_decides_and_nothing_secret() -> None:
    secret = "sk-operator-secret"
    config = Config.model_validate(
        {
            "tenants": [{"name": "acme", "api_keys": ["sha256:" + "a" * 64], "max_bytes": 1000}],
            "backends": [
                {"name": "up", "base_url": "http://h:1", "models": ["m"], "api_key": secret}
            ],
        }
    )
    made = Lines(SECRET, config, config.rules(), Names.of(config, []), worker=2).begin(at=NOW)
    line = orjson.loads(orjson.dumps(made))
    assert (line["kind"], line["journal"], line["worker"]) == ("begin", 1, 2)
    assert line["shares"] == {SECRET.of("tenant", "acme"): 1000}
    assert (line["engine_kv_bytes"], line["backend_kv_tokens"]) == (0, 1_000_000)
    again = Config.model_validate({"backends": config.backends, **line["config"]})
    assert again.tiers == config.tiers
    assert again.prices == config.prices
    for word in (secret, "acme", "a" * 64, "http:"):
        assert word not in json.dumps(line)


@pytest.mark.parametrize(
    ("kv_cache", "tier", "ttl_s", "priority"),
    [
        (True, "default", "tier", "tier"),
        ({"tier": "hot"}, "request", "tier", "tier"),
        ({"ttl": 5, "priority": "low"}, "default", "request", "request"),
        ({"prompt_type": "faq"}, "prompt_type:faq", "tier", "tier"),
        ({"prompt_type": "secret word"}, "prompt_type:*", "tier", "tier"),
        ({"context": "code_review"}, "default", "context:code_review", "context:code_review"),
        ({"context": "secret word"}, "default", "context:*", "context:*"),
        ({"cache_key": "faq:secret"}, "key_prefix:faq:", "key_prefix:faq:", "key_prefix:faq:"),
        ({"strategy": "adaptive"}, "default", "tier", "tier"),
    ],
)
def test_every_decision_names_the_rule_that_made_it(
    kv_cache: object, tier: str, ttl_s: str, priority: str
) -> None:
    wish = kv_cache if isinstance(kv_cache, bool) else {"enabled": True, **kv_cache}  # type: ignore[dict-item]  # a literal above
    rules = default_rules()
    found = dict(origins(asked("?", wish)[1], lambda because: origin(because, rules)))
    if kv_cache == {"strategy": "adaptive"}:
        assert found["ttl_s"].startswith("context:")
        return
    assert found == {"tier": tier, "ttl_s": ttl_s, "priority": priority}


secrets = st.text(
    st.characters(codec="utf-8", categories=["Lu", "Lo", "Zs"]), min_size=8, max_size=40
)


@given(said=st.lists(secrets, min_size=8, max_size=8), with_entry=st.booleans())
def test_no_text_of_a_request_or_an_answer_can_be_in_a_line(
    said: list[str], with_entry: bool
) -> None:
    message, key, tag, user, model, kind, tool, upstream = said
    messages = [{"role": "user", "content": message * 30}, {"role": tool, "content": None}]
    wishes = {
        "enabled": True, "cache_key": key, "tags": [tag], "prompt_type": kind, "context": kind,
        "batch_id": key,
    }  # fmt: skip
    call, plan = asked(
        "?", wishes, headers={}, principal=Principal("default", user=user), messages=messages,
        model=model, tools=[{"name": tool}],
    )  # fmt: skip
    visit = Visit(message, "chat", 0.0, call, plan, asked_at=NOW)
    entry = meta_of(key=plan.key, cache_key=key, tags=(tag,), user=user, model=model, context=kind)
    visit.entry = entry if with_entry else None
    outcome = Outcome(
        key=plan.public_key,
        tier="warm",
        backend=upstream,
        fallback=model,
        debug=message,
        detail=kind,
    )
    made = [
        lines().call(Answered(visit, plan, outcome)),
        lines().stored(entry, at=NOW, order=0),
        lines().cleared([plan.key], at=NOW, order=0),
    ]
    for line in made:
        strange = [text for text in texts(line) if text not in WORDS and not HASH.fullmatch(text)]
        assert strange == []
        written = orjson.dumps(line)
        assert not any(orjson.dumps(text)[1:-1] in written for text in said)


def test_prompts_agree_in_as_many_blocks_as_they_agree_from_their_start() -> None:
    turn = [{"role": "user", "content": "a" * 1200}]
    longer = [*turn, {"role": "assistant", "content": "b" * 900}, {"role": "user", "content": "c"}]
    edited = [{"role": "user", "content": "a" * 700 + "!" + "a" * 499}, *longer[1:]]

    def blocks(messages: Any, **more: Any) -> Any:
        return lines().call(answered(messages=messages, **more))["blocks"]

    first, second, third = blocks(turn), blocks(longer), blocks(edited)
    assert len(first) == 2
    assert second[:2] == first
    assert third[0] == first[0]
    assert set(third[1:]).isdisjoint(second)
    other = lines(hasher=Hasher(b"other")).call(answered(messages=turn))["blocks"]
    assert set(other).isdisjoint(first)
    assert set(blocks(turn, model="n")).isdisjoint(first), "another model has other KV"
    stranger = answered(messages=turn, principal=Principal("else"))
    assert set(lines().call(stranger)["blocks"]).isdisjoint(first), "nor is it shared by tenants"


def test_the_blocks_of_a_prompt_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal_lines.MOST_BLOCKS", 2)
    line = lines().call(answered("x" * 5000))
    assert len(line["blocks"]) == 2
    assert line["bytes_sent"] > 5000


@pytest.mark.parametrize(
    ("endpoint", "body", "text"),
    [
        ("chat", {"messages": [{"role": "user", "content": "é"}], "tools": [1]},
         '[1]\n{"content":"é","role":"user"}'),
        ("completions", {"prompt": ["a"]}, '["a"]'),
        ("responses", {"instructions": "i", "input": [{"b": 1, "a": 2}]}, '"i"\n{"a":2,"b":1}'),
        ("responses", {"input": "hello"}, '"hello"'),
        ("responses", {}, ""),
        ("embeddings", {"input": "e"}, ""),
        ("completions", {"prompt": 2**70}, str(2**70)),
    ],
)  # fmt: skip
def test_a_prompt_is_its_tools_and_messages(endpoint: Any, body: Any, text: str) -> None:
    call = parse_call("chat", {"model": "m", "messages": [{"role": "user", "content": "?"}]})
    call = type(call)(endpoint, "m", body, stream=False, include_usage=False)
    assert prompt_text(call) == text.encode()


def test_what_cannot_be_written_as_json_has_no_text() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    call = parse_call("completions", {"model": "m", "prompt": "?"})
    assert prompt_text(type(call)("completions", "m", {"prompt": deep}, False, False)) == b""


def test_a_list_of_embeddings_is_marked_and_a_call_without_caching_has_no_key() -> None:
    listed = lines().call(answered(endpoint="embeddings", input=["a", "b"]))
    assert listed["parts"] is True
    assert "parts" not in lines().call(answered(endpoint="embeddings", input="a"))
    uncached = lines().call(answered("x" * 2000, False))
    assert "key" not in uncached
    assert "tier" not in uncached
    assert len(uncached["blocks"]) == 3, "the engine caches prompts anyhow"
