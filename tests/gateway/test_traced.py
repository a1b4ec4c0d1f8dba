"""Spans: the tree of a hit, a miss, a follower, a renewal; links, parents, and no text anywhere."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.kit.scripted_backend import Gate, body_of
from tests.kit.scripted_upstream import Reply, ScriptedUpstream, error_reply, json_reply
from tests.kit.service import Service, serving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
ROOT = "POST /v1/chat/completions"
Tree = dict[str, Any]


class Traces:
    """What was exported, as trees of names."""

    def __init__(self, service: Service, exporter: InMemorySpanExporter) -> None:
        self.service = service
        self._exporter = exporter

    async def spans(self) -> list[ReadableSpan]:
        """In the order of their start, and none of them twice."""
        await self.service.settled()
        await asyncio.sleep(0)
        found = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return sorted(found, key=lambda span: span.start_time or 0)

    async def tree(self) -> list[Tree]:
        return trees(await self.spans())


def trees(spans: list[ReadableSpan]) -> list[Tree]:
    ids = {span.context.span_id for span in spans if span.context}

    def below(parent: int | None) -> list[Tree]:
        return [
            {span.name: below(span.context.span_id if span.context else None)}
            for span in spans
            if (span.parent.span_id if span.parent and span.parent.span_id in ids else None)
            == parent
        ]

    return below(None)


@asynccontextmanager
async def tracing(**how: Any) -> AsyncIterator[Traces]:
    exporter = InMemorySpanExporter()
    async with serving(span_exporter=exporter, **how) as service:
        yield Traces(service, exporter)


def named(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (span,) = [span for span in spans if span.name == name]
    return span


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


MISS: list[Tree] = [
    {ROOT: [{"plan": []}, {"lookup": []}, {"flight": [{"backend": []}, {"store": []}]}]}
]


async def test_a_miss_has_a_span_at_every_station_and_a_hit_only_where_it_goes() -> None:
    async with tracing() as traces:
        await traces.service.chat(True)
        assert await traces.tree() == MISS
        await traces.service.chat(True)
        assert await traces.tree() == [{ROOT: [{"plan": []}, {"lookup": []}]}]
        await traces.service.chat(True)  # understood before
        assert await traces.tree() == [{ROOT: [{"lookup": []}]}]
        await traces.service.chat(stream=True)
        assert await traces.tree() == [
            {ROOT: [{"plan": []}, {"lookup": []}, {"flight": [{"backend": []}]}]}
        ]


async def test_a_span_says_what_became_of_the_call() -> None:
    async with tracing() as traces:
        answer = await traces.service.chat(True)
        spans = await traces.spans()
        root = attributes(named(spans, ROOT))
        assert root.items() >= {
            "http.route": "/v1/chat/completions", "http.response.status_code": 200,
            "gen_ai.request.model": "m", "kvgate.tenant": "default", "kvgate.level": "none",
            "kvgate.miss_reason": "cold", "kvgate.backend": "up", "kvgate.hit": False,
            "kvgate.key": answer.headers["X-Cache-Key"],
            "kvgate.request_id": answer.headers["X-Request-ID"],
        }.items()  # fmt: skip
        backend = attributes(named(spans, "backend"))
        assert backend["gen_ai.usage.input_tokens"] == 9
        assert backend["gen_ai.usage.output_tokens"] == 4
        assert attributes(named(spans, "lookup"))["kvgate.found"] == "miss"
        await traces.service.chat(True)
        spans = await traces.spans()
        assert attributes(named(spans, "lookup"))["kvgate.found"] == "fresh"
        assert attributes(named(spans, ROOT))["kvgate.level"] == "response"


async def test_a_follower_links_to_the_flight_that_it_reads_along_with() -> None:
    gate = Gate()
    reply = Reply((gate, json_reply(body_of()).steps[0]))
    async with tracing(upstream=ScriptedUpstream(reply)) as traces:
        service = traces.service
        first = asyncio.create_task(service.chat(True))
        await gate.reached()
        second = asyncio.create_task(service.chat(True))
        await service.readers(2)
        gate.open()
        await asyncio.gather(first, second)
        spans = await traces.spans()
        own, along = (span for span in spans if span.name == "flight")
        assert trees(spans)[0] == MISS[0]
        assert trees(spans)[1] == {ROOT: [{"plan": []}, {"lookup": []}, {"flight": []}]}
        (link,) = along.links
        assert link.context == own.context
        assert attributes(along)["kvgate.collapsed"] is True
        assert own.context is not None
        assert along.context is not None
        assert along.context.trace_id != own.context.trace_id
        collapsed = [attributes(span)["kvgate.collapsed"] for span in spans if span.name == ROOT]
        assert collapsed == [False, True]


async def test_a_stale_hit_and_its_renewal_are_one_trace() -> None:
    async with tracing() as traces:
        wish = {"enabled": True, "tier": "hot"}
        await traces.service.chat(wish)
        await traces.spans()
        traces.service.clock.advance(310)
        await traces.service.chat(wish)
        spans = await traces.spans()
        assert trees(spans) == MISS
        assert attributes(named(spans, "lookup"))["kvgate.found"] == "stale"
        assert attributes(named(spans, ROOT))["kvgate.stale"] is True
        flight = attributes(named(spans, "flight"))
        assert (flight["kvgate.errand"], flight["kvgate.lane"]) == ("revalidation", "batch")


async def test_the_trace_of_the_client_goes_on_and_the_backend_is_told_its_own_span() -> None:
    async with tracing() as traces:
        sent = {"traceparent": PARENT, "tracestate": "vendor=1"}
        await traces.service.chat(True, headers=sent)
        spans = await traces.spans()
        root, backend = named(spans, ROOT), named(spans, "backend")
        assert root.parent is not None
        assert f"{root.parent.trace_id:032x}-{root.parent.span_id:016x}" == f"{TRACE}-{SPAN}"
        seen = traces.service.upstream.seen[-1].headers
        assert backend.context is not None
        assert seen["traceparent"] == f"00-{TRACE}-{backend.context.span_id:016x}-01"
        assert seen["tracestate"] == "vendor=1"
        assert traces.service.lines[-1]["trace"] == TRACE


async def test_what_the_client_does_not_sample_makes_no_spans_and_stays_in_its_trace() -> None:
    async with tracing() as traces:
        await traces.service.chat(True, headers={"traceparent": UNSAMPLED})
        assert await traces.spans() == []
        seen = traces.service.upstream.seen[-1].headers["traceparent"]
        assert seen.startswith(f"00-{TRACE}-")
        assert seen.endswith("-00")
        assert traces.service.lines[-1]["trace"] == TRACE


@pytest.mark.parametrize(("sample", "sampled"), [(0.0, 0), (1.0, 1)])
async def test_the_share_that_is_sampled_is_configured(sample: float, sampled: int) -> None:
    async with tracing(tracing={"sample": sample}) as traces:
        await traces.service.chat(True)
        assert len([span for span in await traces.spans() if span.name == ROOT]) == sampled
        assert len(traces.service.lines[-1]["trace"]) == 32
        await traces.service.chat(headers={"traceparent": PARENT})
        assert [span.name for span in await traces.spans()].count(ROOT) == 1  # its client decided


async def test_failures_are_marked_where_they_happened() -> None:
    async with tracing(upstream=ScriptedUpstream(error_reply(500, "secret words"))) as traces:
        await traces.service.chat(True)
        spans = await traces.spans()
        for name in (ROOT, "flight", "backend"):
            assert named(spans, name).status.status_code is StatusCode.ERROR
        assert attributes(named(spans, ROOT))["http.response.status_code"] == 500
        await traces.service.chat({"ttl": "soon"})
        spans = await traces.spans()
        assert attributes(named(spans, ROOT))["error.type"] == "invalid_cache_directive"
        assert named(spans, ROOT).status.status_code is StatusCode.UNSET  # the client's fault


async def test_a_client_that_leaves_ends_its_spans() -> None:
    gate = Gate()
    async with tracing(upstream=ScriptedUpstream(Reply((gate,)))) as traces:
        asking = asyncio.create_task(traces.service.chat())
        await gate.reached()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while len(traces.service.gateway.tasks):  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        spans = await traces.spans()
        assert {span.name for span in spans} >= {ROOT, "flight", "backend"}
        assert named(spans, ROOT).status.status_code is StatusCode.ERROR


async def test_inputs_of_a_list_are_not_traced_one_by_one() -> None:
    async with tracing() as traces:
        body = {"model": "m", "input": [f"text {number}" for number in range(50)], "kv_cache": True}
        await traces.service.send("POST", "/v1/embeddings", body, headers={"traceparent": PARENT})
        assert await traces.tree() == [{"POST /v1/embeddings": [{"plan": []}]}]
        assert traces.service.upstream.seen[-1].headers["traceparent"].startswith(f"00-{TRACE}-")


async def test_calls_on_one_connection_do_not_inherit_each_others_trace() -> None:
    async with tracing() as traces:
        await traces.service.chat(headers={"traceparent": PARENT})
        await traces.service.chat()
        ids = {span.context.trace_id for span in await traces.spans() if span.context}
        assert len(ids) == 2
        assert f"{int(TRACE, 16):x}" in {f"{one:x}" for one in ids}


async def test_no_span_holds_text_of_a_call_a_user_or_a_key() -> None:
    key = "kv-alice-3f1c7a90b2d84e65"
    tenants = [{"name": "acme", "api_keys": [key], "trusted_proxy": True}]
    upstream = ScriptedUpstream(
        json_reply(body_of("the answer's words")), error_reply(400, "its words")
    )
    async with tracing(tenants=tenants, upstream=upstream) as traces:
        wish = {
            "enabled": True, "cache_key": "name-of-entry", "tags": ["a-label"], "user": "carol",
            "batch_id": "batch-name",
        }  # fmt: skip
        for text in ("the question's words", "the question's words", "other words"):
            messages = [{"role": "user", "content": text}]
            await traces.service.chat(wish, messages=messages, key=key)
            await traces.service.settled()
        said = "".join(span.to_json() for span in await traces.spans())
    assert "acme" in said
    for secret in ("words", "name-of-entry", "a-label", "carol", "batch-name", key):
        assert secret not in said


async def test_warming_makes_no_traces_of_its_own() -> None:
    async with tracing() as traces:
        await traces.service.send("POST", "/v1/cache/warm", {"questions": ["One?", "Two?"]})
        while traces.service.upstream.calls < 2:  # noqa: ASYNC110 - turns of the loop, not time
            await asyncio.sleep(0)
        assert await traces.spans() == []
