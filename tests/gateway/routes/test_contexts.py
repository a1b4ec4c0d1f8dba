"""``/v1/cache/contexts``: who may make, see, use and revoke a shared context."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.backends.openai import OpenAIBackend
from gateway.contexts import Contexts
from gateway.errors import BackendFault
from gateway.routes import contexts as routes
from gateway.store.base import StoreError
from tests.kit.service import Answer, Service, serving

OPS, ROOT, PROXY, ANN, BOB, FOREIGN = (
    f"kv-{name}-9c1a7b20d4e85f36" for name in ("ops", "root", "proxy", "ann", "bob", "foreign")
)
TENANTS = [
    {"name": "acme", "api_keys": [OPS]},
    {"name": "acme", "api_keys": [PROXY], "trusted_proxy": True},
    {"name": "acme", "api_keys": [ANN], "user": "ann"},
    {"name": "acme", "api_keys": [BOB], "user": "bob"},
    {"name": "other", "api_keys": [FOREIGN]},
    {"name": "root", "api_keys": [ROOT], "admin": True},
]
PATH = "/v1/cache/contexts"
BASE = "You are an expert code reviewer."
TEAM = {"base_prompt": BASE, "allowed_users": ["ann", "carol"], "ttl": 600, "priority": "low"}


@asynccontextmanager
async def company(**config: Any) -> AsyncIterator[Service]:
    async with serving(tenants=TENANTS, **config) as service:
        yield service


async def put(service: Service, body: Any = TEAM, *, key: str = OPS, id_: str = "team") -> Answer:
    return await service.send("PUT", f"{PATH}/{id_}", body, key=key)


async def get(service: Service, id_: str = "team", *, key: str = OPS) -> Answer:
    return await service.send("GET", f"{PATH}/{id_}", key=key)


async def ids(service: Service, *, key: str) -> list[str]:
    answer = await service.send("GET", PATH, key=key)
    assert answer.status == 200
    return [context["id"] for context in answer.body["data"]]


async def test_a_context_is_made_replaced_shown_and_revoked() -> None:
    async with company() as service:
        made = await put(service)
        assert made.status == 201
        assert made.body == {
            "id": "team",
            "object": "cache.context",
            "ttl": 600,
            "priority": "low",
            "model": None,
            "by_id": True,
            "created": int(service.clock.now()),
            "ttl_left_s": 600.0,
            "allowed_users": ["ann", "carol"],
            "made_by": None,
            "usage": {"total": 0, "users": {}, "nobody": 0, "others": 0},
            "kv_tokens": 0,
        }
        service.clock.advance(10)
        shown = (await get(service)).body
        assert shown["base_messages"] == [{"role": "system", "content": BASE}]
        assert shown["ttl_left_s"] == 590
        assert (await put(service, {"base_prompt": "Other."})).status == 200
        gone = await service.send("DELETE", f"{PATH}/team", key=OPS)
        assert gone.body == {"id": "team", "deleted": True, "entries": 0, "kv_tokens": 0}
        for method in ("GET", "DELETE"):
            answer = await service.send(method, f"{PATH}/team", key=OPS)
            assert (answer.status, answer.error["code"]) == (404, "context_not_found")


async def test_a_member_sees_the_text_but_not_who_else_may_nor_how_often() -> None:
    async with company() as service:
        await put(service)
        shown = (await get(service, key=ANN)).body
        assert shown["base_messages"] == [{"role": "system", "content": BASE}]
        assert shown.keys().isdisjoint({"usage", "allowed_users", "made_by"})


async def test_who_is_not_allowed_gets_403_for_everything_and_no_text() -> None:
    async with company() as service:
        await put(service)
        for method, body in (("GET", None), ("PUT", TEAM), ("DELETE", None)):
            answer = await service.send(method, f"{PATH}/team", body, key=BOB)
            assert (answer.status, answer.error["code"]) == (403, "context_forbidden")
            assert b"reviewer" not in answer.raw
            assert b"ann" not in answer.raw
        for method, body in (("PUT", TEAM), ("DELETE", None)):  # ann may use it, not change it
            answer = await service.send(method, f"{PATH}/team", body, key=ANN)
            assert answer.error["code"] == "context_forbidden"
        assert (await get(service)).status == 200


async def test_the_list_shows_what_one_may_use_or_manage() -> None:
    async with company() as service:
        await put(service)
        await put(service, {"base_prompt": "For all."}, id_="all")
        await put(service, {**TEAM, "allowed_users": ["carol"]}, key=BOB, id_="bobs")
        assert await ids(service, key=OPS) == ["all", "bobs", "team"]
        assert await ids(service, key=ANN) == ["all", "team"]
        assert await ids(service, key=BOB) == ["all", "bobs"]
        assert await ids(service, key=FOREIGN) == []


async def test_who_made_one_manages_it() -> None:
    async with company() as service:
        assert (await put(service, key=BOB)).body["made_by"] == "bob"
        assert "usage" in (await get(service, key=BOB)).body
        assert (await put(service, {**TEAM, "ttl": 60}, key=BOB)).status == 200
        assert (await put(service, key=ANN)).status == 403
        assert (await put(service, key=OPS)).status == 200
        assert (await put(service, key=BOB)).status == 200  # still his
        assert (await service.send("DELETE", f"{PATH}/team", key=BOB)).status == 200


async def test_a_proxy_has_the_rights_of_the_user_it_speaks_for() -> None:
    async with company() as service:
        await put(service)
        for user, status in (("carol", 200), ("dave", 403)):
            answer = await service.send(
                "GET", f"{PATH}/team", key=PROXY, headers={"X-Cache-User": user}
            )
            assert answer.status == status
            assert "usage" not in answer.body
        assert "usage" in (await get(service, key=PROXY)).body
        answer = await service.send("GET", PATH, key=ANN, headers={"X-Cache-User": "bob"})
        assert (answer.status, answer.error["code"]) == (403, "user_mismatch")


async def test_in_the_open_tenant_a_named_user_has_that_users_rights() -> None:
    async with serving() as service:
        await service.send("PUT", f"{PATH}/team", TEAM)
        named = {"X-Cache-User": "dave"}
        answer = await service.send("DELETE", f"{PATH}/team", headers=named)
        assert answer.error["code"] == "context_forbidden"
        assert (await service.send("DELETE", f"{PATH}/team")).status == 200


async def test_an_admin_may_look_after_other_tenants_and_nobody_else_may() -> None:
    async with company() as service:
        await put(service)
        query = f"{PATH}/team?tenant=acme"
        assert "usage" in (await service.send("GET", query, key=ROOT)).body
        assert (await service.send("GET", f"{PATH}?tenant=acme", key=ROOT)).body["data"]
        for path in (query, f"{PATH}?tenant=acme"):
            answer = await service.send("GET", path, key=FOREIGN)
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
        assert (await service.send("DELETE", query, key=ROOT)).status == 200


async def test_two_tenants_may_have_a_context_of_one_name() -> None:
    async with company() as service:
        await put(service)
        unknown = await get(service, key=FOREIGN)
        nowhere = await get(service, "nowhere", key=FOREIGN)
        assert unknown.error | {"message": ""} == nowhere.error | {"message": ""}
        assert (await put(service, {"base_prompt": "Ours."}, key=FOREIGN)).status == 201
        assert (await get(service, key=FOREIGN)).body["base_messages"][0]["content"] == "Ours."
        await service.send("DELETE", f"{PATH}/team", key=FOREIGN)
        assert (await get(service)).body["base_messages"][0]["content"] == BASE


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ([], "invalid_type", None),
        ({}, "missing_field", "base_prompt"),
        ({**TEAM, "alowed_users": []}, "invalid_value", "alowed_users"),
        ({**TEAM, "ttl": 1e9}, "invalid_cache_directive", "ttl"),
        ({**TEAM, "model": "unknown"}, "model_not_found", "model"),
    ],
)
async def test_a_bad_wish_is_refused_and_makes_nothing(
    body: Any, code: str, param: str | None
) -> None:
    async with company() as service:
        answer = await put(service, body)
        assert 400 <= answer.status < 500
        assert (answer.error["code"], answer.error["param"]) == (code, param)
        assert await ids(service, key=OPS) == []


@pytest.mark.parametrize("id_", ["x" * 513, "a%00b", "a%0Ab"])
async def test_an_id_is_a_cache_key(id_: str) -> None:
    async with company() as service:
        answer = await put(service, id_=id_)
        assert (answer.status, answer.error["param"]) == (400, "id")
        assert (await put(service, id_="v1:team/reviews%20%C3%A9")).body[
            "id"
        ] == "v1:team/reviews é"


async def test_its_kv_is_prefilled_and_dropped_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled: list[dict[str, Any]] = []
    dropped: list[str | None] = []

    async def prefill(_: OpenAIBackend, messages: Any, **wish: Any) -> int:
        prefilled.append({"messages": list(messages), **wish})
        return 9

    async def drop(_: OpenAIBackend, salt: str | None) -> int:
        dropped.append(salt)
        return 64

    monkeypatch.setattr(OpenAIBackend, "prefill_kv", prefill)
    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", drop)
    async with company() as service:
        assert (await put(service)).body["kv_tokens"] == 9
        (first,) = prefilled
        assert first["messages"] == [{"role": "system", "content": BASE}]
        assert (first["priority"], first["ttl_s"]) == ("low", 600)
        await put(service, {**TEAM, "allowed_users": []})
        assert dropped == []
        assert prefilled[1]["salt"] == first["salt"]
        await put(service, {**TEAM, "base_prompt": "Another."})
        assert dropped == [first["salt"]]
        answer = await service.send("DELETE", f"{PATH}/team", key=OPS)
        assert answer.body["kv_tokens"] == 64
        assert dropped[1] == prefilled[2]["salt"] != first["salt"]


async def test_a_context_is_made_though_its_kv_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any, **__: Any) -> int:
        raise BackendFault("down", code="backend_unreachable")

    monkeypatch.setattr(OpenAIBackend, "prefill_kv", fails)
    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", fails)
    async with company() as service:
        made = await put(service)
        assert (made.status, made.body["kv_tokens"]) == (201, None)
        gone = await service.send("DELETE", f"{PATH}/team", key=OPS)
        assert gone.body["kv_tokens"] == 0


async def test_nobody_waits_long_for_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    go = asyncio.Event()

    async def slowly(*_: Any, **__: Any) -> int:
        await go.wait()
        return 9

    monkeypatch.setattr(OpenAIBackend, "prefill_kv", slowly)
    monkeypatch.setattr(routes, "PREFILL_WAIT_S", 0.01)
    async with company() as service:
        assert (await put(service)).body["kv_tokens"] is None
        go.set()


async def test_what_is_deleted_while_it_is_looked_at_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with company() as service:
        await put(service)
        held = service.gateway.contexts.held

        async def nothing(_: object) -> None:
            return None

        async def already(_: object, __: object) -> bool:
            return False

        monkeypatch.setattr(held, "base", nothing)
        assert (await get(service)).error["code"] == "context_not_found"
        monkeypatch.setattr(Contexts, "delete", already)
        answer = await service.send("DELETE", f"{PATH}/team", key=OPS)
        assert answer.error["code"] == "context_not_found"


async def test_revoking_does_not_hang_on_the_store_of_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(_: object) -> None:
        raise StoreError("down")

    async with company() as service:
        await put(service)
        monkeypatch.setattr(service.gateway.pipeline, "clear", fails)
        answer = await service.send("DELETE", f"{PATH}/team", key=OPS)
        assert (answer.status, answer.body["entries"]) == (200, 0)
        assert (await get(service)).status == 404


async def test_without_a_key_there_is_nothing() -> None:
    async with company() as service:
        for method, path in (("GET", PATH), ("GET", f"{PATH}/team"), ("PUT", f"{PATH}/team")):
            assert (await service.send(method, path, {})).status == 401
