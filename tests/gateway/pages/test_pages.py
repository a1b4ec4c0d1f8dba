"""The page's files: all there, light, from nowhere else, and the vendored ones unchanged."""

import hashlib
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from gateway import pages
from gateway.pages import TYPES, load

FOLDER = Path(str(files(pages)))
VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE.uPlot": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
OURS = [name for name in TYPES if not name.startswith("vendor/")]


def test_every_file_of_the_folder_is_served_or_is_no_part_of_the_page() -> None:
    there = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".md"}
    }
    assert there - {"vendor/LICENSE.uPlot"} == set(TYPES)


def test_the_page_weighs_less_than_a_megabyte() -> None:
    assert sum(len(one.body) for one in load().values()) <= 200_000  # the bar is 1 MB


@pytest.mark.parametrize("name", VENDORED)
def test_what_is_not_ours_is_as_it_came(name: str) -> None:
    assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == VENDORED[name]


@pytest.mark.parametrize("name", OURS)
def test_nothing_names_another_machine(name: str) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", (FOLDER / name).read_text())
    assert [one for one in addresses if "www.w3.org" not in one] == []  # the name of SVG


def test_there_is_no_script_and_no_style_in_the_page_itself() -> None:
    page = (FOLDER / "dashboard.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", page) == []
    for name in OURS:
        assert "innerHTML" not in (FOLDER / name).read_text(), name


def test_an_etag_follows_from_the_content() -> None:
    held = load()
    assert len({one.etag for one in held.values()}) == len(held)
    assert load()["dashboard.js"].etag == held["dashboard.js"].etag


def test_the_package_data_patterns_name_every_file() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["gateway.pages"]
    matched = {path.relative_to(FOLDER).as_posix() for one in patterns for path in FOLDER.glob(one)}
    assert set(TYPES) <= matched
    assert "vendor/LICENSE.uPlot" in matched
