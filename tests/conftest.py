"""What several rooms' tests share: the real model's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF: `KVGATE_TEST_MODEL`, or fetched on first use."""
    given = os.environ.get("KVGATE_TEST_MODEL")
    if given:
        return Path(given)
    from engine.weights.fetch import ensure_default_model

    return ensure_default_model()
