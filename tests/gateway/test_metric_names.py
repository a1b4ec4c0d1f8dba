"""Prometheus' conventions, checked on a live page: names, units, help, labels, cardinality.

Source: prometheus.io/docs/practices/naming, /practices/instrumentation, and what ``promtool check
metrics`` asks for, which was run by hand on the same page and had nothing to say.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.fake_kv import fake_kv_engine
from tests.kit.kv_stats import KV_STATS
from tests.kit.service import Service, serving

NAME = re.compile(r"kvgate_[a-z][a-z0-9]*(_[a-z0-9]+)*")
NO_BASE_UNITS = re.compile(
    r"_(ms|milliseconds|us|microseconds|minutes|hours|days|kb|kib|mb|mib|gb|kilobytes|megabytes"
    r"|percent|percentage)(_|$)"
)
RESERVED = ("_count", "_sum", "_bucket", "_created")
LABELS = {
    "backend", "cause", "device", "dtype", "endpoint", "errand", "kind", "kv_dtype", "le", "level", "mla", "model",
    "reason", "source", "state", "status", "tenant", "tier", "version",
}  # fmt: skip


@asynccontextmanager
async def full_service() -> AsyncIterator[Service]:
    """A gateway that has everything there is a metric of."""
    async with fake_kv_engine() as engine:
        engine.stats = KV_STATS
        wish = {"name": "eng", "base_url": engine.url, "models": ["m"], "dialect": "kvgate"}
        async with serving(backends=[wish]) as service:
            for _ in range(2):
                await service.chat(True)
                await service.settled()
            await service.chat({"ttl": "soon"})
            yield service


async def families(service: Service) -> list[Metric]:
    page = (await service.send("GET", "/metrics")).raw.decode()
    return list(text_string_to_metric_families(page))


async def test_names_units_and_help_are_as_prometheus_wants_them() -> None:
    async with full_service() as service:
        found = await families(service)
        text = (await service.send("GET", "/metrics")).raw.decode()
    wrong: list[str] = []
    for family in found:
        name = family.name
        if not NAME.fullmatch(name):
            wrong.append(f"{name}: odd name")
        if NO_BASE_UNITS.search(name):
            wrong.append(f"{name}: not a base unit")
        if not family.documentation.endswith(".") or not family.documentation[0].isupper():
            wrong.append(f"{name}: help is no sentence")
        if family.type != "info" and name.endswith(RESERVED):
            wrong.append(f"{name}: a reserved ending")
        if family.type in {"unknown", "untyped"}:
            wrong.append(f"{name}: no type")
        if family.type in name.split("_"):
            wrong.append(f"{name}: its type is in its name")
        for sample in family.samples:
            if family.type == "counter" and sample.name != f"{name}_total":
                wrong.append(f"{sample.name}: a counter without _total")
            if family.type != "counter" and sample.name.endswith("_total"):
                wrong.append(f"{sample.name}: _total, and no counter")
            if set(sample.labels) & {"job", "instance"} or not set(sample.labels) <= LABELS:
                wrong.append(f"{sample.name}: labels {sorted(sample.labels)}")
    assert wrong == []
    helped = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
    assert len(helped) == len(set(helped)) == len(found)


async def test_every_metric_there_is_has_been_looked_at() -> None:
    async with full_service() as service:
        names = {family.name for family in await families(service)}
    assert len(names) > 45
    assert {
        "kvgate_build_info", "kvgate_requests", "kvgate_request_seconds", "kvgate_tokens",
        "kvgate_misses", "kvgate_store_limit_bytes", "kvgate_saved_money", "kvgate_spent_seconds",
        "kvgate_backend_up", "kvgate_engine_info", "kvgate_engine_kv_used_bytes",
        "kvgate_engine_tier_hits", "kvgate_engine_drafted_tokens",
    } <= names  # fmt: skip


async def test_what_clients_send_makes_no_new_series() -> None:
    async def series(service: Service) -> set[tuple[str, ...]]:
        return {
            (sample.name, *sample.labels.values())
            for family in await families(service)
            for sample in family.samples
        }

    async with full_service() as service:
        await service.chat(model="gone", user="somebody")
        await service.settled()
        await service.chat({"enabled": True, "cache_key": "first", "user": "u", "tags": ["t"]})
        await service.chat({"enabled": True, "cache_key": "first", "user": "u"}, temperature=0.5)
        await service.settled()
        before = await series(service)
        for number in range(30):
            name = f"name-{number}"
            wish: dict[str, Any] = {
                "enabled": True, "cache_key": "first", "user": name, "tags": [name], "batch_id": name,
                "context": name,
            }  # fmt: skip
            await service.chat(
                wish, messages=[{"role": "user", "content": name}], metadata={name: "x"}
            )
            await service.chat(wish, model=name)
        await service.settled()
        assert await series(service) == before


async def test_an_engine_that_is_down_costs_its_series_and_says_so() -> None:
    async with fake_kv_engine() as engine:
        engine.stats, engine.status = KV_STATS, 200
        wish = {"name": "eng", "base_url": engine.url, "models": ["m"], "dialect": "kvgate"}
        async with serving(backends=[wish]) as service:
            up = {f.name: f for f in await families(service)}["kvgate_backend_up"]
            assert [sample.value for sample in up.samples] == [1.0]
            engine.stats = []  # type: ignore[assignment]  # nonsense, as a broken engine may say
            found = {family.name: family for family in await families(service)}
            assert [sample.value for sample in found["kvgate_backend_up"].samples] == [0.0]
            assert "kvgate_engine_steps" not in found


@pytest.mark.parametrize("name", ["kvgate_requests", "kvgate_request_seconds"])
async def test_renamed_metrics_would_break_dashboards(name: str) -> None:
    async with full_service() as service:
        assert name in {family.name for family in await families(service)}
