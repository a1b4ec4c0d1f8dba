"""``/v1/cache/warm`` on a real socket."""

import asyncio
import json
from typing import Any

import pytest

from gateway.warming_job import Job
from policies.keys import Principal
from policies.warming import Item
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, chat_body, error_reply, json_reply
from tests.kit.service import Answer, Service, serving

ALICE, BOB = "kv-alice-3f1c7a90b2d84e65", "kv-bob-3f1c7a90b2d84e65"
TENANTS = [{"name": "a", "api_keys": [ALICE]}, {"name": "b", "api_keys": [BOB]}]
WARM = "/v1/cache/warm"
EVENTS = {"Accept": "text/event-stream"}


async def submitted(service: Service, wish: dict[str, Any], key: str | None = None) -> str:
    answer = await service.send("POST", WARM, wish, key=key)
    assert answer.status == 202, answer.body
    assert answer.headers["Location"] == f"{WARM}/{answer.body['id']}"
    name: str = answer.body["id"]
    return name


async def followed(service: Service, name: str, key: str | None = None) -> list[dict[str, Any]]:
    """What the events say, to the end."""
    answer = await service.send("GET", f"{WARM}/{name}", headers=EVENTS, key=key)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    return [json.loads(event) for event in answer.events]


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_a_job_is_taken_at_once_and_its_events_tell_how_it_goes_on() -> None:
    gate = Gate()
    waiting = Reply((gate, *json_reply(chat_body({"model": "m"})).steps))
    async with serving(upstream=ScriptedUpstream(waiting)) as service:
        answer = await service.send("POST", WARM, {"questions": ["One?", "Two?"]})
        assert answer.status == 202
        job = answer.body
        assert (job["object"], job["status"], job["finished_at"]) == ("cache.warm", "running", None)
        assert job["counts"]["total"] == 2
        assert [item["question"] for item in job["items"]] == ["One?", "Two?"]
        events = asyncio.create_task(followed(service, job["id"]))
        await gate.reached()
        gate.open()
        *before, last = await events
        assert all("items" not in event for event in before)
        assert last["status"] == "done"
        assert [item["status"] for item in last["items"]] == ["done", "done"]
        for text in ("One?", "Two?"):
            hit = await service.chat({"enabled": True}, messages=question(text))
            assert hit.headers["X-Cache-Level"] == "response"
        assert (await service.send("GET", f"{WARM}/{job['id']}")).body == last


async def test_the_head_of_a_job_is_a_head_even_for_who_wants_events() -> None:
    async with serving() as service:
        path = f"/v1/cache/warm/{await submitted(service, {'questions': ['a']})}"
        head = await service.send("HEAD", path, headers={"Accept": "text/event-stream"})
        assert (head.status, head.raw) == (200, b"")
        assert (await service.send("GET", path)).status == 200  # nothing stands before it


async def test_the_statistics_count_warming_apart() -> None:
    async with serving() as service:
        await followed(service, await submitted(service, {"questions": ["One?"]}))
        stats = (await service.send("GET", "/v1/cache/stats")).body
        assert stats["requests"] == 0


async def test_a_pattern_of_the_configuration_is_warmed_by_its_id() -> None:
    pattern = {"id": "faq", "variations": ["One?"], "tier": "hot"}
    async with serving(warm={"patterns": [pattern]}) as service:
        (*_, last) = await followed(service, await submitted(service, {"pattern": "faq"}))
        assert last["counts"]["done"] == 1
        hit = await service.chat({"enabled": True}, messages=question("One?"))
        assert (hit.headers["X-Cache-Level"], hit.headers["X-Cache-Tier"]) == ("response", "hot")
        answer = await service.send("POST", WARM, {"pattern": "unknown"})
        assert (answer.status, answer.error["code"]) == (404, "pattern_not_found")


async def test_patterns_at_the_start_need_nobody_to_ask() -> None:
    pattern = {"id": "faq", "variations": ["One?"], "on_start": True, "keep_warm": True}
    async with serving(warm={"patterns": [pattern]}) as service:
        (*_, last) = await followed(service, "start-faq")
        assert last["counts"]["done"] == 1


