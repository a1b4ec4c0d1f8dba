"""What a name in a request stands for: an answer, a prompt's beginning, a shared context."""

from typing import Any

import pytest

from tests.kit.scripted_upstream import ScriptedUpstream
from tests.kit.service import QUESTION, serving

BASE = [{"role": "system", "content": "You know the handbook."}]
OTHER: list[Any] = [{"role": "user", "content": "Something else?"}]


@pytest.mark.parametrize("how", ["header", "body", "stands in"])
@pytest.mark.parametrize("said_by", ["config", "client"])
async def test_questions_under_a_shared_context_have_answers_of_their_own(
    how: str, said_by: str
) -> None:
    defaults = {"enabled": True, "match": "key" if said_by == "config" else "exact"}
    match = {"match": "key"} if said_by == "client" and how != "stands in" else {}
    async with serving(defaults=defaults) as service:
        made = await service.send("PUT", "/v1/cache/contexts/book", {"base_messages": BASE})
        assert made.status == 201, made.raw
        for question in (QUESTION, OTHER):
            messages, wish, headers = [*BASE, *question], dict(match), {}
            if how == "header":
                headers = {"X-Cache-ID": "book"}
            elif how == "body":
                wish["cache_key"] = "book"
            else:
                messages, wish = question, {"shared_context": "book"}
            answer = await service.chat(wish, headers=headers, messages=messages)
            assert answer.status == 200, answer.raw
            assert answer.headers["X-Cache-Level"] == "none"
        assert service.upstream.calls == 2


async def test_a_context_that_another_process_has_made_identifies_no_answer_either(
    tmp_path: Any,
) -> None:
    """Its name has not been read here yet, but a key that alone names an answer is looked up."""
    config: Any = {
        "defaults": {"enabled": True, "match": "key"},
        "store": {"disk_path": str(tmp_path)},
        "tiers": {"cold": {"store": "disk"}},
    }
    async with serving(**config) as other:
        made = await other.send("PUT", "/v1/cache/contexts/book", {"base_messages": BASE})
        assert made.status == 201, made.raw
        async with serving(**config) as service:
            for question in (QUESTION, OTHER):
                headers = {"X-Cache-ID": "book"}
                answer = await service.chat(headers=headers, messages=[*BASE, *question])
                assert answer.headers["X-Cache-Level"] == "none"
            assert service.upstream.calls == 2


async def test_a_prompt_cache_key_splits_no_entries_and_names_none() -> None:
    async with serving() as service:
        keys: list[dict[str, Any]] = [{}, {"prompt_cache_key": "a"}, {"prompt_cache_key": "b"}]
        for number, key in enumerate(keys):
            answer = await service.chat({"enabled": True}, **key)
            assert answer.headers["X-Cache-Level"] == ("response" if number else "none")
        wish = {"enabled": True, "match": "key"}
        other = await service.chat(wish, messages=OTHER, prompt_cache_key="a")
        assert other.headers["X-Cache-Level"] == "none"
        gone = await service.send("POST", "/v1/cache/invalidate", {"cache_key": "a"})
        assert gone.body["entries"] == 0
        assert service.upstream.calls == 2


async def test_a_prompt_cache_key_steers_to_the_backend_that_had_it_and_sets_the_lifetime() -> None:
    async with ScriptedUpstream() as one, ScriptedUpstream() as two:
        backends = [
            {"name": name, "base_url": up.url, "models": ["m"]}
            for name, up in (("one", one), ("two", two))
        ]
        rules = {"faq:": {"tier": "hot", "ttl": 86400}}
        async with serving(backends=backends, key_prefixes=rules) as service:
            for number in range(6):
                question = [{"role": "user", "content": f"{number} is asked?"}]
                answer = await service.chat(
                    {"enabled": True}, messages=question, prompt_cache_key="faq:talk"
                )
                assert answer.headers["X-Cache-TTL"] == "86400"
        assert sorted((one.calls, two.calls)) == [0, 6]
