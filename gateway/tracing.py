"""OpenTelemetry, opened and closed: the one place that knows the SDK. Imported only where it is wanted.

Spans are made by :mod:`gateway.traced`; where they go, and how many, is decided here.
"""

import asyncio
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from gateway.config_sections import Tracing as TracingConfig
from gateway.version import installed_version

CLOSE_S: Final = 5.0
"""How long the end of the process waits for spans to be sent."""
SCOPE: Final = "kvgate"


class Tracing:
    """A source of spans and its way out. ``exporter`` takes each span at once, for the tests."""

    def __init__(
        self,
        config: TracingConfig,
        *,
        worker: int | None = None,
        exporter: SpanExporter | None = None,
    ) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample)),
            resource=_resource(worker),
            shutdown_on_exit=False,
        )
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        else:
            self._provider.add_span_processor(BatchSpanProcessor(_otlp(config)))

    @property
    def tracer(self) -> Tracer:
        """Makes spans."""
        return self._provider.get_tracer(SCOPE, installed_version())

    async def close(self) -> None:
        """Send what is there, for so long; what is not sent by then is lost."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            pass


def _resource(worker: int | None) -> Resource:
    """Who we are; a name that the environment gives (``OTEL_SERVICE_NAME``) stands."""
    facts: dict[str, str | int] = {"service.version": installed_version()}
    if worker is not None:
        facts["kvgate.worker"] = worker
    resource = Resource.create(facts)
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SCOPE}))
    return resource


def _otlp(config: TracingConfig) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    assert config.endpoint is not None  # else nothing is opened
    return OTLPSpanExporter(endpoint=f"{config.endpoint}/v1/traces", timeout=CLOSE_S)
