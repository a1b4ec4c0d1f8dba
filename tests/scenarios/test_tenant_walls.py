"""Two tenants, every route and verb: what one has done changes nothing of what the other is told.

The same requests of tenant B are sent into two worlds: one where tenant A has been busy for a while,
one where A has never been. Every status, header and body must be the same, and none may hold a word
of A's. The twin: A's own requests, sent after all of B's, deletions included, find everything.

A route without a row here fails the first test.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from gateway.app import build
from gateway.config import Config
from gateway.routes.models import FORWARDED
from tests.gateway.test_responses import response_of
from tests.kit.scripted_upstream import (
    Reply,
    ScriptedUpstream,
    Seen,
    chat_body,
    chat_events,
    json_reply,
    stream_reply,
    well_behaved,
)
from tests.kit.service import Answer, Service, serving

ALICE, BOB, ROOT = (f"kv-{name}-3f1c7a90b2d84e65" for name in ("alice", "bob", "root"))
TENANTS = [
    {"name": "a", "api_keys": [ALICE], "trusted_proxy": True},
    {"name": "b", "api_keys": [BOB], "trusted_proxy": True},
    {"name": "ops", "api_keys": [ROOT], "admin": True},
]
BACKEND = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m", "*"]}
SECRETS = {"kv": "one secret for both worlds"}
CANARY = "canary-9b2f"
"""In all that A writes and is answered, except for what B asks as well."""
WISH = {"enabled": True, "cache_key": "v1:ns:one", "tags": ["x"], "user": "dora", "debug": True,
        "batch_id": "b1"}  # fmt: skip
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "What is asked?"}]}
TEXT = {"model": "m", "prompt": "Once"}
INPUTS = {"model": "m", "input": ["one", "two"]}
CONTEXT = {"base_messages": [{"role": "system", "content": "You review code."}]}
SECRET_CONTEXT = {"base_messages": [{"role": "system", "content": f"You keep {CANARY}."}]}
WARM = {"questions": ["What is asked?", "And now?"]}


def asked(body: dict[str, Any], **wish: Any) -> dict[str, Any]:
    return {**body, "kv_cache": {**WISH, **wish}}


@dataclass(frozen=True)
class Row:
    """One request that B sends, and A after it.

    ``path`` may name what A has made: ``{entry}``, ``{job}``. ``alive`` tells from the twin's answer
    that A's things are there; ``twin`` says who sends it, where A may not.
    """

    method: str
    route: str
    alive: Callable[[Answer], bool]
    path: str = ""
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    twin: str = ALICE

    def __str__(self) -> str:
        return f"{self.method} {self.path or self.route} {self.body or ''}"


def stored(answer: Answer) -> bool:
    return answer.headers["X-Cache-Level"] == "response"


def well(answer: Answer) -> bool:
    return answer.status == 200


def let_in(answer: Answer) -> bool:
    return answer.status not in {401, 403, 404}


def shows(word: str) -> Callable[[Answer], bool]:
    return lambda answer: answer.status == 200 and word in answer.raw.decode()


def listing(answer: Answer) -> bool:
    return well(answer) and len(answer.body["data"]) > 0


def refused(code: str) -> Callable[[Answer], bool]:
    return lambda answer: answer.error["code"] == code


def no_admin(answer: Answer) -> bool:
    """Not even whose things they are: for operators only, and for them it never ends."""
    return answer.status == 403


def model_routes(prefix: str) -> list[Row]:
    chat, model = f"{prefix}/chat/completions", f"{prefix}/models/{{model}}"
    return [
        Row("POST", chat, stored, body=asked(QUESTION)),
        Row("POST", chat, stored, body=asked(QUESTION, scope="user")),
        Row("POST", chat, stored, body=asked(QUESTION, match="key")),
        Row("POST", chat, stored, body=asked(QUESTION, context_aware=False)),
        Row("POST", chat, stored, body=asked(QUESTION, scope="user", share=True)),
        Row("POST", chat, stored, body=asked({**QUESTION, "stream": True})),
        Row("POST", chat, stored, body=asked(QUESTION), headers={"Cache-Control": "only-if-cached"}),
        Row("POST", f"{prefix}/completions", stored, body=asked(TEXT)),
        Row("POST", f"{prefix}/embeddings", stored, body=asked(INPUTS)),
        Row("POST", f"{prefix}/embeddings", stored, body=asked({**INPUTS, "input": "one"})),
        Row("GET", f"{prefix}/models", shows('"m"')),
        Row("GET", model, shows('"m"'), f"{prefix}/models/m"),
        Row("DELETE", model, well, f"{prefix}/models/other", twin=ROOT),
        Row("GET", chat, well, twin=ROOT),
        Row("POST", f"{prefix}/responses", stored, body=asked({"model": "m", "input": "Once"})),
        *(
            Row(verb, f"{prefix}/{path}", well, f"{prefix}/{path}".format(id="resp_1"), twin=ROOT)
            for verb, path in FORWARDED
        ),
    ]  # fmt: skip


LIVE = "/dashboard/live"
ENTRY, JOB = "/v1/cache/entries/{key}", "/v1/cache/warm/{job}"
HELD, TALK = "/v1/cache/contexts/{id}", "/v1/cache/conversations/{id}"
READS = [
    Row("GET", "/v1/cache/stats", lambda answer: answer.body["hits"] > 0),
    Row("GET", "/v1/cache/entries", listing),
    Row("GET", "/v1/cache/entries", listing, "/v1/cache/entries?prefix=v1:&tier=warm&limit=1000"),
    Row("GET", "/v1/cache/entries", listing, "/v1/cache/entries?tenant=a"),
    Row("GET", ENTRY, shows(CANARY), "/v1/cache/entries/{entry}"),
    Row("GET", "/v1/cache/warm", listing),
    Row("GET", JOB, shows('"done"'), "/v1/cache/warm/{job}"),
    Row("GET", JOB, shows('"done"'), "/v1/cache/warm/{job}",
        headers={"Accept": "text/event-stream"}),
    Row("GET", "/v1/cache/contexts", shows("reviewers")),
    Row("GET", "/v1/cache/contexts", shows("reviewers"), "/v1/cache/contexts?tenant=a"),
    Row("GET", HELD, shows(CANARY), "/v1/cache/contexts/reviewers"),
    Row("GET", HELD, shows(CANARY), "/v1/cache/contexts/reviewers?tenant=a"),
    Row("GET", HELD, well, "/v1/cache/contexts/reviewers", headers={"X-Cache-User": "dora"}),
    Row("POST", "/v1/chat/completions", well,
        body=asked(QUESTION, shared_context="reviewers", cache_key=None)),
    Row("POST", "/v1/chat/completions", stored,
        body=asked(QUESTION, shared_context="reviewers", cache_key=None)),
    Row("GET", "/v1/cache/conversations", listing),
    Row("GET", "/v1/cache/conversations", listing, "/v1/cache/conversations?tenant=a"),
    Row("GET", TALK, shows("v1:ns:one"), "/v1/cache/conversations/v1:ns:one"),
    Row("GET", TALK, shows("v1:ns:one"), "/v1/cache/conversations/v1:ns:one?tenant=a"),
    Row("GET", "/v1/cache/recommendations", well),  # a moment's traffic recommends nothing
    Row("GET", "/healthz", well),
    Row("GET", "/readyz", well),
    Row("GET", "/metrics", shows('tenant="a"'), twin=ROOT),
    Row("GET", "/", well),
    Row("GET", "/dashboard", well),  # the empty page: what is on it comes by the next but one
    Row("GET", "/dashboard/{file}", well, "/dashboard/dashboard.css"),
    Row("GET", LIVE, no_admin),
    Row("*", "/{unknown}", refused("unknown_url"), "/v1/cache/nothing"),
    Row("*", "/{unknown}", refused("unknown_url"), "/v1/cache/entries/{entry}/more"),
]  # fmt: skip
EXPLAINED = [
    Row("POST", "/v1/cache/explain", shows('"fresh"'), body=asked(QUESTION)),
]
WRITES = [
    Row("POST", "/v1/cache/warm", lambda answer: answer.status == 202, body=WARM),
    Row("DELETE", JOB, well, "/v1/cache/warm/{job}"),
    Row("PUT", HELD, well, "/v1/cache/contexts/reviewers", body=CONTEXT),
    Row("PUT", HELD, lambda answer: answer.status == 201, "/v1/cache/contexts/new", body=CONTEXT),
    Row("DELETE", HELD, well, "/v1/cache/contexts/new"),
    Row("DELETE", HELD, well, "/v1/cache/contexts/reviewers"),
    Row("DELETE", HELD, well, "/v1/cache/contexts/secret"),
    Row("DELETE", ENTRY, well, "/v1/cache/entries/{entry}"),
    *(
        Row("POST", "/v1/cache/invalidate", lambda answer: answer.body["entries"] > 0, body=wish)
        for wish in (
            {"cache_key": "only"}, {"prefix": "v2:"}, {"namespace": "ns3"}, {"tag": "y"},
            {"user": "emil"}, {"batch": "b2"}, {"model": "m"},
        )
    ),
    Row("DELETE", TALK, well, "/v1/cache/conversations/v1:ns:one"),
    Row("POST", "/v1/cache/invalidate", well, body={"all": True}),
    Row("POST", "/v1/cache/invalidate", refused("invalid_selector"), body={"all": True, "tenant": "a"}),
]  # fmt: skip


def _alive_without_body(row: Row) -> Callable[[Answer], bool]:
    if row.route == LIVE:
        return no_admin
    return well if row.twin == ALICE else let_in


GETS = [*model_routes("/v1"), *model_routes(""), *READS]
HEADS = [
    replace(row, method="HEAD", alive=_alive_without_body(row))
    for row in GETS
    if row.method == "GET" and ("GET", row.route.removeprefix("/v1").lstrip("/")) not in FORWARDED
]
ROWS = [*GETS, *HEADS, *EXPLAINED, *WRITES]


async def routes() -> set[tuple[str, str]]:
    """Verb and path of all that the application answers."""
    tiers = {"cold": {"store": "memory"}}
    config = {"tenants": TENANTS, "backends": [BACKEND], "tiers": tiers}
    app = await build(Config.model_validate(config))
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        return {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None
        }
    finally:
        await runner.cleanup()


async def test_every_route_and_verb_has_a_row() -> None:
    there = await routes()
    rows = {(row.method, row.route) for row in ROWS}
    assert there - rows == set(), "a route that nobody has tried to look through"
    assert rows - there == set(), "a row about a route that is gone"


# ---- two worlds


class Upstream(ScriptedUpstream):
    """Answers what is asked in A's time with the canary in it."""

    def __init__(self, *, busy: bool) -> None:
        super().__init__()
        self.busy = busy
        self.otherwise = self._answer

    def _answer(self, seen: Seen) -> Reply:
        if seen.path.endswith("/chat/completions") and seen.method == "POST" and self.busy:
            body = seen.body
            words = (CANARY, "is", "it")
            if body.get("stream"):
                return stream_reply(*chat_events(body, words), b"data: [DONE]\n\n")
            return json_reply(chat_body(body, words))
        if seen.path.endswith("/responses"):
            return json_reply(response_of())
        if seen.path.startswith("/v1/responses/"):
            return json_reply({"id": "resp_1"})
        return well_behaved(seen)


