"""What has ended leaves the store: texts of contexts and warm jobs, and the jobs of a removed tenant."""

from pathlib import Path
from typing import Any

import pytest

from tests.kit.service import Service, serving

ALICE, BOB = ("kv-alice-3f1c7a90b2d84e65", "kv-bob-3f1c7a90b2d84e65")
A, B = ({"name": "a", "api_keys": [ALICE]}, {"name": "b", "api_keys": [BOB]})
CANARY = "canary-4c1d"
KINDS = ("context", "context-base", "context-used", "warm", "warm-state", "warm-open")
CONTEXT = {"base_prompt": f"You keep {CANARY}. " + "x" * 200, "ttl": 100}


async def texts(service: Service) -> list[str]:
    """The kinds of the records that hold the canary."""
    records = service.gateway.records
    found = [
        (kind, await records.read(kind, tenant, name))
        for kind in KINDS
        for tenant, name in await records.names(kind, None)
    ]
    return [kind for kind, raw in found if raw is not None and CANARY.encode() in raw]


def on_disk(folder: Path, *tenants: dict[str, Any]) -> dict[str, Any]:
    tiers = {"warm": {"store": "disk"}}
    return {"tenants": list(tenants), "tiers": tiers, "store": {"disk_path": str(folder)}}


async def warmed(service: Service, key: str) -> str:
    job = await service.send("POST", "/v1/cache/warm", {"questions": [CANARY]}, key=key)
    name: str = job.body["id"]
    path = f"/v1/cache/warm/{name}"
    await service.send("GET", path, key=key, headers={"Accept": "text/event-stream"})
    return path


async def test_an_ended_job_keeps_its_numbers_and_loses_its_texts(tmp_path: Path) -> None:
    async with serving(**on_disk(tmp_path, A)) as service:
        path = await warmed(service, ALICE)
        shown = (await service.send("GET", path, key=ALICE)).body
        assert shown["items"][0]["question"] == CANARY  # as long as this process remembers
        assert await texts(service) == []
    async with serving(**on_disk(tmp_path, A)) as service:
        again = (await service.send("GET", path, key=ALICE)).body
        assert again["status"] == "done"
        assert again["counts"] == shown["counts"]
        (item,) = again["items"]
        assert item == {**shown["items"][0], "question": None}


async def test_an_expired_context_leaves_and_a_living_one_stays(tmp_path: Path) -> None:
    async with serving(**on_disk(tmp_path, A)) as service:
        for name, ttl in (("short", 100), ("long", 5000)):
            path = f"/v1/cache/contexts/{name}"
            await service.send("PUT", path, {**CONTEXT, "ttl": ttl}, key=ALICE)
        assert await texts(service) == ["context-base"] * 2
        service.clock.advance(200)
        await service.gateway.contexts.held.sweep()
        assert await texts(service) == ["context-base"]
        assert await service.gateway.contexts.held.names() == {("a", "long")}
        shown = await service.send("GET", "/v1/cache/contexts/long", key=ALICE)
        assert CANARY in shown.raw.decode()


@pytest.mark.parametrize("stays", [True, False])
async def test_a_removed_tenants_job_does_not_go_on(tmp_path: Path, stays: bool) -> None:
    async with serving(**on_disk(tmp_path, A, B)) as service:
        await warmed(service, ALICE)
        records, (name,) = service.gateway.records, await service.gateway.records.names("warm", "a")
        # As a process leaves it that dies in the middle of the job.
        wish = b'{"id": "%b", "principal": {"tenant": "a"}, "created_at": 1, "items": [["p", "w", %b]]}'
        body = b'{"model": "m", "messages": [{"role": "user", "content": "%b"}]}' % CANARY.encode()
        await records.write("warm", *name, wish % (name[1].encode(), body))
        await records.erase("warm-state", *name)
        await records.write("warm-open", *name, b"1")
    async with serving(**on_disk(tmp_path, *([A, B] if stays else [B]))) as service:
        while await service.gateway.records.names("warm-open", None):
            await service.send("GET", "/healthz")
        jobs = await service.gateway.records.names("warm", None)
        assert jobs == ([name] if stays else [])
        assert await texts(service) == []
        await service.settled()
        assert service.upstream.calls == (1 if stays else 0)


async def test_contexts_count_against_the_bytes_of_their_tenant() -> None:
    tenants = [{**A, "max_bytes": 1000}, B]
    async with serving(tenants=tenants) as service:
        statuses = []
        for number in range(4):
            path = f"/v1/cache/contexts/{number}"
            statuses.append((await service.send("PUT", path, CONTEXT, key=ALICE)).status)
            assert (await service.send("PUT", path, CONTEXT, key=BOB)).status == 201
        assert statuses == [201, 201, 201, 409]
        full = await service.send("PUT", "/v1/cache/contexts/3", CONTEXT, key=ALICE)
        assert full.error["code"] == "too_many_contexts"
        larger = {**CONTEXT, "base_prompt": "y" * 600}
        assert (await service.send("PUT", "/v1/cache/contexts/0", larger, key=ALICE)).status == 409
        shorter = {**CONTEXT, "base_prompt": "y" * 100}
        assert (await service.send("PUT", "/v1/cache/contexts/0", shorter, key=ALICE)).status == 200
        await service.send("DELETE", "/v1/cache/contexts/1", key=ALICE)
        assert (await service.send("PUT", "/v1/cache/contexts/3", CONTEXT, key=ALICE)).status == 201
