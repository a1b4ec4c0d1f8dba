"""Two requests that differ anywhere in what can change the answer never share an entry.

Every field of OpenAI's requests, fields nobody knows, every leaf of a rich body, values that only
look alike, equal strings in different parts of a key. Each has its twin: requests that differ only in
what cannot change the answer do share, or all of this would pass with a cache that is dead.
"""

import copy
import json
import unicodedata
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from policies.call import NOT_IN_THE_ANSWER, Endpoint, parse_call
from policies.directive import parse_directive
from policies.embeddings import part_of, places_of
from policies.keys import Principal
from policies.plan import Plan, decide
from policies.rules import Limits, default_rules
from tests.kit.service import Answer, Service, serving
from tests.policies.making import few, json_values, texts

RULES = default_rules()
OPEN = Principal("t", trusted=True)
Path = tuple[str | int, ...]
Body = dict[str, Any]

BARE: dict[Endpoint, Body] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "What is asked?"}]},
    "completions": {"model": "m", "prompt": "Once upon"},
    "embeddings": {"model": "m", "input": "a text"},
}
ASKED = {"messages", "prompt", "input"}
TYPES: dict[Endpoint, type] = {
    "chat": chat_create_params.CompletionCreateParamsNonStreaming,
    "completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "embeddings": embedding_create_params.EmbeddingCreateParams,
}
OTHERS = ("top_k", "min_p", "repetition_penalty", "guided_json", "chat_template_kwargs", "kv",
          "Temperature", "temperature ", "system", "x_unknown", "__proto__", "")  # fmt: skip
FIELDS = [
    (endpoint, name)
    for endpoint, kind in TYPES.items()
    for name in (*sorted(get_type_hints(kind)), *OTHERS)
    if name not in NOT_IN_THE_ANSWER | ASKED
]


def plan_of(
    body: Body,
    endpoint: Endpoint = "chat",
    kv_cache: Any = None,
    principal: Principal = OPEN,
) -> Plan:
    wish = {"enabled": True} if kv_cache is None else kv_cache
    directive = parse_directive(
        wish, (), limits=Limits(), prompt_cache_key=body.get("prompt_cache_key")
    )
    return decide(parse_call(endpoint, body), directive, principal, RULES)


def key_of(body: Body, endpoint: Endpoint = "chat") -> bytes:
    return plan_of(body, endpoint).key


