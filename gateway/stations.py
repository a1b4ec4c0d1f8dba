"""The pipeline and the handlers as the configuration wants them: plain, or within spans.

Without ``tracing.endpoint`` they are the plain classes and nothing of OpenTelemetry is imported: what is
not wanted costs nothing.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gateway.config import Config
from gateway.pipeline import Pipeline
from gateway.routes.completions import Completions

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


async def _nothing() -> None:
    """There is nothing to close."""


@dataclass(frozen=True, slots=True)
class Stations:
    """What makes them; ``close`` sends what spans there are."""

    pipeline: Callable[..., Pipeline] = Pipeline
    completions: Callable[..., Completions] = Completions
    close: Callable[[], Awaitable[None]] = _nothing


def stations(
    config: Config, *, worker: int | None = None, exporter: "SpanExporter | None" = None
) -> Stations:
    """``exporter`` is where spans go in place of the configured collector: for tests."""
    if config.tracing.endpoint is None and exporter is None:
        return Stations()
    from gateway.traced import TracedCompletions, TracedPipeline
    from gateway.tracing import Tracing

    tracing = Tracing(config.tracing, worker=worker, exporter=exporter)
    return Stations(
        partial(TracedPipeline, tracer=tracing.tracer),
        partial(TracedCompletions, tracer=tracing.tracer),
        tracing.close,
    )
