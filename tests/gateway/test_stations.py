"""Without a collector nothing of OpenTelemetry is there; with one, the traced ways are taken."""

import subprocess
import sys
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import Config
from gateway.pipeline import Pipeline
from gateway.routes.completions import Completions
from gateway.stations import stations
from tests.kit.service import serving

ROOT = Path(__file__).parent.parent.parent


async def test_unwanted_it_is_the_plain_classes() -> None:
    ways = stations(Config())
    assert (ways.pipeline, ways.completions) == (Pipeline, Completions)
    await ways.close()
    async with serving() as service:
        assert type(service.gateway.pipeline) is Pipeline


async def test_wanted_it_is_theirs_within_spans() -> None:
    async with serving(span_exporter=InMemorySpanExporter()) as service:
        assert type(service.gateway.pipeline).__name__ == "TracedPipeline"


def test_a_gateway_without_traces_does_not_import_opentelemetry() -> None:
    code = (
        "import sys, asyncio\n"
        "from gateway.app import build\n"
        "from gateway.config import Config\n"
        "asyncio.run(build(Config.model_validate({'backends': [{'name': 'up', 'models': ['m'], "
        "'base_url': 'http://127.0.0.1:9/v1'}], 'tiers': {'cold': {'store': 'memory'}}})))\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines()[-1] == "[]"
