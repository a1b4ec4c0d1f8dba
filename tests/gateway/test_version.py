"""The version is the installation's."""

import importlib.metadata

import pytest

from gateway.version import installed_version


def test_it_is_what_the_installation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.version.version", lambda name: f"{name} 1.2")
    assert installed_version() == "kvgate 1.2"


def test_a_source_folder_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("gateway.version.version", missing)
    assert installed_version() == "from a source folder"