@asynccontextmanager
async def world(*, busy: bool) -> AsyncIterator[tuple[Service, dict[str, str]]]:
    """A gateway, and the names of what A made there; in the other world they name nothing."""
    upstream = Upstream(busy=busy)
    async with serving(
        tenants=TENANTS,
        models=("m", "*"),
        upstream=upstream,
        scripted_durations=True,
        secrets=SECRETS,
    ) as service:
        made = await history(service) if busy else {}
        upstream.busy = False
        service.gateway.journal.settle()
        yield service, made


EXTRA: list[dict[str, Any]] = [
    {"cache_key": "only"}, {"cache_key": "v2:ns:1"}, {"cache_key": "v1:ns3:1"},
    {"tags": ["y"]}, {"user": "emil"}, {"batch_id": "b2"}, {},
]  # fmt: skip
"""One entry for each way to clear some."""


async def history(service: Service) -> dict[str, str]:
    """A's busy while: whatever B will ask, and more."""

    async def send(method: str, path: str, body: Any = None, **headers: str) -> Answer:
        answer = await service.send(method, path, body, key=ALICE, headers=headers)
        assert answer.status < 300, answer.raw
        return answer

    for path, context in (("reviewers", SECRET_CONTEXT), ("secret", CONTEXT)):
        await send("PUT", f"/v1/cache/contexts/{path}", context)
    job = (await send("POST", "/v1/cache/warm", WARM)).body["id"]
    await send("GET", f"/v1/cache/warm/{job}", Accept="text/event-stream")  # until it is done
    entry = ""
    for row in ROWS:
        if row.method == "POST" and row.alive is stored:
            answer = await send("POST", row.path or row.route, row.body)
            entry = entry or answer.headers["X-Cache-Key"]
            await send("POST", row.path or row.route, row.body)
    for number, wish in enumerate(EXTRA):
        await send("POST", "/v1/completions", asked({**TEXT, "seed": number}, **wish))
    for _ in range(3):  # what speaks for a recommendation
        await send("POST", "/v1/chat/completions", asked(QUESTION, enabled=False))
    return {"entry": entry, "job": job}