async def test_a_failed_question_is_told_and_stops_nobody() -> None:
    upstream = ScriptedUpstream(error_reply(400, "too rude"))
    async with serving(upstream=upstream, warm={"concurrency": 1}) as service:
        (*_, last) = await followed(service, await submitted(service, {"questions": ["1", "2"]}))
        assert [item["status"] for item in last["items"]] == ["failed", "done"]
        assert "too rude" in last["items"][0]["error"]["message"]


async def test_a_job_is_cancelled_by_deleting_it() -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(Reply((gate,)), Reply((gate,)))) as service:
        name = await submitted(service, {"questions": ["One?", "Two?", "Three?"]})
        await gate.reached()
        answer = await service.send("DELETE", f"{WARM}/{name}")
        assert (answer.status, answer.body["status"]) == (200, "cancelled")
        assert answer.body["counts"]["pending"] == 3
        assert (await followed(service, name))[-1] == answer.body
        await asyncio.gather(*(seen.gone.wait() for seen in service.upstream.seen))


async def test_jobs_are_listed_without_their_questions() -> None:
    async with serving() as service:
        names = [await submitted(service, {"questions": [text]}) for text in ("One?", "Two?")]
        listed = (await service.send("GET", WARM)).body
        assert listed["object"] == "list"
        assert {job["id"] for job in listed["data"]} == set(names)
        assert all("items" not in job for job in listed["data"])


