"""Conversations and recommendations over HTTP; each key sees its own."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.kit.service import Service, serving

ALICE, BOB, ROOT, PROXY, CAROL = (
    f"kv-{name}-3f1c7a90b2d84e65" for name in ("alice", "bob", "root", "proxy", "carol")
)
TENANTS = [
    {"name": "a", "api_keys": [ALICE]},
    {"name": "b", "api_keys": [BOB]},
    {"name": "ops", "api_keys": [ROOT], "admin": True},
    {"name": "proxy", "api_keys": [PROXY], "trusted_proxy": True},
    {"name": "carols", "api_keys": [CAROL], "user": "carol"},
]
NAME = "/v1/cache/conversations/"
LISTS = ("/v1/cache/conversations", "/v1/cache/recommendations")


async def talked(
    service: Service,
    name: str = "talk",
    *,
    times: int = 1,
    text: str = "What is asked?",
    gap_s: float = 10.0,
    wish: dict[str, Any] | None = None,
    **how: Any,
) -> None:
    """Calls of one conversation, each settled under its own time."""
    for _ in range(times):
        service.clock.advance(gap_s)
        said = {"enabled": True, "cache_key": name, **(wish or {})}
        messages = [{"role": "user", "content": text}]
        assert (await service.chat(said, messages=messages, **how)).status == 200
        await service.settled()


async def shown(service: Service, path: str, **how: Any) -> Any:
    answer = await service.send("GET", path, **how)
    assert answer.status == 200
    return answer.body


async def test_a_conversation_is_told_in_numbers() -> None:
    async with serving(scripted_durations=True) as service:
        await talked(service, times=5)
        told = await shown(service, f"{NAME}talk")
        assert (told["id"], told["calls"], told["hits"], told["messages"]) == ("talk", 5, 4, 1)
        assert (told["class"], told["mean_length"]) == ("educational", 14.0)
        assert told["reuse_potential"] == 0.06
        assert (told["tokens_saved"], told["repeats"], told["gap_p90_s"]) == (4 * 13, 4, 10.0)
        assert told["last_seen"] - told["first_seen"] == 40
        assert told["recommendations"] == []


async def test_the_store_off_and_on_is_recommended_from_what_came_again() -> None:
    async with serving() as service:
        await talked(service, "past", times=3, wish={"enabled": False})
        for number in range(5):
            await talked(service, "never", text=f"question {number}", wish={"ttl": 40})
        found = (await shown(service, LISTS[1]))["data"]
        by_name = {one["conversation"]: one for one in found}
        assert (by_name["past"]["action"], by_name["past"]["value"]) == ("enable", True)
        assert by_name["past"]["measured"].items() >= {"uncached_calls": 3, "repeats": 2}.items()
        assert (by_name["never"]["action"], by_name["never"]["value"]) == ("disable", False)
        assert by_name["never"]["measured"] == {"cached_calls": 5, "repeats": 0}
        assert by_name["never"]["span_s"] == 40
        assert "observed for 40 s" in by_name["never"]["because"]


async def test_a_key_that_is_always_found_is_told_to_change_nothing() -> None:
    async with serving() as service:
        await talked(service, "faq:python", times=50, wish={"ttl": 86_400})
        assert (await shown(service, LISTS[1]))["data"] == []


async def test_a_longer_ttl_is_recommended_once_answers_have_expired() -> None:
    async with serving() as service:
        await talked(service, times=4, gap_s=50.0, wish={"ttl": 60})
        await talked(service, times=4, gap_s=110.0, wish={"ttl": 60})
        (ttl, tier) = (await shown(service, LISTS[1]))["data"]
        assert (ttl["action"], ttl["value"], ttl["measured"]["expired"]) == ("ttl", 300, 5)
        assert (tier["action"], tier["value"]) == ("tier", "hot")
        assert ttl["span_s"] == 590


async def test_streams_and_completions_and_prompt_cache_keys_name_conversations_too() -> None:
    async with serving() as service:
        messages = [{"role": "user", "content": "hi"}] * 21
        for stream in (True, False):
            await service.chat(
                {"enabled": True}, prompt_cache_key="talk", stream=stream, messages=messages
            )
        body = {"model": "m", "prompt": "fix this code", "kv_cache": {"cache_key": "c"}}
        assert (await service.send("POST", "/v1/completions", body)).status == 200
        await service.settled()
        told = await shown(service, f"{NAME}talk")
        assert (told["calls"], told["hits"], told["messages"]) == (2, 1, 21)
        assert told["recommendations"][0]["action"] == "chunking"
        assert (await shown(service, f"{NAME}c"))["class"] == "programming"


async def test_the_latest_come_first_and_a_page_is_bounded() -> None:
    async with serving() as service:
        for name in ("one", "two", "three", "one"):
            await talked(service, name)
        page = await shown(service, f"{LISTS[0]}?limit=2")
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (["one", "three"], True)
        page = await shown(service, LISTS[0])
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (
            ["one", "three", "two"],
            False,
        )
        for path in LISTS:
            refused = await service.send("GET", f"{path}?limit=0")
            assert (refused.status, refused.error["param"]) == (400, "limit")


@pytest.mark.parametrize("name", ["v1:ns/with/slashes", "你好", "a b?c#d%e", "x" * 512])
async def test_any_cache_key_names_its_conversation(name: str) -> None:
    async with serving() as service:
        await talked(service, name)
        (one,) = (await shown(service, LISTS[0]))["data"]
        assert one["id"] == name
        path = NAME + quote(name, safe="")
        assert (await shown(service, path))["id"] == name
        assert (await service.send("DELETE", path)).body == {
            "id": name, "deleted": True, "entries": 1,
        }  # fmt: skip
        assert (await service.send("GET", path)).status == 404


async def test_a_forgotten_conversation_takes_its_answers_along() -> None:
    async with serving() as service:
        await talked(service, "talk", times=2)
        await talked(service, "other")
        assert (await service.send("DELETE", f"{NAME}talk")).body["entries"] == 1
        assert (await service.send("DELETE", f"{NAME}talk")).status == 404
        await talked(service, "talk")
        told = await shown(service, f"{NAME}talk")
        assert (told["calls"], told["hits"]) == (1, 0)
        assert (await shown(service, f"{NAME}other"))["calls"] == 1


async def test_answers_go_though_their_conversation_is_not_remembered() -> None:
    async with serving() as service:
        await talked(service, "talk")
        (one,) = service.gateway.conversations.of("default")
        service.gateway.conversations.forget(one)
        assert (await service.send("GET", f"{NAME}talk")).status == 404
        assert (await service.send("DELETE", f"{NAME}talk")).body["entries"] == 1


async def test_another_tenants_conversation_is_not_there() -> None:
    async with serving(tenants=TENANTS) as service:
        await talked(service, key=ALICE)
        await talked(service, times=3, key=ALICE, wish={"enabled": False})
        for verb in ("GET", "DELETE"):
            refused = await service.send(verb, f"{NAME}talk", key=BOB)
            unknown = await service.send(verb, f"{NAME}nope", key=BOB)
            assert (refused.status, refused.body) == (unknown.status, unknown.body)
            assert (refused.status, refused.error["code"]) == (404, "conversation_not_found")
        for path in LISTS:
            assert (await shown(service, path, key=BOB))["data"] == []
            assert (await shown(service, path, key=ALICE))["data"] != []
            refused = await service.send("GET", f"{path}?tenant=a", key=BOB)
            assert (refused.status, refused.error["code"]) == (403, "forbidden")
        assert (await service.send("GET", f"{NAME}talk")).status == 401
        assert (await service.send("DELETE", f"{NAME}talk", key=ALICE)).body["entries"] == 1


async def test_an_admin_sees_all_tenants_or_one() -> None:
    async with serving(tenants=TENANTS) as service:
        await talked(service, "alices", key=ALICE)
        await talked(service, "bobs", key=BOB)
        everything = (await shown(service, LISTS[0], key=ROOT))["data"]
        assert [(one["tenant"], one["id"]) for one in everything] == [
            ("b", "bobs"),
            ("a", "alices"),
        ]
        (one,) = (await shown(service, f"{LISTS[0]}?tenant=a", key=ROOT))["data"]
        assert one["id"] == "alices"
        assert (await service.send("DELETE", f"{NAME}bobs", key=ROOT)).body["entries"] == 1
        assert (await service.send("GET", f"{NAME}bobs", key=BOB)).status == 404


async def test_a_key_of_one_user_sees_that_users_alone() -> None:
    async with serving(tenants=TENANTS) as service:
        await talked(service, "talk", key=CAROL)
        assert (await shown(service, f"{NAME}talk", key=CAROL))["user"] == "carol"
        own = await shown(service, f"{NAME}talk", key=CAROL, headers={"X-Cache-User": "carol"})
        assert own["calls"] == 1
        for verb, path in (("GET", LISTS[0]), ("GET", f"{NAME}talk"), ("DELETE", f"{NAME}talk")):
            refused = await service.send(verb, path, key=CAROL, headers={"X-Cache-User": "ann"})
            assert (refused.status, refused.error["code"]) == (403, "user_mismatch")


async def test_users_of_one_tenant_do_not_see_each_other_and_a_key_of_no_user_sees_both() -> None:
    tenants = [
        {"name": "t", "api_keys": [ALICE], "user": "ann"},
        {"name": "t", "api_keys": [BOB], "user": "ben"},
        {"name": "t", "api_keys": [CAROL]},
    ]
    async with serving(tenants=tenants) as service:
        await talked(service, "anns", times=5, key=ALICE)
        assert (await shown(service, f"{NAME}anns", key=ALICE))["calls"] == 5
        assert (await shown(service, f"{NAME}anns", key=CAROL))["calls"] == 5
        for verb in ("GET", "DELETE"):
            refused = await service.send(verb, f"{NAME}anns", key=BOB)
            assert (refused.status, refused.error["code"]) == (404, "conversation_not_found")
        for path in LISTS:
            assert (await shown(service, path, key=BOB))["data"] == []
        await talked(service, "anns", key=ALICE)
        assert (await shown(service, f"{NAME}anns", key=ALICE))["hits"] == 5  # nothing is gone


async def test_a_trusted_key_looks_at_the_user_it_names() -> None:
    async with serving(tenants=TENANTS) as service:
        for user in ("ann", "ben"):
            await talked(service, "talk", key=PROXY, headers={"X-Cache-User": user})
        ann = {"X-Cache-User": "ann"}
        (one,) = (await shown(service, LISTS[0], key=PROXY, headers=ann))["data"]
        assert one["user"] == "ann"
        assert (await shown(service, f"{NAME}talk", key=PROXY))["user"] == "ben"  # the latest
        assert len((await shown(service, LISTS[0], key=PROXY))["data"]) == 2
        refused = await service.send("GET", f"{NAME}talk", key=PROXY, headers={"X-Cache-User": "x"})
        assert refused.status == 404
        gone = await service.send("DELETE", f"{NAME}talk", key=PROXY, headers=ann)
        assert gone.status == 200
        assert (await shown(service, LISTS[0], key=PROXY))["data"][0]["user"] == "ben"
