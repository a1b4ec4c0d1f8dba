"""Every strategy of the protocol's table through the HTTP surface, in the words of body and headers."""

import asyncio
import threading
from typing import Any

import pytest

from tests.kit.scripted_backend import Gate
from tests.kit.scripted_service import chat as engine_chat
from tests.kit.scripted_service import scripted
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, chat_body, json_reply
from tests.kit.service import Answer, Service, serving

ON = {"enabled": True}
ALICE, BOB, CAROL, PROXY = (
    f"kv-{name}-3f1c7a90b2d84e65" for name in ("alice", "bob", "carol", "proxy")
)


def said(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation: user and assistant in turn."""
    turns = [
        {"role": "assistant" if place % 2 else "user", "content": text}
        for place, text in enumerate(texts)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


def level(answer: Answer) -> str:
    assert answer.status == 200, answer.raw
    found: str = answer.headers["X-Cache-Level"]
    return found


async def kept_as(service: Service, answer: Answer) -> dict[str, Any]:
    """The entry that an answer left behind."""
    await service.settled()
    shown = await service.send("GET", f"/v1/cache/entries/{answer.headers['X-Cache-Key']}")
    assert shown.status == 200
    found: dict[str, Any] = shown.body
    return found


# ---- how long, how important, where


@pytest.mark.parametrize(
    ("texts", "ttl_s"),
    [
        (("Review my function", "Yes", "And this class?", "Good", "And the import?"), 7200),
        (("What is a star?", "A sun", "Explain it", "It burns", "How does it burn?"), 14_400),
        (("I have a problem", "Which?", "It crashes", "When?", "Always"), 3600),
        (("Hello", "Hello", "Nice day", "Yes", "Bye"), 1800),
    ],
)
async def test_adaptive_caches_long_conversations_for_as_long_as_their_class_says(
    texts: tuple[str, ...], ttl_s: int
) -> None:
    async with serving(freshness={"jitter": 0.0}) as service:
        headers = {"X-Cache-Enable": "true", "X-Cache-Strategy": "adaptive", "X-Cache-ID": "c"}
        for _ in range(2):
            short = await service.chat(messages=said(*texts[:4]), headers=headers)
            assert level(short) == "none"
            assert "X-Cache-Key" not in short.headers
        assert service.upstream.calls == 2
        long = await service.chat(messages=said(*texts), headers=headers)
        assert (await kept_as(service, long))["ttl_left_s"] == ttl_s
        assert level(await service.chat(messages=said(*texts), headers=headers)) == "response"


async def test_why_adaptive_did_not_cache_is_said() -> None:
    async with serving(adaptive={"min_messages": 3}) as service:
        wish = {**ON, "strategy": "adaptive", "debug": True}
        answer = await service.chat(wish, messages=said("a", "b"))
        assert answer.headers["X-Cache-Miss-Reason"] == "too_short"
        assert "2 messages, from 3 on" in answer.headers["X-Cache-Debug"]


@pytest.mark.parametrize(
    ("wish", "headers", "tier", "ttl_s", "priority"),
    [
        ({"context": "code_review"}, {}, "warm", 7200, "high"),
        ({}, {"X-Cache-Context": "casual_chat"}, "warm", 1800, "low"),
        ({"context": "technical_support"}, {}, "warm", 3600, "medium"),
        ({"context": "documentation"}, {}, "warm", 14_400, "high"),
        ({"context": "anything else"}, {}, "warm", 3600, "medium"),
        ({"prompt_type": "faq"}, {}, "hot", 300, "high"),
        ({}, {"X-Cache-Prompt-Type": "template"}, "warm", 1800, "medium"),
        ({"prompt_type": "anything else"}, {}, "cold", 7200, "low"),
        ({"cache_key": "faq:1"}, {}, "hot", 86_400, "high"),
        ({}, {"X-Cache-ID": "faq:1"}, "hot", 86_400, "high"),
        ({"tier": "cold"}, {"X-Cache-Tier": "hot"}, "cold", 7200, "low"),  # the body wins
        (
            {"cache_key": "faq:1", "context": "casual_chat"},
            {"X-Cache-TTL": "60"},
            "hot",
            60,
            "low",
        ),
        (
            {"prompt_type": "faq", "context": "casual_chat", "priority": "medium"},
            {},
            "hot",
            300,
            "medium",
        ),
    ],
)
async def test_profiles_types_and_key_prefixes_bring_their_retention(
    wish: dict[str, Any], headers: dict[str, str], tier: str, ttl_s: int, priority: str
) -> None:
    async with serving(freshness={"jitter": 0.0}) as service:
        answer = await service.chat({**ON, **wish}, headers=headers)
        assert (answer.headers["X-Cache-Tier"], answer.headers["X-Cache-TTL"]) == (tier, str(ttl_s))
        entry = await kept_as(service, answer)
        assert (entry["tier"], entry["ttl_left_s"], entry["priority"]) == (tier, ttl_s, priority)
        service.clock.advance(ttl_s - 1)
        assert level(await service.chat({**ON, **wish}, headers=headers)) == "response"
        service.clock.advance(1000)  # beyond every stale window
        assert level(await service.chat({**ON, **wish}, headers=headers)) == "none"


# ---- what counts as the same question


async def test_without_the_context_only_system_prompt_and_last_question_count() -> None:
    async with serving() as service:
        short, whole = {**ON, "context_aware": False}, {**ON, "context_aware": True}
        one = said("hi", "hello", "Explain it", system="Be brief.")
        other = said("hey", "good day", "Explain it", system="Be brief.")
        assert level(await service.chat(short, messages=one)) == "none"
        assert level(await service.chat(short, messages=other)) == "response"
        assert level(await service.chat(ON, messages=one)) == "none"  # nobody else is served it
        assert level(await service.chat(whole, messages=one)) == "response"
        assert level(await service.chat(whole, messages=other)) == "none"
        verbose = said("hi", "hello", "Explain it", system="Be verbose.")
        assert level(await service.chat(short, messages=verbose)) == "none"
        header = {"X-Cache-Context-Aware": "false"}
        assert level(await service.chat(ON, messages=other, headers=header)) == "response"


async def test_with_match_key_the_template_is_the_question() -> None:
    async with serving(models=("m", "n")) as service:
        key = "code_template:crud:python"
        wish = {**ON, "cache_key": key, "match": "key"}
        assert level(await service.chat(wish, messages=said("CRUD for users"))) == "none"
        assert level(await service.chat(wish, messages=said("CRUD for books"))) == "response"
        by_header = {"X-Cache-ID": key, "X-Cache-Match": "key"}
        answer = await service.chat(ON, messages=said("CRUD"), headers=by_header)
        assert level(answer) == "response"
        assert level(await service.chat(wish, model="n")) == "none"  # the model stays
        exact = {**wish, "match": "exact"}
        assert level(await service.chat(exact, messages=said("CRUD for users"))) == "none"
        refused = await service.chat({**ON, "match": "key"})
        assert (refused.status, refused.error["code"]) == (400, "invalid_cache_directive")


# ---- who may share


async def test_a_users_answers_are_its_own_under_scope_user() -> None:
    async with serving() as service:

        async def asked(user: str, **wish: Any) -> str:
            return level(await service.chat({**ON, "user": user, **wish}))

        assert await asked("ann", scope="user") == "none"
        assert await asked("ben", scope="user") == "none"
        assert await asked("ann", scope="user") == "response"
        assert await asked("ben") == "none"  # a tenant's entries are others
        assert await asked("ann") == "response"
        nobody = await service.chat({**ON, "scope": "user"})
        assert (nobody.status, nobody.error["param"]) == (400, "kv_cache.scope")


async def test_share_lets_the_users_of_one_batch_use_each_others_answers() -> None:
    async with serving() as service:

        async def asked(user: str, batch: str, **wish: Any) -> str:
            said = {**ON, "scope": "user", "batch_id": batch, "share": True, "user": user, **wish}
            return level(await service.chat(said))

        assert await asked("ann", "b1") == "none"
        assert await asked("ben", "b1") == "response"
        assert await asked("ben", "b2") == "none"
        assert await asked("cyd", "b1", share=False) == "none"
        headers = {
            "X-Cache-Enable": "true",
            "X-Cache-Batch": "true",
            "X-Cache-Batch-ID": "b1",
            "X-Cache-Share": "true",
            "X-Cache-Scope": "user",
            "X-Cache-User": "dan",
        }
        assert level(await service.chat(headers=headers)) == "response"


async def test_a_shared_batch_stays_inside_its_tenant() -> None:
    tenants = [{"name": "a", "api_keys": [ALICE]}, {"name": "b", "api_keys": [BOB]}]
    async with serving(tenants=tenants) as service:
        wish = {**ON, "batch_id": "b1", "batch_mode": True, "share": True}
        assert level(await service.chat(wish, key=ALICE)) == "none"
        assert level(await service.chat(wish, key=BOB)) == "none"
        assert level(await service.chat(wish, key=ALICE)) == "response"


async def test_equal_items_of_a_batch_are_computed_once_even_at_the_same_time() -> None:
    gate = Gate()

    def held_up(seen: Any) -> Reply:
        answer = json_reply(chat_body(seen.body))
        return Reply((gate, *answer.steps))

    upstream = ScriptedUpstream()
    upstream.otherwise = held_up
    async with serving(upstream=upstream) as service:
        items = ["What is Python?", "How do I install it?"] * 10
        wish = {**ON, "batch_mode": True, "batch_id": "b1", "share": True}
        asking = [asyncio.create_task(service.chat(wish, messages=said(item))) for item in items]
        await upstream.called(2)
        await service.readers(20)
        gate.open()
        answers = await asyncio.gather(*asking)
        assert upstream.calls == 2
        saved = sorted(int(one.headers.get("X-Cache-Tokens-Saved", 0)) for one in answers)
        assert saved == [0] * 2 + [13] * 18


async def test_batches_go_behind_people_in_the_engines_queue() -> None:
    async with scripted(max_sequences=1) as engine:
        gate = engine.runner.gate = threading.Semaphore(0)
        url = str(engine.client.make_url("/v1"))
        backend = {"name": "e", "base_url": url, "models": ["scripted"], "dialect": "kvgate"}
        async with serving(backends=[backend]) as service:
            landed: list[str] = []

            async def ask(name: str, wish: dict[str, Any], headers: dict[str, str]) -> None:
                body = engine_chat(f"{name}?", kv_cache=wish)
                answer = await service.send("POST", "/v1/chat/completions", body, headers=headers)
                assert answer.status == 200
                landed.append(name)

            asking = []
            for place, (name, wish, headers) in enumerate(
                (
                    ("running", {}, {}),
                    ("warm", {"preload": True}, {}),
                    ("by mode", {"batch_mode": True}, {}),
                    ("by id", {}, {"X-Cache-Batch-ID": "b1"}),
                    ("person", {}, {}),
                )
            ):
                asking.append(asyncio.create_task(ask(name, wish, headers)))
                while len(engine.engine._sinks) != place + 1:  # noqa: ASYNC110 - turns of the loop, not time
                    await asyncio.sleep(0)
            gate.release(100_000)
            await asyncio.gather(*asking)
            assert landed == ["running", "person", "by mode", "by id", "warm"]


# ---- Cache-Control of the request, and reuse


async def test_no_cache_and_reuse_false_compute_anew_and_replace() -> None:
    async with serving() as service:
        await service.chat(ON)
        for wish, headers in (
            ({**ON, "reuse": False}, {}),
            (ON, {"Cache-Control": "no-cache"}),
            (ON, {"X-Cache-Reuse": "false"}),
        ):
            service.clock.advance(10)
            calls = service.upstream.calls
            assert level(await service.chat(wish, headers=headers)) == "none"
            assert service.upstream.calls == calls + 1
            again = await service.chat(ON)
            assert (level(again), again.headers["Age"]) == ("response", "0")


async def test_no_store_leaves_nothing_behind_and_reads_what_is_there() -> None:
    async with serving() as service:
        headers = {"Cache-Control": "no-store"}
        for _ in range(2):
            assert level(await service.chat(ON, headers=headers)) == "none"
        await service.chat(ON)
        assert level(await service.chat(ON, headers=headers)) == "response"


async def test_max_age_takes_no_older_answer() -> None:
    async with serving() as service:
        await service.chat(ON)
        service.clock.advance(31)
        younger = {"Cache-Control": "max-age=31"}
        assert level(await service.chat(ON, headers=younger)) == "response"
        answer = await service.chat(ON, headers={"Cache-Control": "max-age=30"})
        assert level(answer) == "none"
        assert "fwd=stale" in answer.headers["Cache-Status"]


async def test_only_if_cached_is_answered_from_the_store_or_not_at_all() -> None:
    async with serving(freshness={"jitter": 0.0}) as service:
        only = {"Cache-Control": "only-if-cached"}
        hot = {**ON, "tier": "hot"}
        refused = await service.chat(hot, headers=only)
        assert (refused.status, refused.error["code"]) == (504, "only_if_cached")
        assert service.upstream.calls == 0
        await service.chat(hot)
        assert level(await service.chat(hot, headers=only)) == "response"
        assert level(await service.chat(None, headers=only)) == "response"  # it asks for the cache
        service.clock.advance(310)  # stale: served, and nobody is asked for a new one
        stale = await service.chat(hot, headers=only)
        assert (level(stale), stale.headers["X-Cache-Stale"]) == ("response", "true")
        await service.settled()
        assert service.upstream.calls == 1
        service.clock.advance(100)  # good enough for an error only
        assert (await service.chat(hot, headers=only)).status == 504
        both = await service.chat(hot, headers={"Cache-Control": "no-cache, only-if-cached"})
        assert both.status == 504
        assert (await service.chat({"enabled": False}, headers=only)).status == 504
        assert service.upstream.calls == 1