@pytest.mark.parametrize(
    ("wish", "code", "param"),
    [
        ({}, "missing_field", None),
        ([], "invalid_type", None),
        ({"questions": ["?", 5]}, "invalid_type", "questions[1]"),
        ({"questions": ["?"], "ttl": 1e9}, "invalid_cache_directive", "ttl"),
        (
            {"patterns": [{"id": "a", "variations": ["?", "?", []]}]},
            "invalid_type",
            "patterns[0].variations[2]",
        ),
        (
            {"questions": ["?"], "kv_cache": {"match": "key"}},
            "invalid_cache_directive",
            "questions[0].kv_cache.match",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_begun(
    wish: Any, code: str, param: str | None
) -> None:
    async with serving() as service:
        answer = await service.send("POST", WARM, wish)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
        assert (await service.send("GET", WARM)).body["data"] == []
        assert service.upstream.calls == 0


async def test_a_job_of_another_tenant_is_no_job() -> None:
    async with serving(tenants=TENANTS) as service:
        name = await submitted(service, {"questions": ["One?"]}, ALICE)
        unknown = await service.send("GET", f"{WARM}/warm-unknown", key=BOB)
        for method in ("GET", "DELETE"):
            answer = await service.send(method, f"{WARM}/{name}", key=BOB)
            assert (answer.status, answer.body) == (404, unknown.body)
        answer = await service.send("GET", f"{WARM}/{name}", key=BOB, headers=EVENTS)
        assert answer.status == 404
        assert (await service.send("GET", WARM, key=BOB)).body["data"] == []
        (*_, last) = await followed(service, name, ALICE)
        assert last["counts"]["done"] == 1
        assert len((await service.send("GET", WARM, key=ALICE)).body["data"]) == 1
        hit = await service.chat({"enabled": True}, messages=question("One?"), key=ALICE)
        assert hit.headers["X-Cache-Level"] == "response"
        miss = await service.chat({"enabled": True}, messages=question("One?"), key=BOB)
        assert miss.headers["X-Cache-Level"] == "none"


async def test_a_key_of_a_user_sees_that_users_jobs_and_no_others() -> None:
    """Tenants are told apart by name; of one there are keys of a user only in its records."""
    tenants = [{"name": "a", "api_keys": [ALICE], "user": "alice"}]
    async with serving(tenants=tenants) as service:
        own = await submitted(service, {"questions": ["One?"]}, ALICE)
        jobs, items = service.gateway.records, [Item("p", "w", {"messages": [{}]})]
        others = Job("warm-other", Principal("a", user="bob"), 1.0, items)
        await jobs.write("warm", "a", others.id, others.wish())
        listed = (await service.send("GET", WARM, key=ALICE)).body["data"]
        assert [job["id"] for job in listed] == [own]
        assert (await service.send("GET", f"{WARM}/{own}", key=ALICE)).status == 200
        for method in ("GET", "DELETE"):
            answer = await service.send(method, f"{WARM}/{others.id}", key=ALICE)
            assert (answer.status, answer.error["code"]) == (404, "job_not_found")


async def test_a_warmed_question_may_stand_under_a_shared_context() -> None:
    wish = {"shared_context": "team"}
    async with serving() as service:
        made = {"base_prompt": "You review Python.", "allowed_users": ["dora"]}
        answer = await service.send("PUT", "/v1/cache/contexts/team", made)
        assert answer.status < 300
        job = {"questions": ["One?"], "kv_cache": {**wish, "user": "dora"}}
        (*_, last) = await followed(service, await submitted(service, job))
        assert last["counts"]["done"] == 1, last
        used = {"enabled": True, **wish, "user": "dora"}
        hit = await service.chat(used, messages=question("One?"))
        assert hit.headers["X-Cache-Level"] == "response"
        job["kv_cache"] = {**wish, "user": "emil"}
        (*_, last) = await followed(service, await submitted(service, job))
        assert last["items"][0]["error"]["code"] == "context_forbidden"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", WARM), ("GET", WARM), ("GET", f"{WARM}/x"), ("DELETE", f"{WARM}/x")],
)
async def test_without_a_key_there_is_nothing(method: str, path: str) -> None:
    async with serving(tenants=TENANTS) as service:
        answer: Answer = await service.send(method, path, {})
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


async def test_a_defect_in_mid_stream_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    async with serving(upstream=ScriptedUpstream(Reply((gate,)))) as service:
        name = await submitted(service, {"questions": ["One?"]})
        await gate.reached()
        monkeypatch.setattr("gateway.warming_job.Job.summary", lambda _: 1 / 0)
        (*_, last) = await followed(service, name)
        assert last["error"]["code"] == "internal_error"


async def test_an_admin_may_name_another_tenant_and_nobody_else_may() -> None:
    root = "kv-root-3f1c7a90b2d84e65"
    tenants = [*TENANTS, {"name": "ops", "api_keys": [root], "admin": True}]
    async with serving(tenants=tenants) as service:
        name = await submitted(service, {"questions": ["One?"]}, key=ALICE)
        path = f"{WARM}/{name}?tenant=a"
        assert (await service.send("GET", f"{WARM}/{name}", key=root)).status == 404
        assert (await service.send("GET", path, key=root)).body["id"] == name
        (listed,) = (await service.send("GET", f"{WARM}?tenant=a", key=root)).body["data"]
        assert listed["id"] == name
        assert (await service.send("DELETE", path, key=root)).status == 200
        for method, where in (("GET", path), ("DELETE", path), ("GET", f"{WARM}?tenant=a")):
            answer = await service.send(method, where, key=BOB)
            assert (answer.status, answer.error["param"]) == (403, "tenant")
        assert (await service.send("GET", path, key=ALICE)).status == 200


async def test_a_warm_request_takes_about_its_own_size_in_the_store() -> None:
    base = [{"role": "user", "content": f"{number} is known."} for number in range(900)]
    wish = {"patterns": [{"id": "p", "base_messages": base, "variations": ["?"] * 100}]}
    async with serving() as service:
        job = await submitted(service, wish)
        record = await service.gateway.records.read("warm", "default", job)
        assert record is not None
        assert len(record) < 2 * len(json.dumps(wish))


async def test_a_warm_request_of_too_many_messages_is_refused_by_name() -> None:
    base = [{"role": "user", "content": "?"}] * 3000
    wish = {"patterns": [{"id": "p", "base_messages": base, "variations": ["?"] * 3000}]}
    async with serving() as service:
        answer = await service.send("POST", WARM, wish)
        assert (answer.status, answer.error["param"]) == (400, "patterns[0].variations")
