"""What traces cost a hit: the handler alone, no socket, with and without spans.

Run: ``python -m loadtest.bench_tracing``. Prints microseconds of a hit (median of rounds) for a gateway
without traces, one whose client sends a traceparent, and with spans sampled never and always.
"""

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import Mock

from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.test_utils import make_mocked_request
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.app import GATEWAY, build
from gateway.config import Config
from gateway.store.base import Entry
from policies.call import parse_call
from policies.directive import parse_directive
from policies.freshness import EntryMeta
from policies.keys import Principal
from policies.plan import decide

BODY = (
    b'{"model":"m","messages":[{"role":"user","content":"What is a decorator?"}],'
    b'"kv_cache":{"enabled":true}}'
)
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"It wraps a function."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Nowhere(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: Any) -> SpanExportResult:
        """Nothing is kept."""
        assert all(isinstance(span, ReadableSpan) for span in spans)
        return SpanExportResult.SUCCESS


async def hit_us(
    *, rounds: int, hits: int, parent: str | None = None, **how: Any
) -> tuple[float, float]:
    """Median and least of the rounds' means, in microseconds."""
    backend = {"name": "up", "base_url": "http://127.0.0.1:9/v1", "models": ["m"]}
    config = Config.model_validate(
        {
            "backends": [backend],
            "tiers": {"cold": {"store": "memory"}},
            "server": {"log_level": "error"},
            "tracing": how.pop("tracing", {}),
        }
    )
    app = await build(config, log_stream=io.StringIO(), **how)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    gateway = app[GATEWAY]
    await _store(gateway, config)
    handle: Handle = gateway.stations.completions(
        authenticator=gateway.authenticator,
        router=gateway.router,
        pipeline=gateway.pipeline,
        together=None,
        contexts=gateway.contexts,
        journal=gateway.journal,
        rules=config.rules(kv_secret=b""),
        now=time.time,
        clock=time.monotonic,
    ).handler("chat")
    headers = {"Content-Type": "application/json", **({"traceparent": parent} if parent else {})}
    protocol = Mock(_reading_paused=False)
    request = make_mocked_request("POST", "/v1/chat/completions", headers, app=app)
    means = []
    for _ in range(rounds + 1):
        payloads = [_payload(protocol) for _ in range(hits)]
        began_s = time.perf_counter()
        for payload in payloads:
            # Another body for the same request: making a mocked one takes milliseconds.
            request._cache["content"] = payload  # noqa: SLF001 -- aiohttp keeps a read body there; a bench makes one of its own
            response = await handle(request)
            assert response.status == 200
        means.append((time.perf_counter() - began_s) / hits * 1e6)
        await asyncio.sleep(0.02)  # what was noted is settled outside of the measured time
    await runner.cleanup()
    return statistics.median(means[1:]), min(means[1:])  # the first one warms up


async def _store(gateway: Any, config: Config) -> None:
    """The answer to the one question, for an hour."""
    rules = config.rules(kv_secret=b"")
    call = parse_call("chat", {"model": "m", "messages": [_question()]})
    directive = parse_directive(True, (), limits=rules.limits)
    plan = decide(call, directive, Principal("default"), rules)
    meta = EntryMeta(
        key=plan.key, scope=plan.scope, model="m", endpoint="chat", tier="warm", priority="medium",
        stored_at=time.time(), ttl_s=3600.0, stale_while_revalidate_s=0.0, stale_if_error_s=0.0,
        cost_s=0.0, size_bytes=len(ANSWER), prompt_tokens=9, completion_tokens=4,
    )  # fmt: skip
    await gateway.store.put(Entry(meta, ANSWER), now=time.time())


def _question() -> dict[str, str]:
    return {"role": "user", "content": "What is a decorator?"}


def _payload(protocol: Any) -> StreamReader:
    """A body that came with the head."""
    payload = StreamReader(protocol, limit=2**16, loop=asyncio.get_running_loop())
    payload.feed_data(BODY)
    payload.feed_eof()
    return payload


async def main(rounds: int, hits: int) -> None:
    """Print the table."""
    ways: dict[str, dict[str, Any]] = {
        "no traces": {},
        "no spans, a traceparent": {"parent": PARENT},
        "spans, none sampled": {"span_exporter": Nowhere(), "tracing": {"sample": 0.0}},
        "spans, all sampled": {"span_exporter": Nowhere()},
    }
    print(f"{'handler of a hit':<26}{'median µs':>10}{'least µs':>10}")
    for name, how in ways.items():
        median, least = await hit_us(rounds=rounds, hits=hits, **how)
        print(f"{name:<26}{median:>10.1f}{least:>10.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hits", type=int, default=2000)
    wish = parser.parse_args()
    asyncio.run(main(wish.rounds, wish.hits))
