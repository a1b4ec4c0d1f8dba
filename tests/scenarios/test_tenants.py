"""Tenants: nothing cached by one is seen, touched or felt by another; and no secret is written.

Each story has its twin: the same steps by the same tenant must find the entry, or the test would
pass with a cache that is dead.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.backends.openai import OpenAIBackend
from policies.keys import Scope, kv_salt
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    chat_body,
    chat_events,
    error_reply,
    event,
    json_reply,
    stream_reply,
)
from tests.kit.service import Answer, Service, serving

ALICE, BOB, ROOT, PROXY, CAROL = (
    f"kv-{name}-3f1c7a90b2d84e65" for name in ("alice", "bob", "root", "proxy", "carol")
)
TENANTS = [
    {"name": "a", "api_keys": [ALICE]},
    {"name": "b", "api_keys": [BOB]},
    {"name": "ops", "api_keys": [ROOT], "admin": True},
    {"name": "a2", "api_keys": [PROXY], "trusted_proxy": True},
    {"name": "a3", "api_keys": [CAROL], "user": "carol"},
]
WISH = {"enabled": True, "cache_key": "v1:ns:1", "tags": ["x"], "debug": True}


@asynccontextmanager
async def two_tenants(upstream: ScriptedUpstream | None = None) -> AsyncIterator[Service]:
    async with serving(tenants=TENANTS, upstream=upstream) as service:
        yield service


async def stored_by_alice(service: Service) -> str:
    """Alice's entry, and the key under which she was shown it."""
    answer = await service.chat(WISH, key=ALICE)
    assert answer.headers["X-Cache-Level"] == "none"
    return answer.headers["X-Cache-Key"]


async def alice_hits(service: Service) -> bool:
    """The twin: Alice's entry is there."""
    answer = await service.chat(WISH, key=ALICE)
    return answer.headers["X-Cache-Level"] == "response"


async def test_another_tenant_computes_the_same_question_itself() -> None:
    async with two_tenants() as service:
        await stored_by_alice(service)
        answer = await service.chat(WISH, key=BOB)
        assert answer.headers["X-Cache-Hit"] == "false"
        assert answer.headers["X-Cache-Miss-Reason"] == "cold"
        assert "Age" not in answer.headers
        assert answer.body["usage"]["prompt_cache_hit_tokens"] == 0
        assert service.upstream.calls == 2
        assert await alice_hits(service)


async def test_the_same_question_has_another_key_and_another_salt() -> None:
    async with two_tenants() as service:
        alices = await stored_by_alice(service)
        assert (await service.chat(WISH, key=BOB)).headers["X-Cache-Key"] != alices
        assert (await service.chat(WISH, key=ALICE)).headers["X-Cache-Key"] == alices


async def test_another_tenant_finds_no_trace_in_the_lists() -> None:
    async with two_tenants() as service:
        await stored_by_alice(service)
        for query in ("", "?prefix=v1:", "?tier=warm", "?limit=1000"):
            assert await listed(service, BOB, query) == []
            assert len(await listed(service, ALICE, query)) == 1
        answer = await service.send("GET", "/v1/cache/entries?tenant=a", key=BOB)
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert len(await listed(service, ALICE, "?tenant=a")) == 1


async def listed(service: Service, key: str, query: str = "") -> list[dict[str, Any]]:
    answer = await service.send("GET", f"/v1/cache/entries{query}", key=key)
    assert answer.status == 200
    found: list[dict[str, Any]] = answer.body["data"]
    return found


async def test_another_tenant_cannot_read_an_entry_whose_key_it_knows() -> None:
    async with two_tenants() as service:
        path = f"/v1/cache/entries/{await stored_by_alice(service)}"
        answer = await service.send("GET", path, key=BOB)
        assert (answer.status, answer.error["code"]) == (404, "entry_not_found")
        unknown = await service.send("GET", "/v1/cache/entries/" + "0" * 32, key=BOB)
        assert (unknown.status, unknown.body) == (answer.status, answer.body)
        assert (await service.send("GET", path, key=ALICE)).body["tenant"] == "a"


async def test_another_tenant_cannot_delete_an_entry_whose_key_it_knows() -> None:
    async with two_tenants() as service:
        path = f"/v1/cache/entries/{await stored_by_alice(service)}"
        assert (await service.send("DELETE", path, key=BOB)).status == 404
        assert await alice_hits(service)
        assert (await service.send("DELETE", path, key=ALICE)).body["deleted"] == 1
        assert not await alice_hits(service)


