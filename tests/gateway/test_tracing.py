"""Spans reach a collector over OTLP/HTTP; one that is down costs nothing but the spans."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.config import Config, ConfigError, load
from gateway.config_sections import Tracing as Wish
from gateway.tracing import Tracing
from tests.kit.service import serving


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[ExportTraceServiceRequest]]]:
    got: list[ExportTraceServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        assert request.headers["Content-Type"] == "application/x-protobuf"
        got.append(ExportTraceServiceRequest.FromString(body))
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", got
    finally:
        await runner.cleanup()


async def test_a_collector_gets_the_spans_at_the_end_at_the_latest() -> None:
    async with collector() as (url, got):
        async with serving(tracing={"endpoint": url}) as service:
            await service.chat(True)
            await service.settled()
        names: set[str] = set()
        facts: dict[str, str] = {}
        for request in got:
            for resource in request.resource_spans:
                facts |= {one.key: one.value.string_value for one in resource.resource.attributes}
                names |= {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {
        "POST /v1/chat/completions", "plan", "lookup", "flight", "backend", "store",
    }  # fmt: skip
    assert facts["service.name"] == "kvgate"


async def test_workers_are_told_apart_and_the_environment_may_name_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = Tracing(Wish(endpoint="http://127.0.0.1:9"), worker=2)
    facts = tracing._provider.resource.attributes
    assert facts["service.name"] == "mine"
    assert facts["kvgate.worker"] == 2
    await tracing.close()


async def test_a_collector_that_is_stuck_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck() -> None:
        asyncio.run_coroutine_threadsafe(stop.wait(), loop).result()

    monkeypatch.setattr("gateway.tracing.CLOSE_S", 0.05)
    tracing = Tracing(Wish(endpoint="http://127.0.0.1:9"))
    real = tracing._provider.shutdown
    monkeypatch.setattr(tracing._provider, "shutdown", stuck)
    await tracing.close()
    stop.set()
    real()


def test_without_the_extra_the_configuration_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("gateway.config.find_spec", missing)
    environ = {"KVGATE_TRACING__ENDPOINT": "http://127.0.0.1:4318"}
    with pytest.raises(ConfigError, match=r"tracing.endpoint: needs the otel extra: pip install"):
        load(None, environ=environ)
    assert load(None, environ={}) == Config()
