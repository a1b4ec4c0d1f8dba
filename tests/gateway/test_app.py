"""The composition root: what is built, what it owns, and that it lets go of all of it."""

import asyncio
import gc

import pytest
from aiohttp import web

from gateway import app as module
from gateway.app import GATEWAY, build
from gateway.backends import replicas
from gateway.backends.embedded import EngineProcess
from gateway.config import Config
from tests.kit.scripted_backend import Gate
from tests.kit.scripted_upstream import Reply, ScriptedUpstream
from tests.kit.service import serving

UP = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}


async def built(config: dict[str, object]) -> web.Application:
    tiers = {"cold": {"store": "memory"}}  # else it lies in the user's cache folder
    return await build(Config.model_validate({"tiers": tiers, **config}))


async def release(app: web.Application) -> None:
    """Close what was built without having been started."""
    runner = web.AppRunner(app)
    await runner.setup()
    await runner.cleanup()


async def test_without_backends_there_is_the_engine() -> None:
    app = await built({"backends": [UP]})
    assert app[GATEWAY].engines is None
    assert repr(app[GATEWAY].router) == "<Router 1 models, 1 backends>"
    await release(app)


async def test_the_engine_may_serve_beside_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(EngineProcess):
        async def start(self) -> None:
            pass

        async def stop(self) -> None:
            pass

    monkeypatch.setattr(replicas, "EngineProcess", Idle)
    app = await built({"backends": [UP], "engine": {"enabled": True}})
    gateway = app[GATEWAY]
    assert gateway.engines is not None
    assert list(gateway.router.models()) == ["smollm2-135m-instruct", "m"]
    assert gateway.router.target("default").model == "smollm2-135m-instruct"
    assert module._unready(gateway) == {"engine": "stopped"}
    await release(app)


async def test_every_route_of_the_protocol_is_there() -> None:
    app = await built({"backends": [UP]})
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    }
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("GET", "/v1/cache/stats"),
        ("GET", "/v1/cache/entries"),
        ("GET", "/v1/cache/entries/{key}"),
        ("DELETE", "/v1/cache/entries/{key}"),
        ("POST", "/v1/cache/invalidate"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    ):
        assert (method, path) in routes
    await release(app)


async def test_head_is_answered_where_get_is() -> None:
    async with serving() as service:
        for path in ("/v1/models", "/healthz", "/v1/cache/stats"):
            answer = await service.send("HEAD", path)
            assert (answer.status, answer.raw) == (200, b"")
        assert (await service.send("HEAD", "/nowhere")).status == 404


async def test_closing_leaves_no_task_and_no_connection() -> None:
    before = asyncio.all_tasks()
    async with serving() as service:
        await service.chat(True)
        await service.chat(True, stream=True)
        gateway = service.gateway
    assert asyncio.all_tasks() == before
    assert len(gateway.tasks) == 0
    assert sum(fill.entries for fill in gateway.store.fills()) == 0
    gc.collect()  # an unclosed session or transport would warn, and warnings are errors


async def test_closing_counts_and_logs_what_was_not_yet_settled() -> None:
    async with serving() as service:
        await service.chat(True)
    assert service.gateway.journal.statistics.total.requests == 1
    assert len(service.lines) == 1


async def test_what_still_flies_at_the_end_is_stopped() -> None:
    gate = Gate()
    upstream = ScriptedUpstream(Reply((gate,)))
    async with serving(upstream=upstream) as service:
        asking = asyncio.create_task(service.chat({"preload": True}))
        await gate.reached()
        asking.cancel()
        await asyncio.wait([asking])
    assert len(service.gateway.tasks) == 0
    assert upstream.seen[0].gone.is_set()
