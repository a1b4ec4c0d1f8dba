"""Shared contexts from end to end: who is in shares all of it, who is not gets nothing of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from gateway.backends.openai import OpenAIBackend
from gateway.store.base import StoreError
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, Seen, chat_body, json_reply
from tests.kit.service import Answer, Service, serving

OPS, PROXY, ANN, BOB, FOREIGN = (
    f"kv-{name}-1d7f20c9b8a46e53" for name in ("ops", "proxy", "ann", "bob", "foreign")
)
TENANTS = [
    {"name": "acme", "api_keys": [OPS]},
    {"name": "acme", "api_keys": [PROXY], "trusted_proxy": True},
    {"name": "acme", "api_keys": [ANN], "user": "ann"},
    {"name": "acme", "api_keys": [BOB], "user": "bob"},
    {"name": "other", "api_keys": [FOREIGN], "trusted_proxy": True},
]
PATH = "/v1/cache/contexts/team"
BASE = {"role": "system", "content": "You are an expert code reviewer."}
LOOK = {"role": "user", "content": "Please review this function."}
NAMED = {"enabled": True, "shared_context": "team"}
BY_ID = {"X-Cache-Enable": "true", "X-Cache-ID": "team"}


@asynccontextmanager
async def company(upstream: ScriptedUpstream | None = None) -> AsyncIterator[Service]:
    async with serving(tenants=TENANTS, upstream=upstream) as service:
        yield service


async def put(service: Service, *users: str, key: str = OPS, text: str | None = None) -> Answer:
    base = {**BASE, "content": text} if text else BASE
    body = {"base_messages": [base], "allowed_users": list(users)}
    return await service.send("PUT", PATH, body, key=key)


async def named(service: Service, key: str = ANN, **more: Any) -> Answer:
    return await service.chat(NAMED, key=key, messages=[LOOK], **more)


async def by_id(
    service: Service, user: str | None = None, *, key: str = PROXY, **headers: str
) -> Answer:
    said = {**BY_ID, **({"X-Cache-User": user} if user else {}), **headers}
    return await service.chat(key=key, headers=said, messages=[BASE, LOOK])


def level(answer: Answer) -> str:
    assert answer.status == 200, answer.raw
    return answer.headers["X-Cache-Level"]


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.error["code"]


class Numbered(ScriptedUpstream):
    """Each answer says which it is, so that a shared one is recognised."""

    def __init__(self, *replies: Reply) -> None:
        super().__init__(*replies)
        self.otherwise = self._numbered

    def _numbered(self, seen: Seen) -> Reply:
        return json_reply(chat_body(seen.body, [f"answer {self.calls + 1}"]))

    def asked(self, call: int) -> Sequence[Any]:
        messages: Sequence[Any] = self.seen[call].body["messages"]
        return messages


async def test_users_of_a_context_share_its_answers_and_nobody_else_does() -> None:
    async with company(Numbered()) as service:
        await put(service, "ann", "carol")
        assert level(await by_id(service, "ann")) == "none"
        assert level(await by_id(service, "carol")) == "response"
        assert code(await by_id(service, "dave")) == (403, "context_forbidden")
        outside = await service.chat({"enabled": True}, key=BOB, messages=[BASE, LOOK])
        assert (level(outside), outside.text) == ("none", "answer 2")


async def test_a_named_context_stands_in_for_its_text_and_meets_those_who_send_it() -> None:
    upstream = Numbered()
    async with company(upstream) as service:
        await put(service)
        first = await named(service)
        assert upstream.asked(0) == [BASE, LOOK]
        assert "kv_cache" not in upstream.seen[0].body
        assert level(await by_id(service, "carol")) == "response"
        assert level(await service.chat(NAMED, key=BOB, messages=[BASE, LOOK])) == "response"
        streamed = await named(service, key=BOB, stream=True)
        assert streamed.text == first.text == "answer 1"


async def test_the_first_shared_call_makes_the_context() -> None:
    async with company() as service:
        made = await by_id(service, key=ANN, **{"X-Cache-Shared": "true", "X-Cache-TTL": "900"})
        assert level(made) == "none"
        assert level(await by_id(service, key=BOB)) == "response"
        shown = (await service.send("GET", PATH, key=OPS)).body
        assert (shown["made_by"], shown["ttl"], shown["priority"]) == ("ann", 900, "high")
        assert shown["base_messages"] == [BASE]
        assert shown["usage"]["users"] == {"ann": 1, "bob": 1}


async def test_one_name_in_two_tenants_is_two_contexts() -> None:
    async with company(Numbered()) as service:
        await put(service)
        assert (await named(service)).text == "answer 1"
        assert code(await named(service, key=FOREIGN)) == (404, "context_not_found")
        await put(service, key=FOREIGN)
        assert (await named(service, key=FOREIGN)).text == "answer 2"
        await service.send("DELETE", PATH, key=FOREIGN)
        assert level(await named(service)) == "response"
        assert code(await named(service, key=FOREIGN)) == (404, "context_not_found")


@pytest.mark.parametrize("ask", [named, by_id])
async def test_a_right_taken_away_between_two_equal_calls_is_gone(ask: Any) -> None:
    async with company() as service:
        await put(service, "ann", "bob")
        assert level(await ask(service, key=ANN)) == "none"
        assert level(await ask(service, key=ANN)) == "response"
        assert level(await ask(service, key=ANN)) == "response"
        await put(service, "bob")
        assert code(await ask(service, key=ANN)) == (403, "context_forbidden")
        assert level(await ask(service, key=BOB)) == "response"


@pytest.mark.parametrize("caches", [True, False])
@pytest.mark.parametrize("made", ["put", "first use"])
async def test_a_context_that_takes_a_name_in_use_shuts_nobody_out(made: str, caches: bool) -> None:
    """Those who send the name as their cache key go on as before, whether or not they are allowed."""
    cooking = [{**BASE, "content": "You are an expert cook."}, LOOK]

    async def plain(key: str, messages: list[Any]) -> str:
        headers = BY_ID if caches else {"X-Cache-ID": "team"}
        return level(await service.chat(key=key, headers=headers, messages=messages))

    async with company(Numbered()) as service:
        for key, messages in ((ANN, [BASE, LOOK]), (OPS, cooking)):
            assert await plain(key, messages) == "none"
        if made == "put":
            answer = await put(service, "bob")
            assert (answer.status, answer.body["by_id"]) == (201, False)
        else:
            assert level(await by_id(service, key=BOB, **{"X-Cache-Shared": "true"})) == "none"
        before = "response" if caches else "none"
        for key, messages in ((ANN, [BASE, LOOK]), (BOB, [BASE, LOOK]), (OPS, cooking)):
            assert await plain(key, messages) == before
        # The context itself is there for those who name it as one.
        assert (await named(service, key=BOB)).status == 200
        assert level(await named(service, key=BOB)) == "response"
        if made == "put":
            assert code(await named(service, key=ANN)) == (403, "context_forbidden")


async def test_a_name_that_answers_in_another_process_is_in_use_too(tmp_path: Path) -> None:
    tiers = {"warm": {"store": "disk"}}
    wishes: dict[str, Any] = {"tiers": tiers, "store": {"disk_path": str(tmp_path)}}
    async with serving(tenants=TENANTS, **wishes) as service:
        assert level(await by_id(service, key=ANN)) == "none"
        await service.settled()
    async with serving(tenants=TENANTS, **wishes) as service:
        assert (await put(service, "bob")).body["by_id"] is False
        assert level(await by_id(service, key=ANN)) == "response"
        other = await service.send("PUT", PATH + "2", {"base_prompt": "Review."}, key=OPS)
        assert other.body["by_id"] is True


async def test_a_context_made_again_shares_nothing_with_what_it_was() -> None:
    async with company(Numbered()) as service:
        await put(service, "ann")
        assert (await named(service)).text == "answer 1"
        answer = await service.send("DELETE", PATH, key=OPS)
        assert answer.body["entries"] == 1
        await put(service, "ann", "bob")
        assert (await named(service, key=BOB)).text == "answer 2"


async def test_another_text_is_another_context_and_other_users_are_not() -> None:
    async with company(Numbered()) as service:
        await put(service, "ann")
        await named(service)
        await put(service, "ann", "bob")
        assert (await named(service, key=BOB)).text == "answer 1"
        await put(service, "ann", "bob", text="Review prose.")
        assert (await named(service, key=BOB)).text == "answer 2"
        await put(service, "ann", "bob")
        assert (await named(service, key=BOB)).text == "answer 3"


async def test_a_context_deleted_in_the_middle_of_a_flight_serves_who_asked_and_keeps_nothing() -> (
    None
):
    gate = Gate()
    upstream = Numbered(Reply((gate, json_reply(chat_body({"model": "m"})).steps[0])))
    async with company(upstream) as service:
        await put(service, "ann")
        asking = asyncio.create_task(named(service))
        await gate.reached()
        await service.send("DELETE", PATH, key=OPS)
        assert code(await named(service)) == (404, "context_not_found")
        await put(service, "bob")
        other = await named(service, key=BOB)  # does not read along with ann's
        assert (level(other), other.text) == ("none", "answer 2")
        gate.open()
        assert (await asking).text == "You asked well."
        await service.settled()
        assert (await named(service, key=BOB)).text == "answer 2"
        entries = await service.send("GET", "/v1/cache/entries", key=OPS)
        assert len(entries.body["data"]) == 1


async def test_what_differs_is_told_to_members_only() -> None:
    async with company() as service:
        await put(service, "ann")
        other = [{**BASE, "content": "You are an expert cook."}, LOOK]
        answer = await service.chat(key=ANN, headers=BY_ID, messages=other)
        assert (answer.status, answer.error["param"]) == (400, "messages[0].content")
        assert "character 20" in answer.error["message"]
        answers = [
            await service.chat(key=BOB, headers=BY_ID, messages=messages)
            for messages in (other, [BASE, LOOK])
        ]
        assert [code(answer) for answer in answers] == [(403, "context_forbidden")] * 2
        assert answers[0].error == answers[1].error
        assert service.upstream.calls == 0


async def test_who_is_not_in_sees_and_clears_nothing_of_it_on_other_routes() -> None:
    async with company() as service:
        await put(service, "ann")
        key = (await named(service)).headers["X-Cache-Key"]
        path = f"/v1/cache/entries/{key}"
        for owner, count, status in ((ANN, 1, 200), (OPS, 1, 200), (BOB, 0, 404)):
            listed = await service.send("GET", "/v1/cache/entries", key=owner)
            assert len(listed.body["data"]) == count
            assert (await service.send("GET", path, key=owner)).status == status
        assert (await service.send("DELETE", path, key=BOB)).status == 404
        selector = {"context": "team"}
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=BOB)
        assert code(answer) == (403, "context_forbidden")
        assert level(await named(service)) == "response"
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=ANN)
        assert answer.body["entries"] == 1
        assert level(await named(service)) == "none"


@pytest.mark.parametrize("selector", [{"cache_key": "team"}, {"prefix": "te"}, {"all": True}])
async def test_clearing_by_another_name_drops_nothing_of_a_circle_one_is_not_in(
    selector: dict[str, Any],
) -> None:
    async with company() as service:
        await put(service, "ann")
        for asking, seen in ((BOB, 0), (ANN, 1)):
            await by_id(service, "ann")
            answer = await service.send("POST", "/v1/cache/invalidate", selector, key=asking)
            assert answer.body == {"entries": seen, "kv_tokens": 0}
            assert level(await by_id(service, "ann")) == ("none" if seen else "response")


async def test_what_a_user_keeps_to_himself_is_nobody_elses_to_look_at() -> None:
    async with company() as service:
        answer = await service.chat({"enabled": True, "scope": "user"}, key=ANN)
        path = f"/v1/cache/entries/{answer.headers['X-Cache-Key']}"
        assert (await service.send("GET", path, key=ANN)).status == 200
        assert (await service.send("GET", path, key=BOB)).status == 404


async def test_invalidating_takes_the_kv_of_the_edition_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dropped: list[str | None] = []

    async def drop(_: OpenAIBackend, salt: str | None) -> int:
        dropped.append(salt)
        return 64

    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", drop)
    async with company() as service:
        await put(service, "ann")
        contexts = service.gateway.contexts
        terms = await contexts.held.find("acme", "team")
        assert terms is not None
        for selector in ({"context": "team"}, {"all": True}):
            await service.send("POST", "/v1/cache/invalidate", selector, key=OPS)
            assert contexts.salt(terms) in dropped
            dropped.clear()
        await service.send("POST", "/v1/cache/invalidate", {"context": "code_review"}, key=OPS)
        assert dropped == []


async def test_a_proxys_word_is_taken_and_a_plain_keys_is_not() -> None:
    async with company() as service:
        await put(service, "ann")
        assert level(await by_id(service, "ann", key=PROXY)) == "none"
        assert code(await by_id(service, "ann", key=OPS)) == (403, "user_mismatch")
        assert code(await by_id(service, key=OPS)) == (403, "context_forbidden")


async def test_a_context_lives_from_its_last_use() -> None:
    async with company() as service:
        await put(service)
        for _ in range(4):
            service.clock.advance(7000)
            assert (await named(service)).status == 200
            await service.settled()
        service.clock.advance(7200)
        assert code(await named(service)) == (404, "context_not_found")
        assert code(await service.send("GET", PATH, key=OPS)) == (404, "context_not_found")


async def test_when_its_store_is_down_whole_prompts_are_answered_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def down(*_: str) -> bytes:
        raise StoreError("down")

    async with company() as service:
        await put(service, "ann")
        with monkeypatch.context() as patched:
            patched.setattr(service.gateway.contexts.held, "find", down)
            answer = await by_id(service, "ann", **{"X-Cache-Debug": "true"})
            assert level(answer) == "none"
            assert "does not answer" in answer.headers["X-Cache-Debug"]
            assert code(await named(service)) == (503, "store_unavailable")
        assert level(await by_id(service, "ann")) == "none"


async def test_completions_have_contexts_and_embeddings_have_none() -> None:
    upstream = ScriptedUpstream()
    async with company(upstream) as service:
        await put(service)
        body = {"model": "m", "prompt": " Look.", "kv_cache": NAMED}
        answer = await service.send("POST", "/v1/completions", body, key=ANN)
        assert level(answer) == "none"
        assert upstream.seen[0].body["prompt"] == f"{BASE['content']} Look."
        body = {"model": "m", "input": "x", "kv_cache": NAMED}
        answer = await service.send("POST", "/v1/embeddings", body, key=ANN)
        assert (answer.status, answer.error["param"]) == (400, "kv_cache.shared_context")


# ---- with the real engine, as the guide's users call


Messages = list[ChatCompletionMessageParam]
GUIDE = "You are an expert code reviewer. Provide detailed, constructive feedback on code. " * 6


def ask(client: OpenAI, messages: Messages, **headers: str) -> tuple[Any, Any]:
    raw = client.chat.completions.with_raw_response.create(
        model="deepseek-chat",
        messages=messages,
        max_tokens=8,
        extra_headers={
            "X-Cache-Enable": "true",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
    )
    return raw.parse(), raw.headers


@pytest.mark.model
def test_the_guides_shared_context_is_computed_once_for_its_users(client: OpenAI) -> None:
    name, system = "shared_code_review_guide", {"role": "system", "content": GUIDE}
    base: Messages = [system]  # type: ignore[list-item]  # the SDK's own TypedDict is stricter
    ask(client, base, X_Cache_ID=name, X_Cache_Shared="true", X_Cache_TTL="7200")
    for user, question in (("dev1", "Please review this."), ("dev2", "Can you check this?")):
        messages: Messages = [*base, {"role": "user", "content": question}]
        answer, headers = ask(
            client, messages, X_Cache_ID=name, X_Cache_User=user, X_Cache_Reuse="true"
        )
        usage = answer.usage.model_dump()
        assert headers["X-Cache-Level"] == "prefix"
        assert usage["prompt_cache_hit_tokens"] >= 64
        _, again = ask(client, messages, X_Cache_ID=name, X_Cache_User="dev3")
        assert again["X-Cache-Level"] == "response"


@pytest.mark.model
def test_a_context_that_was_put_is_warm_before_the_first_question(client: OpenAI) -> None:
    name = "put_ahead"
    url = f"/cache/contexts/{name}"
    wish = {"base_prompt": f"Ahead. {GUIDE}", "allowed_users": ["dev1"]}
    made: dict[str, Any] = client.put(url, cast_to=dict[str, Any], body=wish)
    assert made["kv_tokens"] >= 64
    question: Messages = [{"role": "user", "content": "What do you do?"}]
    answer = client.chat.completions.create(
        model="default",
        messages=question,
        max_tokens=8,
        extra_body={"kv_cache": {"enabled": True, "shared_context": name, "user": "dev1"}},
    )
    assert answer.usage
    assert answer.usage.model_dump()["prompt_cache_hit_tokens"] >= 64
    gone: dict[str, Any] = client.delete(url, cast_to=dict[str, Any])
    assert gone["entries"] == 1
    assert gone["kv_tokens"] >= 64
