"""A remembered refusal is served to nobody whose request the upstream might have taken."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.backends.dialects import Dialect
from tests.gateway.test_pass_through import PATHS
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, Seen, error_reply, well_behaved
from tests.kit.service import QUESTION, serving

Body = dict[str, Any]


def refusing(is_bad: Callable[[Body], bool]) -> ScriptedUpstream:
    """A server that answers 400 to bodies of a kind, and answers all others well."""

    def answer(seen: Seen) -> Reply:
        return error_reply(400, "refused") if is_bad(seen.body) else well_behaved(seen)

    upstream = ScriptedUpstream()
    upstream.otherwise = answer
    return upstream


def has(name: str, value: Any) -> Callable[[Body], bool]:
    """Whether a body has this value there, written alike."""
    return lambda body: name in body and repr(body[name]) == repr(value)


BAD: dict[str, tuple[Body, Body]] = {
    "metadata": ({"metadata": {str(n): "x" for n in range(17)}}, {}),
    "user": ({"user": 5}, {}),
    "a stream": ({"stream": True}, {}),
    "stream_options": ({"stream_options": {"include_usage": True}}, {}),
    "a null": ({"temperature": None}, {}),
    "a number written otherwise": ({"n": 1.0}, {"n": 1}),
    "a name of the prompt": ({"prompt_cache_key": "k"}, {}),
}


@pytest.mark.parametrize("why", BAD)
async def test_a_refusal_for_what_is_in_no_key_is_not_remembered(why: str) -> None:
    bad, good = BAD[why]
    [(name, value)] = bad.items()
    async with serving(upstream=refusing(has(name, value))) as service:
        refused = await service.chat({"enabled": True}, **bad)
        assert refused.status == 400, refused.raw
        await service.settled()
        answer = await service.chat({"enabled": True}, **good)
        assert (answer.status, answer.headers["X-Cache-Level"]) == (200, "none"), answer.raw


async def test_a_refusal_for_an_older_message_is_not_remembered_for_the_last_question() -> None:
    old = {"role": "user", "content": "bad"}
    wish = {"enabled": True, "context_aware": False}
    async with serving(upstream=refusing(lambda body: old in body["messages"])) as service:
        assert (await service.chat(wish, messages=[old, *QUESTION])).status == 400
        await service.settled()
        assert (await service.chat(wish, messages=QUESTION)).status == 200


async def test_a_refusal_for_a_depth_outside_the_key_is_not_remembered() -> None:
    body = json.dumps({"model": "m", "messages": QUESTION, "kv_cache": {"enabled": True}})
    deep = body[:-1] + ', "metadata": ' + '{"x":' * 300 + "1" + "}" * 301
    async with serving() as service:
        assert (await service.send("POST", PATHS["chat"], deep.encode())).status == 400
        await service.settled()
        assert (await service.chat({"enabled": True})).status == 200


@pytest.mark.parametrize(
    "dialect", ["generic", "openai", "deepseek", "vllm", "sglang", "llamacpp", "kvgate"]
)
async def test_a_refusal_of_what_the_key_covers_is_remembered_for_every_make(
    dialect: Dialect,
) -> None:
    async with refusing(has("temperature", 9)) as upstream:
        backend = {"name": "up", "base_url": upstream.url, "dialect": dialect, "models": ["m"]}
        async with serving(backends=[backend]) as service:
            for level in ("none", "negative"):
                answer = await service.chat({"enabled": True}, temperature=9)
                assert answer.status == 400, answer.raw
                assert answer.headers.get("X-Cache-Level", "none") == level
                await service.settled()
            assert upstream.calls == 1


async def test_what_a_make_is_told_beyond_the_key_counts_as_sent() -> None:
    """OpenAI gets breakpoints for lasting prompts only, and may refuse those."""

    def marked(body: Body) -> bool:
        return "prompt_cache_breakpoint" in str(body["messages"])

    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    async with refusing(marked) as upstream:
        backend = {
            "name": "up", "base_url": upstream.url, "dialect": "openai", "models": ["gpt-5.6"],
        }  # fmt: skip
        async with serving(backends=[backend]) as service:
            for priority, status in (("high", 400), ("low", 200)):
                wish = {"enabled": True, "priority": priority}
                answer = await service.chat(wish, model="gpt-5.6", messages=messages)
                assert answer.status == status, answer.raw
                await service.settled()


async def test_a_refusal_of_one_of_several_backends_is_not_remembered() -> None:
    async with refusing(lambda _: True) as small, ScriptedUpstream() as large:
        backends = [
            {"name": name, "base_url": one.url, "models": ["m"]}
            for name, one in (("small", small), ("large", large))
        ]
        async with serving(backends=backends, routing={"strategy": "round_robin"}) as service:
            statuses = []
            for _ in range(2):
                statuses.append((await service.chat({"enabled": True})).status)
                await service.settled()
            assert sorted(statuses) == [200, 400]


async def test_a_list_of_one_input_that_is_refused_says_nothing_of_the_input_alone() -> None:
    async with serving(upstream=refusing(lambda body: isinstance(body["input"], list))) as service:
        for given, status, calls in ((["a"], 400, 1), (["a"], 400, 1), ("a", 200, 2)):
            body = {"model": "m", "input": given, "kv_cache": {"enabled": True}}
            answer = await service.send("POST", PATHS["embeddings"], body)
            assert answer.status == status, answer.raw
            await service.settled()
            assert service.upstream.calls == calls
