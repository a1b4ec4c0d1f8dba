"""Two users of one tenant, every route and verb: what one keeps changes nothing of what the other is told.

The twin of ``test_tenant_walls``, with its rows: the same requests of user Bob are sent into two worlds,
one where user Ann has been busy, one where she has never been. Bob comes with a key of his own, or
through a trusted proxy that names him. All answers are kept for their user alone (``defaults.scope``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load
from gateway.routes.models import FORWARDED
from tests.kit.service import Answer, Service, serving
from tests.scenarios.test_tenant_walls import (
    CANARY,
    EXTRA,
    HELD,
    QUESTION,
    ROWS,
    SECRETS,
    TEXT,
    WARM,
    Row,
    Upstream,
    asked,
    seen,
    stored,
)

ANN, BOB, PROXY = (f"kv-{name}-5d1c7a90b2d84e65" for name in ("ann", "bob", "proxy"))
FILE = f"""
defaults: {{scope: user}}
tenants:
  - name: a
    api_keys: [{PROXY}]
    trusted_proxy: true
    users:
      - {{name: ann, api_keys: [{ANN}]}}
      - {{name: bob, api_keys: [{BOB}]}}
"""
KEYED = {ANN: {"Authorization": f"Bearer {ANN}"}, BOB: {"Authorization": f"Bearer {BOB}"}}
PROXIED = {
    key: {"Authorization": f"Bearer {PROXY}", "X-Cache-User": user}
    for key, user in ((ANN, "ann"), (BOB, "bob"))
}
SECRET = {
    "base_messages": [{"role": "system", "content": f"You keep {CANARY}."}],
    "allowed_users": ["ann"],
}
Keys = dict[str, dict[str, str]]


def private(row: Row) -> Row | None:
    """The row for a user; None for one that is about the tenant, or another user, by its own words."""
    wish = row.body.get("kv_cache") if isinstance(row.body, dict) else None
    if row.route == "/v1/cache/stats":  # counts of the tenant: no names, no texts
        return None
    if "X-Cache-User" in row.headers or "user" in (row.body or {}) or (wish or {}).get("share"):
        return None
    if wish is None:
        return row
    own = {name: value for name, value in wish.items() if name not in {"user", "scope"}}
    return replace(row, body={**row.body, "kv_cache": own})


USER_ROWS = [own for row in ROWS if (own := private(row)) is not None]


def named_context(row: Row) -> bool:
    """A name that is taken is told to be so (403), and nothing else of it."""
    wish = row.body.get("kv_cache") if isinstance(row.body, dict) else None
    return row.route == HELD or "shared_context" in (wish or {})


def managing(row: Row) -> bool:
    """For operators alone, whoever asks."""
    path = (row.method, row.route.removeprefix("/v1").lstrip("/"))
    return path in FORWARDED or row.twin != ROWS[0].twin


@asynccontextmanager
async def world(
    folder: Path, keys: Keys, *, busy: bool
) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    file = folder / "kvgate.yaml"
    file.write_text(FILE)
    wishes = load(file, environ={})
    upstream = Upstream(busy=busy)
    async with serving(
        tenants=wishes.model_dump()["tenants"],
        defaults={"scope": wishes.defaults.scope},
        models=("m", "*"),
        upstream=upstream,
        scripted_durations=True,
        secrets=SECRETS,
    ) as service:
        made = await history(service, keys) if busy else {}
        upstream.busy = False
        service.gateway.journal.settle()
        yield service, made


async def history(service: Service, keys: Keys) -> dict[str, str]:
    """Ann's busy while: whatever Bob will ask, and more."""

    async def send(method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {**keys[ANN], **headers}
        answer = await service.send(method, path, body, headers=sent)
        assert answer.status < 300, answer.raw
        return answer

    for name in ("reviewers", "secret"):
        await send("PUT", f"/v1/cache/contexts/{name}", SECRET)
    job = (await send("POST", "/v1/cache/warm", WARM)).body["id"]
    await send("GET", f"/v1/cache/warm/{job}", Accept="text/event-stream")
    entry = ""
    for row in USER_ROWS:
        if row.method == "POST" and row.alive is stored and not named_context(row):
            answer = await send("POST", row.path or row.route, row.body)
            entry = entry or answer.headers["X-Cache-Key"]
            await send("POST", row.path or row.route, row.body)
    for number, wish in enumerate(EXTRA):
        body = asked({**TEXT, "seed": number}, **wish)
        del body["kv_cache"]["user"]
        await send("POST", "/v1/completions", body)
    return {"entry": entry, "job": job}


async def answers(service: Service, made: dict[str, str], headers: dict[str, str]) -> list[Answer]:
    told = []
    for row in USER_ROWS:
        path = (row.path or row.route).format(**made)
        method = "GET" if row.method == "*" else row.method
        sent = {"X-Request-ID": "walls", **headers, **row.headers}
        told.append(await service.send(method, path, row.body, headers=sent))
        if "Location" in told[-1].headers:
            events = {**headers, "Accept": "text/event-stream"}
            await service.send("GET", told[-1].headers["Location"], headers=events)
        await service.settled()
    return told


@pytest.mark.parametrize("keys", [KEYED, PROXIED], ids=["keys of their own", "a trusted proxy"])
async def test_nothing_that_one_user_keeps_is_seen_by_another_on_any_route(
    keys: Keys, tmp_path: Path
) -> None:
    async with world(tmp_path, keys, busy=True) as (service, made):
        beside = await answers(service, made, keys[BOB])
        after = await answers(service, made, keys[ANN])
    async with world(tmp_path, keys, busy=False) as (service, _):
        alone = await answers(service, made, keys[BOB])
    rows = list(zip(USER_ROWS, beside, alone, after, strict=True))
    told = {
        str(row): (seen(one), seen(other))
        for row, one, other, _ in rows
        if seen(one) != seen(other) and not named_context(row)
    }
    assert told == {}
    assert [str(row) for row, one, _, _ in rows if CANARY in seen(one)] == []
    taken = {one.status for row, one, other, _ in rows if named_context(row)}
    assert taken <= {200, 201, 403, 404}
    dead = {
        str(row): seen(own)
        for row, _, _, own in rows
        if not managing(row) and not named_context(row) and not row.alive(own)
    }
    assert dead == {}


async def test_a_page_of_entries_ends_where_ones_own_end(tmp_path: Path) -> None:
    """Neither a cursor nor ``has_more`` tells that another user's entries lie behind."""
    async with world(tmp_path, KEYED, busy=False) as (service, _):
        for number in range(12):
            await service.chat({"enabled": True}, headers=KEYED[ANN], seed=number)
        for number in range(2):
            await service.chat({"enabled": True}, headers=KEYED[BOB], seed=100 + number)
        for limit, more in ((1, True), (2, False), (50, False)):
            path = f"/v1/cache/entries?limit={limit}"
            page = (await service.send("GET", path, headers=KEYED[BOB])).body
            assert len(page["data"]) == min(limit, 2)
            assert page["has_more"] is more
            assert (page["next_cursor"] is not None) is more
        seen_keys, cursor = [], ""
        while True:
            path = f"/v1/cache/entries?limit=1{cursor}"
            page = (await service.send("GET", path, headers=KEYED[BOB])).body
            seen_keys += [entry["key"] for entry in page["data"]]
            if not page["has_more"]:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(seen_keys) == 2
        assert service.upstream.calls == 14


async def test_a_shared_entry_does_not_name_the_user_who_had_it_computed(tmp_path: Path) -> None:
    async with world(tmp_path, KEYED, busy=False) as (service, _):
        wish = {"enabled": True, "scope": "tenant"}
        await service.chat(wish, headers=KEYED[ANN])
        assert (await service.chat(wish, headers=KEYED[BOB])).headers["X-Cache-Level"] == "response"
        for headers, user in ((KEYED[ANN], "ann"), (KEYED[BOB], None), (PROXIED[BOB], None)):
            answer = await service.send("GET", "/v1/cache/entries", headers=headers)
            (entry,) = answer.body["data"]
            assert (entry["scope"], entry["user"]) == ("tenant", user)


async def test_a_body_cannot_choose_another_user_than_the_proxys_header(tmp_path: Path) -> None:
    async with world(tmp_path, KEYED, busy=False) as (service, _):
        asks = {**QUESTION, "kv_cache": {"enabled": True, "user": "ann"}}
        rows: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", asks),
            ("/v1/cache/explain", asks),
            ("/v1/cache/warm", {"questions": ["?"], "kv_cache": {"user": "ann"}}),
            ("/v1/cache/invalidate", {"user": "ann"}),
        ]
        for path, body in rows:
            answer = await service.send("POST", path, body, headers=PROXIED[BOB])
            assert (answer.status, answer.error["code"]) == (403, "user_mismatch"), path
        assert service.upstream.calls == 0


async def test_keys_of_entries_cannot_be_made_or_confirmed_without_the_deployments_secret() -> None:
    """Whoever sees a key, and can guess the question, learns nothing from hashing it."""
    keys = []
    for secret in (
        "one secret of a deployment",
        "another secret of one",
        "one secret of a deployment",
    ):
        async with serving(secrets={"kv": secret}) as service:
            answers = [
                await service.chat({"enabled": True, "cache_key": "k", **wish}) for wish in WISHES
            ]
            page = (await service.send("GET", "/v1/cache/entries?limit=1")).body
            keys.append([*(one.headers["X-Cache-Key"] for one in answers), page["next_cursor"]])
    assert keys[0] == keys[2]
    assert not set(keys[0]) & set(keys[1])


WISHES: list[dict[str, Any]] = [{}, {"match": "key"}, {"scope": "user", "user": "ann"}]
