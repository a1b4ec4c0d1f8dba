"""The kvgate that the mixed users ask."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.config import load
from loadtest.mixed import TENANTS, config, locust
from loadtest.processes import HERE, Server

KEYS = [f"sk-{number}" for number in range(1 + len(TENANTS))]


def test_its_configuration_is_one_and_has_a_tenant_per_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config(KEYS, tmp_path, "144MiB"))
    made = load(path, environ={})
    assert [tenant.name for tenant in made.tenants] == ["main", *TENANTS]
    assert [tenant.admin for tenant in made.tenants] == [True, False, False, False]
    assert made.engine.kv_memory == 144 << 20
    assert made.store.disk_path == str(tmp_path / "store")


def test_locust_is_told_the_scenarios_and_no_secret() -> None:
    asked = argparse.Namespace(
        scenario=["FaqUser"], users=10, seconds=5, html="", kv_memory="144MiB"
    )

    class Running(Server):
        pid = 4711

    command = locust(asked, Running("loadtest.floors"), HERE / "results" / "mixed-1")
    assert command[command.index("-u") + 1] == "10"
    assert command[command.index("-r") + 1] == "2"
    assert command[command.index("--watch-pid") + 1] == "4711"
    assert command[command.index("--report") + 1] == "loadtest/results/mixed-1"
    assert "FaqUser" in command
    assert not any(part.startswith("sk-") for part in command)
