"""What operators and their machines ask."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import app as app_module
from tests.kit.service import serving


async def test_it_lives_and_is_ready() -> None:
    async with serving() as service:
        assert (await service.send("GET", "/healthz")).body == {"status": "ok"}
        ready = await service.send("GET", "/readyz")
        assert (ready.status, ready.body) == (200, {"status": "ready", "waiting_for": {}})


async def test_it_is_not_ready_while_its_engine_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_unready", lambda _: {"engine": "loading"})
    async with serving() as service:
        ready = await service.send("GET", "/readyz")
        assert ready.status == 503
        assert ready.body == {"status": "waiting", "waiting_for": {"engine": "loading"}}
        assert (await service.send("GET", "/healthz")).status == 200


async def test_a_backend_that_is_down_is_named_and_is_no_reason_to_send_nobody_here() -> None:
    failover = {"retries": 0, "breaker_failures": 1}
    async with serving(failover=failover) as service:
        await service.chat(True)
        await service.settled()
        await service.upstream.stop()
        await service.chat()
        ready = await service.send("GET", "/readyz")
        assert ready.status == 200
        assert ready.body == {
            "status": "degraded",
            "waiting_for": {},
            "backends": {"up": "down"},
        }


async def test_metrics_can_be_scraped() -> None:
    async with serving() as service:
        await service.chat(True)
        await service.chat(True)
        await service.chat(model="nope")
        page = await service.send("GET", "/metrics")
        assert page.headers["Content-Type"].startswith("text/plain; version=")
        families = {
            family.name: family for family in text_string_to_metric_families(page.raw.decode())
        }
        levels = {}
        for sample in families["kvgate_requests"].samples:
            if sample.name.endswith("_total"):
                labels = sample.labels
                levels[labels["level"], labels["status"], labels["model"]] = sample.value
        assert levels == {
            ("none", "200", "m"): 1.0,
            ("response", "200", "m"): 1.0,
            ("none", "404", "other"): 1.0,
        }
        entries = {s.labels["tier"]: s.value for s in families["kvgate_store_entries"].samples}
        assert entries == {"hot": 0.0, "warm": 1.0, "cold": 0.0}