def meaning(value: Any) -> Any:
    """What JSON data says: ``1`` and ``1.0`` are one number, and everything else is itself."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, dict):
        return {name: meaning(inner) for name, inner in value.items()}
    return [meaning(inner) for inner in value] if isinstance(value, list) else ("text", value)


def test_the_deny_list_is_the_documented_one() -> None:
    assert sorted(NOT_IN_THE_ANSWER) == [
        "kv_cache", "metadata", "model", "prompt_cache_key", "stream", "stream_options", "user",
    ]  # fmt: skip


# ---- every field


@pytest.mark.parametrize(("endpoint", "name"), FIELDS)
def test_requests_that_differ_in_one_field_have_two_entries(endpoint: Endpoint, name: str) -> None:
    @few
    @given(one=json_values, other=json_values)
    def differ(one: Any, other: Any) -> None:
        first, second = (
            key_of({**BARE[endpoint], name: value}, endpoint) for value in (one, other)
        )
        assert (first == second) == (meaning(one) == meaning(other))
        # absent and null are one; anything else is not absent
        assert (first == key_of(BARE[endpoint], endpoint)) == (one is None)

    differ()


@few
@given(data=st.data())
def test_the_same_value_in_two_fields_is_two_questions(data: st.DataObject) -> None:
    endpoint, name = data.draw(st.sampled_from(FIELDS))
    twin = data.draw(st.sampled_from([one for where, one in FIELDS if where == endpoint]))
    value = data.draw(json_values)
    assume(value is not None and name != twin)
    base = BARE[endpoint]
    assert key_of({**base, name: value}, endpoint) != key_of({**base, twin: value}, endpoint)


@pytest.mark.parametrize("endpoint", list(BARE))
@pytest.mark.parametrize("name", sorted(NOT_IN_THE_ANSWER - {"model", "stream", "stream_options"}))
def test_fields_that_cannot_change_the_answer_share_one_entry(
    endpoint: Endpoint, name: str
) -> None:
    values: list[Any] = ["a", "b"] if name == "prompt_cache_key" else ["a", {"b": [1]}, None, 7]
    shared = {
        plan_of({**BARE[endpoint], name: value}, endpoint, {"enabled": True, "cache_key": "k"}).key
        for value in values
    }
    assert len(shared) == 1


# ---- every leaf of a rich body

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "finds",
        "strict": True,
        "parameters": {"type": "object", "properties": {"q": {"type": "string", "minLength": 1}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"q":1}'}}
RICH: Body = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief, café."},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": []}}},
    "temperature": 1,
    "top_p": 0.5,
    "n": 2,
    "seed": 0,
    "stop": ["a", "b"],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "vendor": {"deep": [[{"er": "est"}]]},
}  # fmt: skip


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where the scalars are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for step, one in inner:
        if isinstance(one, dict | list) and one:
            yield from leaves(one, (*path, step))
        else:
            yield (*path, step)


def changed(path: Path, value: Any, body: Body = RICH) -> Body:
    """The body with another value at ``path``."""
    copied: Any = copy.deepcopy(body)
    inner = copied
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    whole: Body = copied
    return whole


def without(path: Path) -> Body:
    copied: Any = copy.deepcopy(RICH)
    inner = copied
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    whole: Body = copied
    return whole


def look_alikes(value: Any) -> list[Any]:
    """Other values that a careless comparison takes for this one."""
    if isinstance(value, bool):
        return [not value, int(value), str(value).lower(), str(value), [value]]
    if isinstance(value, int | float):
        return [value + 1, value + 1e-9, -value - 1, str(value), [value], value == 1]
    if value is None:
        return ["", 0, False, "null", [], {}]
    if isinstance(value, list | dict):
        return [[None], {"": None}, "", "[]"]
    spelt = [
        f"{value} ", f" {value}", f"{value}\n", f"{value}\0", f"\ufeff{value}", f"{value}\u200d",
        value.upper(), value.title(), value[:-1], value + value[-1:], json.dumps(value),
        value.replace("a", "а").replace("e", "е").replace("o", "о"),
        value.translate({ord("a"): "ａ", ord("o"): "ｏ", ord("1"): "１"}),
        unicodedata.normalize("NFD", value), unicodedata.normalize("NFKC", value), "", None, [value],
    ]  # fmt: skip
    return [other for other in spelt if other != value]


def value_at(path: Path) -> Any:
    inner: Any = RICH
    for step in path:
        inner = inner[step]
    return inner


def fits(path: Path, value: Any) -> bool:
    """Whether the gateway takes such a value there at all: a few shapes are its own to check."""
    if path[0] != "messages" or len(path) > 3:
        return True
    return (path[-1] != "role" or isinstance(value, str)) and (
        path[-1] != "content" or value is None or isinstance(value, str)
    )


VARIANTS: dict[str, Body] = {
    f"{'.'.join(map(str, path))} = {value!r}": changed(path, value)
    for path in leaves(RICH)
    if path != ("model",)
    for value in look_alikes(value_at(path))
    if fits(path, value) and not (len(path) == 1 and value is None)
}
VARIANTS |= {
    f"no {'.'.join(map(str, path))}": without(path)
    for path in leaves(RICH)
    if path[0] not in {"model", "messages"}
}
VARIANTS |= {
    f"{name} turned round": {**RICH, name: RICH[name][::-1]} for name in ("messages", "stop")
}
VARIANTS |= {
    "a tool twice": {**RICH, "tools": [TOOL, TOOL]},
    "no tools": {**RICH, "tools": []},
    "stop as text": {**RICH, "stop": "a"},
    "messages joined": {**RICH, "messages": [*RICH["messages"][:3], *RICH["messages"][4:]]},
    "the last message twice": {**RICH, "messages": [*RICH["messages"], RICH["messages"][-1]]},
}


def same(one: Body, other: Body) -> bool:
    """Whether they differ only in what cannot change the answer: here, nowhere."""
    return bool(meaning(one) == meaning(other))


def test_every_leaf_of_a_rich_body_is_part_of_its_key() -> None:
    seen: dict[bytes, str] = {key_of(RICH): "the body itself"}
    assert len(VARIANTS) > 400
    for name, body in VARIANTS.items():
        twin = seen.setdefault(key_of(body), name)
        other = RICH if twin == "the body itself" else VARIANTS[twin]
        assert twin == name or same(body, other), f"{name} shares the entry of {twin}"


def test_the_order_of_fields_and_the_spelling_of_numbers_are_no_difference() -> None:
    turned = {name: RICH[name] for name in reversed(RICH)}
    spelt = {**RICH, "temperature": 1.0, "n": 2.0, "seed": -0.0, "top_p": 5e-1}
    assert key_of(turned) == key_of(spelt) == key_of(RICH)


def test_numbers_words_and_truths_that_look_alike_are_documented_as_apart() -> None:
    keys = {repr(value): key_of({**RICH, "seed": value}) for value in (1, "1", True, 1.0, [1])}
    assert keys["1"] == keys["1.0"]
    assert len(set(keys.values())) == 4


@few
@given(one=st.lists(texts, min_size=1, max_size=4), other=st.lists(texts, min_size=1, max_size=4))
def test_texts_cut_in_another_place_are_another_conversation(
    one: list[str], other: list[str]
) -> None:
    def said(parts: list[str]) -> Body:
        return {"model": "m", "messages": [{"role": "user", "content": text} for text in parts]}

    assert (key_of(said(one)) == key_of(said(other))) == (one == other)


# ---- parts of a key

strings = texts | st.sampled_from(["tenant", "t", "user", "m", "None", "b1:", "s1:t"])
places = st.fixed_dictionaries(
    {
        "tenant": strings.filter(bool),
        "user": strings,
        "model": strings.filter(bool),
        "cache_key": st.none() | st.sampled_from(["t", "m", "a", "a:b", "v1:t:m"]),
        "text": strings,
        "scope": st.sampled_from(["tenant", "user"]),
        "match": st.sampled_from(["exact", "key"]),
        "endpoint": st.sampled_from(["chat", "completions", "embeddings"]),
    }
)


def placed(where: dict[str, Any]) -> tuple[bytes, tuple[Any, ...]]:
    """The key, and all that may be seen in it."""
    endpoint: Endpoint = where["endpoint"]
    matched = where["match"] if where["cache_key"] is not None else "exact"
    wish = {"enabled": True, "cache_key": where["cache_key"], "scope": where["scope"]}
    if matched == "key":
        wish["match"] = matched
    given = {
        "chat": {"messages": [{"role": "user", "content": where["text"]}]},
        "completions": {"prompt": where["text"]},
        "embeddings": {"input": where["text"]},
    }[endpoint]
    principal = Principal(where["tenant"], user=where["user"])
    plan = plan_of({"model": where["model"], **given}, endpoint, wish, principal)
    user = where["user"] if where["scope"] == "user" else None
    text = where["text"] if matched == "exact" else None
    said = (where["tenant"], where["scope"], user, where["model"], where["cache_key"], matched)
    return plan.key, (*said, endpoint, text)


@given(one=places, other=places)
@few
def test_keys_are_equal_only_when_every_part_is(one: dict[str, Any], other: dict[str, Any]) -> None:
    (first, said), (second, heard) = placed(one), placed(other)
    assert (first == second) == (said == heard)


@given(base=places, data=st.data())
@few
def test_a_string_that_moves_to_another_part_makes_another_key(
    base: dict[str, Any], data: st.DataObject
) -> None:
    names = ["tenant", "user", "model", "text"]
    one, other = data.draw(st.permutations(names))[:2]
    moved = {**base, one: base[other] or "x", other: base[one] or "x"}
    assert (placed(base)[0] == placed(moved)[0]) == (placed(base)[1] == placed(moved)[1])


# ---- embeddings: each input is a question


@few
@given(one=json_values, other=json_values, field=st.sampled_from(["dimensions", "x_unknown"]))
def test_an_input_of_a_list_is_keyed_by_all_that_is_asked_of_it(
    one: Any, other: Any, field: str
) -> None:
    def key(value: Any) -> bytes:
        call = parse_call("embeddings", {"model": "m", "input": ["a", "b"], field: value})
        plan = plan_of({"model": "m", "input": ["a", "b"], field: value}, "embeddings")
        return part_of(call, plan, *places_of(call)[1]).plan.key

    assert (key(one) == key(other)) == (meaning(one) == meaning(other))


@few
@given(one=texts, other=texts, beside=st.lists(texts, max_size=3))
def test_an_input_of_a_list_is_keyed_by_its_text_and_not_by_its_company(
    one: str, other: str, beside: list[str]
) -> None:
    def key(text: str, company: list[str]) -> bytes:
        body = {"model": "m", "input": [*company, text]}
        call, plan = parse_call("embeddings", body), plan_of(body, "embeddings")
        found = {item: part_of(call, plan, item, where) for item, where in places_of(call)}
        return found[text].plan.key

    assert key(one, beside) == key(one, []) == key_of({"model": "m", "input": one}, "embeddings")
    assert (key(one, beside) == key(other, [])) == (one == other)


# ---- through HTTP

PLAIN: Body = {**BARE["chat"], "temperature": 1}
SHOWN: list[Body] = [
    PLAIN,
    {**PLAIN, "temperature": "1"},
    {**PLAIN, "temperature": True},
    {**PLAIN, "seed": 1},
    {**PLAIN, "Seed": 1},
    {**PLAIN, "x_unknown": {"a": 1}},
    {**PLAIN, "x_unknown": {"a": 1, "b": None}},
    {**PLAIN, "x_unknown": [{"a": 1}]},
    {**PLAIN, "tools": [TOOL]},
    {**PLAIN, "response_format": {"type": "json_object"}},
    *(
        {**PLAIN, "messages": [{"role": "user", "content": text}]}
        for text in ("What is asked? ", "what is asked?", "Whаt is asked?", "What is asked?\u200b")
    ),
    {**PLAIN, "messages": [{"role": "system", "content": "What is asked?"}]},
    {**PLAIN, "messages": [{"role": "user", "content": [{"type": "text", "text": "What is asked?"}]}]},
    {**PLAIN, "messages": [{"role": "user", "name": "u", "content": "What is asked?"}]},
    {**PLAIN, "messages": PLAIN["messages"] * 2},
]  # fmt: skip
ALIKE: list[Body] = [
    {**PLAIN, "temperature": 1.0},
    {**PLAIN, "user": "u-1"},
    {**PLAIN, "metadata": {"trace": "1"}},
    {**PLAIN, "stream": False},
    {**PLAIN, "seed": None},
    dict(reversed(PLAIN.items())),
]


async def ask(service: Service, body: Body, path: str = "/v1/chat/completions") -> Answer:
    answer = await service.send("POST", path, {**body, "kv_cache": {"enabled": True}})
    await service.settled()
    return answer


def is_stored(answer: Answer) -> bool:
    return answer.headers["X-Cache-Level"] == "response"


async def test_on_the_wire_too_every_difference_is_a_call_of_its_own() -> None:
    async with serving() as service:
        first = [await ask(service, body) for body in SHOWN]
        assert [is_stored(answer) for answer in first] == [False] * len(SHOWN)
        assert service.upstream.calls == len(SHOWN)
        again = [await ask(service, body) for body in SHOWN]
        assert [is_stored(answer) for answer in again] == [True] * len(SHOWN)
        assert len({answer.headers["X-Cache-Key"] for answer in again}) == len(SHOWN)


async def test_on_the_wire_too_what_cannot_change_the_answer_finds_it() -> None:
    async with serving() as service:
        await ask(service, PLAIN)
        for body in ALIKE:
            assert is_stored(await ask(service, body)), body
        assert service.upstream.calls == 1


async def test_one_text_asked_at_three_endpoints_is_three_questions() -> None:
    body = {"model": "m", "messages": BARE["chat"]["messages"], "prompt": "a", "input": "a"}
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    async with serving() as service:
        assert [is_stored(await ask(service, body, path)) for path in paths] == [False] * 3
        assert [is_stored(await ask(service, body, path)) for path in paths] == [True] * 3
        kinds = [(await ask(service, body, path)).body["object"] for path in paths]
        assert kinds == ["chat.completion", "text_completion", "list"]


async def test_a_name_of_an_entry_and_a_model_are_never_taken_for_each_other() -> None:
    async with serving(models=("m", "n")) as service:
        wishes = [("m", "n"), ("n", "m"), ("m", "m"), ("n", "n")]
        for stored in (False, True):
            for model, name in wishes:
                wish = {"enabled": True, "cache_key": name}
                answer = await service.chat(wish, model=model)
                await service.settled()
                assert is_stored(answer) is stored
