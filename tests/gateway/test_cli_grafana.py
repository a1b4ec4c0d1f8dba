"""The shipped Grafana dashboard: printed whole, of the right shape, and about metrics that exist.

Its queries were also parsed by ``promtool check rules``, by hand.
"""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from gateway import cli
from tests.kit.fake_kv import fake_kv_engine
from tests.kit.kv_stats import KV_STATS
from tests.kit.service import serving

GRID_COLUMNS = 24
NAMES = re.compile(r"kvgate_[a-z0-9_]+")
SELECTORS = re.compile(r"(kvgate_[a-z0-9_]+)(?:\{([^}]*)\})?")
LABELS = re.compile(r"(\w+)\s*=~?")
BY = re.compile(r"by \(([^)]*)\)")
VARIABLES = re.compile(r"\$(?!__)\{?(\w+)\}?")


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    done = CliRunner().invoke(cli.app, ["grafana"])
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_it_has_what_grafana_asks_of_a_dashboard(board: dict[str, Any]) -> None:
    assert board["title"] == board["uid"] == "kvgate"
    assert board["id"] is None  # Grafana gives it one
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in board["panels"]:
        assert panel["type"] in {"row", "stat", "timeseries"}
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_lies_on_another_or_beside_the_grid(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= GRID_COLUMNS
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_every_variable_is_defined(board: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = {name for text in expressions(board) for name in VARIABLES.findall(text)}
    assert used | {"datasource"} == defined


async def test_every_metric_and_label_it_asks_for_is_on_a_live_page(board: dict[str, Any]) -> None:
    async with fake_kv_engine() as engine:
        engine.stats = KV_STATS
        wish = {"name": "eng", "base_url": engine.url, "models": ["m"], "dialect": "kvgate"}
        async with serving(backends=[wish]) as service:
            await service.chat(True)
            await service.settled()
            page = (await service.send("GET", "/metrics")).raw.decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
    asked = list(expressions(board))
    asked += [variable.get("definition", "") for variable in board["templating"]["list"]]
    assert len(asked) > 30
    for text in asked:
        for name, selector in SELECTORS.findall(text):
            assert name in labels, f"{name} is on no page"
            assert set(LABELS.findall(selector)) <= labels[name], (name, selector)
        grouped = {label.strip() for found in BY.findall(text) for label in found.split(",")}
        names = NAMES.findall(text)
        assert all(grouped <= labels[name] for name in names), (text, grouped)
