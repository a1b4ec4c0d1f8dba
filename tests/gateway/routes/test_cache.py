"""Look at what is stored and clear it."""

import itertools
from typing import Any

import pytest

from gateway.backends.openai import OpenAIBackend
from gateway.errors import BackendFault
from policies.keys import Scope, kv_salt
from tests.kit.service import Service, serving


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def filled(service: Service, count: int, **wish: Any) -> None:
    for number in range(count):
        await service.chat({"enabled": True, **wish}, messages=question(f"question {number}"))


async def entries(service: Service, query: str = "") -> Any:
    answer = await service.send("GET", f"/v1/cache/entries{query}")
    assert answer.status == 200
    return answer.body


async def test_entries_are_listed_page_by_page() -> None:
    async with serving() as service:
        await filled(service, 7)
        seen: list[str] = []
        query = "?limit=3"
        while True:
            page = await entries(service, query)
            seen += [entry["key"] for entry in page["data"]]
            if not page["has_more"]:
                assert page["next_cursor"] is None
                break
            query = f"?limit=3&cursor={page['next_cursor']}"
        assert len(seen) == len(set(seen)) == 7
        assert seen == sorted(seen)


async def test_an_entry_says_what_is_known_about_it() -> None:
    async with serving() as service:
        wish = {
            "enabled": True,
            "cache_key": "v1:ns:1",
            "tier": "hot",
            "tags": ["a", "b"],
            "batch_id": "b1",
            "context": "code_review",
            "user": "alice",
        }
        answer = await service.chat(wish)
        service.clock.advance(10)
        (entry,) = (await entries(service))["data"]
        cost_s, size = entry.pop("cost_s"), entry.pop("size_bytes")
        assert cost_s > 0
        assert size > 100
        assert entry == {
            "key": answer.headers["X-Cache-Key"],
            "cache_key": "v1:ns:1",
            "tenant": "default",
            "scope": "tenant",
            "user": "alice",
            "model": "m",
            "endpoint": "chat",
            "tier": "hot",
            "priority": "high",
            "status": 200,
            "age_s": 10.0,
            "ttl_left_s": 290.0,
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "tags": ["a", "b"],
            "batch": "b1",
            "context": "code_review",
        }
        one = (await service.send("GET", f"/v1/cache/entries/{entry['key']}")).body
        assert one["response"]["choices"][0]["message"]["content"] == "You asked well."


async def test_entries_are_selected_by_tier_and_prefix() -> None:
    async with serving() as service:
        await filled(service, 2, tier="hot")
        await service.chat({"enabled": True, "cache_key": "docs:1"})
        assert len((await entries(service, "?tier=hot"))["data"]) == 2
        assert len((await entries(service, "?tier=cold"))["data"]) == 0
        assert len((await entries(service, "?prefix=docs:"))["data"]) == 1
        assert len((await entries(service, "?tenant=default"))["data"]) == 3
        assert len((await entries(service, "?tenant=other"))["data"]) == 0


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=ten", "limit"),
        ("?limit=%C2%B2", "limit"),
        ("?cursor=%21%21", "cursor"),
        ("?cursor=abc", "cursor"),
        ("?cursor=%C3%A4", "cursor"),
    ],
)
async def test_a_bad_query_is_refused(query: str, param: str) -> None:
    async with serving() as service:
        answer = await service.send("GET", f"/v1/cache/entries{query}")
        assert (answer.status, answer.error["code"]) == (400, "invalid_value")
        assert answer.error["param"] == param


