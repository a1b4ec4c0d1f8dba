"""What several rooms' tests share: the real model's file, settings of the test tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from engine.native.library import Library

# Two OpenMP threads that spin while they wait for each other stand still when a test's other
# processes need the cores; the engine's own process sets the same. Before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A gateway started as a process keeps nothing in the user's cache folder; who tests the disk says so.
os.environ.setdefault("KVGATE_TIERS__COLD__STORE", "memory")

# A machine under load is slow, not wrong: how long an example takes decides nothing here.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF: `KVGATE_TEST_MODEL`, or fetched on first use."""
    given = os.environ.get("KVGATE_TEST_MODEL")
    if given:
        return Path(given)
    from engine.weights.fetch import ensure_default_model

    return ensure_default_model()


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The native kernels, compiled once for all tests. Skips where they cannot be had."""
    from engine.native.build import NoNativeError, cpu_features, library

    folder = tmp_path_factory.mktemp("native")
    try:
        cpu_features()
    except NoNativeError as error:
        pytest.skip(f"no native kernels on this machine: {error}")
    try:
        return library({**os.environ, "KVGATE_CACHE_DIR": str(folder)})
    except NoNativeError as error:
        if os.environ.get("TESTS_REQUIRE_COMPILER"):
            pytest.fail(f"TESTS_REQUIRE_COMPILER is set, but {error}")
        pytest.skip(f"no native kernels without a compiler: {error}")