async def answers(service: Service, made: dict[str, str], who: str | None) -> list[Answer]:
    """What every row is answered, sent by ``who``, or by its twin."""
    told = []
    for row in ROWS:
        path = (row.path or row.route).format(**made)
        method = "GET" if row.method == "*" else row.method
        headers = {"X-Request-ID": "walls", **row.headers}
        key = who or row.twin
        told.append(await service.send(method, path, row.body, key=key, headers=headers))
        if "Location" in told[-1].headers:  # a job: until it is done
            events = {"Accept": "text/event-stream"}
            await service.send("GET", told[-1].headers["Location"], key=key, headers=events)
        await service.settled()
    return told


def seen(answer: Answer) -> str:
    """All of an answer, but for names that are new each time."""
    lines = [f"{answer.status}", *(f"{name}: {value}" for name, value in answer.headers.items())]
    text = "\n".join(
        [line for line in lines if not line.startswith("Date")] + [answer.raw.decode()]
    )
    return re.sub(r"\b[0-9a-f]{24,}\b", "<new>", text)


async def test_nothing_of_one_tenant_is_seen_by_the_other_on_any_route() -> None:
    async with world(busy=True) as (service, made):
        beside = await answers(service, made, BOB)
        after = await answers(service, made, None)
    async with world(busy=False) as (service, _):
        alone = await answers(service, made, BOB)
    told = {
        str(row): (seen(one), seen(other))
        for row, one, other in zip(ROWS, beside, alone, strict=True)
        if seen(one) != seen(other)
    }
    assert told == {}
    assert [str(row) for row, one in zip(ROWS, beside, strict=True) if CANARY in seen(one)] == []
    dead = {str(row): seen(one) for row, one in zip(ROWS, after, strict=True) if not row.alive(one)}
    assert dead == {}