@pytest.mark.parametrize(
    "key", ["0" * 32, "abc", "zz", "0" * 64, "..%2F..", "%00", "A" * 32, "x" * 4000]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_entry_that_is_not_there_is_404(key: str, method: str) -> None:
    async with serving() as service:
        await filled(service, 1)
        answer = await service.send(method, f"/v1/cache/entries/{key}")
        assert answer.status == 404
        assert answer.error["code"] == "entry_not_found"


async def test_an_entry_can_be_deleted_alone() -> None:
    async with serving() as service:
        await filled(service, 3)
        key = (await entries(service))["data"][1]["key"]
        answer = await service.send("DELETE", f"/v1/cache/entries/{key}")
        assert answer.body == {"deleted": 1, "key": key}
        assert key not in {entry["key"] for entry in (await entries(service))["data"]}
        assert len((await entries(service))["data"]) == 2
        assert (await service.send("DELETE", f"/v1/cache/entries/{key}")).status == 404


WISH = {
    "enabled": True,
    "cache_key": "v1:ns:1",
    "tags": ["x"],
    "batch_id": "b1",
    "context": "code_review",
    "user": "alice",
}


@pytest.mark.parametrize(
    "selector",
    [
        {"all": True},
        {"cache_key": "v1:ns:1"},
        {"prefix": "v1:"},
        {"namespace": "ns"},
        {"context": "code_review"},
        {"user": "alice"},
        {"model": "m", "tag": "x"},
        {"batch": "b1"},
        {"tag": "x"},
        {"all": False, "tag": "x", "prefix": None},
    ],
)
async def test_entries_go_by_what_names_them(selector: dict[str, Any]) -> None:
    async with serving() as service:
        await service.chat(WISH)
        others = 0 if selector.get("all") else 1
        await service.chat({"enabled": True}, messages=question("another"))
        answer = await service.send("POST", "/v1/cache/invalidate", selector)
        assert answer.body == {"entries": 2 - others, "kv_tokens": 0}
        assert len((await entries(service))["data"]) == others
        again = await service.chat({**WISH, "debug": True})
        assert again.headers["X-Cache-Miss-Reason"] == "invalidated"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_field", None),
        (None, "missing_field", None),
        ({"all": False}, "missing_field", None),
        ({"all": 1}, "invalid_type", "all"),
        ({"all": True, "tag": "x"}, "invalid_selector", "all"),
        ({"tag": 5}, "invalid_type", "tag"),
        ({"tag": ""}, "invalid_type", "tag"),
        ({"tag": ["x"]}, "invalid_type", "tag"),
        ({"key": "x"}, "invalid_selector", "key"),
        ({"x" * 500: 1}, "invalid_selector", "x" * 64),
        ([], "invalid_type", None),
    ],
)
async def test_a_bad_selector_drops_nothing(body: Any, code: str, param: str | None) -> None:
    async with serving() as service:
        await filled(service, 1)
        answer = await service.send("POST", "/v1/cache/invalidate", body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
        assert len((await entries(service))["data"]) == 1


async def test_kv_blocks_go_along_where_they_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def drop(_: OpenAIBackend, salt: str | None) -> int:
        asked.append(salt)
        return 64

    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", drop)
    async with serving(tenants=[{"name": "a", "api_keys": ["kv-3f1c7a90b2d84e65"]}]) as service:
        secret = service.gateway.pipeline._rules.kv_secret

        async def dropped(wish: dict[str, Any]) -> int:
            answer = await service.send(
                "POST", "/v1/cache/invalidate", wish, key="kv-3f1c7a90b2d84e65"
            )
            found: int = answer.body["kv_tokens"]
            return found

        assert await dropped({"all": True}) == 64
        assert await dropped({"user": "alice"}) == 64
        assert await dropped({"tag": "x"}) == 0
        assert asked == [
            kv_salt(Scope("tenant", "a"), secret),
            kv_salt(Scope("user", "a", user="alice"), secret),
        ]


async def test_an_admins_all_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def drop(_: OpenAIBackend, salt: str | None) -> int:
        asked.append(salt)
        raise BackendFault("down", code="backend_unreachable")

    monkeypatch.setattr(OpenAIBackend, "invalidate_kv", drop)
    async with serving() as service:
        answer = await service.send("POST", "/v1/cache/invalidate", {"all": True})
        assert answer.body == {"entries": 0, "kv_tokens": 0}  # a backend that is down has no KV
        assert asked == [None]


async def test_statistics_say_what_was_saved() -> None:
    async with serving() as service:
        await service.chat({"enabled": True, "tier": "hot"})
        await service.chat({"enabled": True, "tier": "hot"})
        await service.chat(model="nope")
        await service.settled()
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert (stats["requests"], stats["hits"], stats["hit_rate"]) == (2, 1, 0.5)
        assert stats["tokens_saved"] == 13
        assert stats["seconds_saved"] > 0
        assert stats["money_saved"] == pytest.approx((9 * 0.28 + 4 * 0.42) / 1e6, abs=1e-9)
        assert stats["levels"]["response"]["requests"] == stats["levels"]["none"]["requests"] == 1
        assert stats["tiers"].keys() == {"hot", "warm", "cold"}
        assert (stats["tiers"]["hot"]["entries"], stats["tiers"]["hot"]["hits"]) == (1, 1)
        assert stats["models"].keys() == {"m"}
        assert stats["miss_reasons"] == {"cold": 1}
        assert stats["errors"] == 1
        assert stats["backends"] == {"up": {"kv": None}}


async def test_statistics_survive_a_backend_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(_: OpenAIBackend) -> None:
        raise BackendFault("down", code="backend_unreachable")

    monkeypatch.setattr(OpenAIBackend, "kv_stats", fails)
    async with serving() as service:
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert stats["backends"] == {"up": {"error": "backend_unreachable"}}


async def test_the_first_digits_of_a_key_find_its_entry_and_delete_nothing() -> None:
    async with serving() as service:
        await filled(service, 20)
        for key in [entry["key"] for entry in (await entries(service))["data"]]:
            for digits in (8, 9, 12, 31):
                answer = await service.send("GET", f"/v1/cache/entries/{key[:digits]}")
                assert answer.body["key"] == key
                gone = await service.send("DELETE", f"/v1/cache/entries/{key[:digits]}")
                assert gone.status == 404
            assert (await service.send("GET", f"/v1/cache/entries/{key[:7]}")).status == 404


async def test_digits_that_several_keys_begin_with_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.routes.cache.MIN_DIGITS", 1)
    async with serving() as service:
        await filled(service, 17)  # of 16 first digits
        keys = [entry["key"] for entry in (await entries(service))["data"]]
        twice = next(a[0] for a, b in itertools.pairwise(keys) if a[0] == b[0])
        answer = await service.send("GET", f"/v1/cache/entries/{twice}")
        assert (answer.status, answer.error["code"]) == (400, "ambiguous_key")


async def test_an_entry_without_its_answer_is_not_counted_as_read() -> None:
    async with serving() as service:
        await filled(service, 1)
        (entry,) = (await entries(service))["data"]
        told = (await service.send("GET", f"/v1/cache/entries/{entry['key']}?response=false")).body
        assert "response" not in told
        assert told["made_by"]["tier"] == told["tier"]
        refused = await service.send("GET", f"/v1/cache/entries/{entry['key']}?response=maybe")
        assert (refused.status, refused.error["param"]) == (400, "response")


async def test_the_statistics_have_answer_times_by_level() -> None:
    async with serving() as service:
        await filled(service, 3)
        latency = (await service.send("GET", "/v1/cache/stats")).body["latency"]
        assert sum(latency["levels"]["none"]["within"]) == 3
        assert len(latency["levels"]["none"]["within"]) == len(latency["bounds_s"]) + 1