@pytest.mark.parametrize(
    "selector",
    [
        {"all": True},
        {"cache_key": "v1:ns:1"},
        {"prefix": "v1:"},
        {"namespace": "ns"},
        {"model": "m"},
        {"tag": "x"},
    ],
)
async def test_another_tenant_invalidates_nothing_of_ours(selector: dict[str, Any]) -> None:
    async with two_tenants() as service:
        await stored_by_alice(service)
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=BOB)
        assert answer.body == {"entries": 0, "kv_tokens": 0}
        assert await alice_hits(service)
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=ALICE)
        assert answer.body["entries"] == 1
        assert not await alice_hits(service)


async def test_statistics_are_each_tenants_own() -> None:
    async with two_tenants() as service:
        await stored_by_alice(service)
        assert await alice_hits(service)
        bobs = (await service.send("GET", "/v1/cache/stats", key=BOB)).body
        assert (bobs["tenant"], bobs["requests"], bobs["hits"]) == ("b", 0, 0)
        alices = (await service.send("GET", "/v1/cache/stats", key=ALICE)).body
        assert (alices["tenant"], alices["requests"], alices["hits"]) == ("a", 2, 1)
        everybodys = (await service.send("GET", "/v1/cache/stats", key=ROOT)).body
        assert everybodys["tenants"].keys() == {"a"}


@pytest.mark.parametrize("key", [ALICE, PROXY])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("GET", "/v1/chat/completions"), ("DELETE", "/v1/models/m")],
)
async def test_the_operators_doors_are_for_admins(key: str, method: str, path: str) -> None:
    async with two_tenants() as service:
        answer = await service.send(method, path, key=key)
        assert (answer.status, answer.error["code"]) == (403, "admin_only")
        assert service.upstream.calls == 0


async def test_an_admin_sees_and_clears_all() -> None:
    async with two_tenants() as service:
        key = await stored_by_alice(service)
        await service.chat(WISH, key=BOB)
        assert {entry["tenant"] for entry in await listed(service, ROOT)} == {"a", "b"}
        assert {entry["tenant"] for entry in await listed(service, ROOT, "?tenant=b")} == {"b"}
        assert (await service.send("GET", f"/v1/cache/entries/{key}", key=ROOT)).status == 200
        answer = await service.send("POST", "/v1/cache/invalidate", {"all": True}, key=ROOT)
        assert answer.body["entries"] == 2
        assert not await alice_hits(service)


async def test_a_flight_of_one_tenant_is_not_joined_by_another() -> None:
    gate = Gate()
    waiting = Reply((gate, *json_reply(chat_body({"model": "m"})).steps))
    async with two_tenants(ScriptedUpstream(waiting)) as service:
        alices = [asyncio.create_task(service.chat(WISH, key=ALICE)) for _ in range(2)]
        await gate.reached()
        bobs = await service.chat(WISH, key=BOB)  # does not wait for Alice's
        assert "collapsed" not in bobs.headers["Cache-Status"]
        gate.open()
        both = await asyncio.gather(*alices)
        assert sum("collapsed" in answer.headers["Cache-Status"] for answer in both) == 1
        assert service.upstream.calls == 2


async def test_a_difference_is_told_to_nobody_else() -> None:
    async with two_tenants() as service:
        await stored_by_alice(service)
        other = [{"role": "user", "content": "What is asked now?"}]
        bobs = await service.chat(WISH, key=BOB, messages=other)
        assert bobs.headers["X-Cache-Miss-Reason"] == "cold"
        alices = await service.chat(WISH, key=ALICE, messages=other)
        assert alices.headers["X-Cache-Miss-Reason"].startswith("fingerprint; ")


async def test_users_of_one_tenant_are_apart_when_they_ask_for_it() -> None:
    wish = {**WISH, "scope": "user"}
    async with two_tenants() as service:
        for user in ("dora", "emil"):
            answer = await service.chat({**wish, "user": user}, key=PROXY)
            assert answer.headers["X-Cache-Level"] == "none"
            answer = await service.chat({**wish, "user": user}, key=PROXY)
            assert answer.headers["X-Cache-Level"] == "response"


KIN = [
    {"name": "a", "api_keys": [ALICE], "user": "alice"},
    {"name": "a", "api_keys": [BOB], "user": "bob"},
    {"name": "a", "api_keys": [PROXY], "user": "proxy", "trusted_proxy": True},
]
"""Keys of one tenant, each bound to a user."""


@pytest.fixture
def dropped_kv(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The salts whose KV the backends were told to drop."""
    salts: list[str | None] = []

    async def drop(_: OpenAIBackend, salt: str | None) -> int:
        salts.append(salt)
        return 77

    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", drop)
    return salts


@pytest.mark.parametrize(
    "selector",
    [
        {"all": True},
        {"cache_key": "v1:ns:1"},
        {"prefix": "v1:"},
        {"namespace": "ns"},
        {"model": "m"},
        {"tag": "x"},
    ],
)
async def test_a_users_key_clears_nothing_that_another_user_has_for_himself(
    selector: dict[str, Any], dropped_kv: list[str | None]
) -> None:
    wish = {**WISH, "scope": "user"}
    async with serving(tenants=KIN) as service:
        secret = service.gateway.pipeline._rules.kv_secret
        await service.chat(wish, key=BOB)
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=ALICE)
        assert answer.body["entries"] == 0
        own = (Scope("tenant", "a"), Scope("user", "a", user="alice"))
        assert set(dropped_kv) <= {kv_salt(scope, secret) for scope in own}
        assert (await service.chat(wish, key=BOB)).headers["X-Cache-Level"] == "response"
        answer = await service.send("POST", "/v1/cache/invalidate", selector, key=BOB)
        assert answer.body["entries"] == 1
        assert (await service.chat(wish, key=BOB)).headers["X-Cache-Level"] == "none"


async def test_a_users_key_may_not_clear_by_another_users_name(
    dropped_kv: list[str | None],
) -> None:
    wish, bobs = {**WISH, "scope": "user"}, {"user": "bob"}
    async with serving(tenants=KIN) as service:
        await service.chat(wish, key=BOB)
        answer = await service.send("POST", "/v1/cache/invalidate", bobs, key=ALICE)
        assert (answer.status, answer.error["code"]) == (403, "user_mismatch")
        assert (answer.error["param"], dropped_kv) == ("user", [])
        for key in (BOB, PROXY):
            assert (await service.chat(wish, key=BOB)).headers["X-Cache-Level"] == "response"
            answer = await service.send("POST", "/v1/cache/invalidate", bobs, key=key)
            assert answer.body == {"entries": 1, "kv_tokens": 77}
            assert (await service.chat(wish, key=BOB)).headers["X-Cache-Level"] == "none"


async def test_a_user_is_believed_only_from_a_trusted_key() -> None:
    async with two_tenants() as service:
        answer = await service.chat(WISH, key=CAROL, headers={"X-Cache-User": "dora"})
        assert (answer.status, answer.error["code"]) == (403, "user_mismatch")
        assert answer.error["param"] == "X-Cache-User"
        assert service.upstream.calls == 0
        assert (await service.chat({**WISH, "user": "carol"}, key=CAROL)).status == 200
        assert (await service.chat({**WISH, "user": "dora"}, key=PROXY)).status == 200


# ---- what never leaves


async def test_nothing_of_ours_and_no_clients_key_reaches_a_foreign_upstream() -> None:
    async with two_tenants() as service:
        headers = {
            "X-Cache-ID": "canary-id",
            "X-Cache-Debug": "true",
            "X-Forwarded-For": "10.0.0.1",
            "Cookie": "canary=1",
            "OpenAI-Organization": "canary-org",
        }
        for stream in (False, True):
            await service.chat(
                {**WISH, "reuse": False},
                key=ALICE,
                headers=headers,
                stream=stream,
                zzz=[1],
                user="u",
            )
        await service.send(
            "POST",
            "/v1/embeddings",
            {"model": "m", "input": "x", "kv_cache": True},
            key=ALICE,
            headers=headers,
        )
        for seen in service.upstream.seen:
            assert "kv_cache" not in seen.body
            assert not any(name.lower().startswith("x-cache") for name in seen.headers)
            assert seen.headers["Authorization"] == "Bearer sk-operator-secret"
            assert ALICE not in repr(seen.headers) + seen.raw.decode()
            assert "canary" not in repr(seen.headers)
        chats = service.upstream.seen[:2]
        assert all(seen.body["zzz"] == [1] and seen.body["user"] == "u" for seen in chats)


CANARY = "canary-9b2f"
SECRET = f"sk-{CANARY}-secret"


def canary_replies() -> dict[str, Reply]:
    """Answers of an upstream that quotes what it was sent, and its operator's key."""
    quoting = f"Incorrect API key provided: {SECRET}"
    return {
        "an answer": json_reply(chat_body({"model": "m"}, (CANARY,))),
        "a stream": stream_reply(*chat_events({"model": "m"}, (CANARY,)), b"data: [DONE]\n\n"),
        "401": error_reply(401, quoting),
        "403": error_reply(403, quoting),
        "garbage": Reply((f"<html>{quoting}</html>".encode(),)),
        "garbage in a stream": stream_reply(f"data: {quoting}\n\n".encode()),
        "a cut": stream_reply(*chat_events({"model": "m"}, (CANARY,))[:2], "fin"),
        "an odd status": Reply((quoting.encode(),), 302, {"Location": f"http://{CANARY}/"}),
        "500": Reply((quoting.encode(),), 500),
        "a wrong shape": json_reply({"choices": [quoting]}),
        "an error event": stream_reply(event({"error": {"message": "oops"}})),
    }


def written(service: Service) -> str:
    """All that was written about requests: the log and the metrics."""
    service.gateway.journal.settle()
    return service.log.getvalue() + metrics_page(service)


def metrics_page(service: Service) -> str:
    gateway = service.gateway
    page = gateway.metrics.page(gateway.journal.statistics, gateway.store.fills(), 0)
    return page.decode()


def shown(answer: Answer) -> str:
    return repr(answer.headers) + answer.raw.decode("utf-8", "replace")


@pytest.mark.parametrize("name", list(canary_replies()))
@pytest.mark.parametrize("stream", [False, True])
async def test_no_prompt_no_answer_and_no_key_is_ever_written(
    name: str, stream: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    upstream = ScriptedUpstream(canary_replies()[name])
    async with two_tenants(upstream) as service:
        wish = {**WISH, "cache_key": f"{CANARY}-key", "tags": [CANARY], "user": CANARY}
        question = [{"role": "user", "content": f"{CANARY}-prompt"}]
        first = await service.chat(wish, key=PROXY, messages=question, stream=stream)
        second = await service.chat(wish, key=PROXY, messages=question, user=CANARY)
        assert SECRET not in shown(first) + shown(second)
        if first.status >= 400:
            assert CANARY not in shown(first)
        for word in (CANARY, PROXY, "sk-operator-secret"):
            assert word not in written(service)
            assert word not in repr(service.gateway)
        out, err = capfd.readouterr()
        assert CANARY not in out + err


BAD = [
    b'{"model": "m", "messages": "canary-9b2f"}',
    b'{"model": "m", "messages": [{"role": "canary-9b2f", "content": 5}]}',
    b'{"model": "m", "messages": [{"role": "user", "content": "canary-9b2f"}], "stream": 1}',
    b'{"model": "m", "messages": [{"role": "user", "content": "canary-9b2f"}',
    b"canary-9b2f",
]


@pytest.mark.parametrize("body", BAD)
async def test_an_error_about_a_request_repeats_none_of_its_text(body: bytes) -> None:
    async with two_tenants() as service:
        answer = await service.send("POST", "/v1/chat/completions", body, key=ALICE)
        assert answer.status == 400
        assert CANARY not in shown(answer) + written(service)


async def test_a_wrong_key_is_not_repeated() -> None:
    async with two_tenants() as service:
        answer = await service.chat(key=SECRET)
        assert answer.status == 401
        assert CANARY not in shown(answer) + written(service)


async def test_model_names_of_clients_make_no_series_and_no_long_lines() -> None:
    async with serving(tenants=TENANTS, models=("*",)) as service:
        before = written(service).count("\n")
        for number in range(50):
            await service.chat(WISH, key=ALICE, model=f"model-{number}" + "x" * 5000)
        after = written(service)
        assert after.count("\n") - before <= 50 + 20  # a log line each, and a few series
        assert "model-7" not in metrics_page(service)
        assert max(map(len, service.log.getvalue().splitlines())) < 1000


async def test_the_upstreams_refusal_of_the_operators_key_is_shown_to_nobody() -> None:
    refusals = [error_reply(401, f"Incorrect API key: {SECRET}") for _ in range(3)]
    async with serving(
        tenants=TENANTS, models=("m", "*"), upstream=ScriptedUpstream(*refusals)
    ) as service:
        for answer in (
            await service.chat(key=ALICE),
            await service.send("GET", "/v1/models/other", key=ALICE),
            await service.send("GET", "/v1/chat/completions/c-1", key=ROOT),
        ):
            assert (answer.status, answer.error["code"]) == (502, "backend_auth")
            assert CANARY not in shown(answer)
