"""One running kvgate with the real engine for the stories that need one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.kit.served import Served, serving


@pytest.fixture(scope="session")
def kvgate(smollm_path: Path) -> Iterator[Served]:
    """A whole kvgate with its shipped configuration."""
    with serving(environ={"KVGATE_ENGINE__MODEL": str(smollm_path)}) as served:
        yield served


@pytest.fixture
def client(kvgate: Served) -> Iterator[OpenAI]:
    """The client that users have, pointed at it."""
    with OpenAI(base_url=f"{kvgate.url}/v1", api_key="YOUR_API_KEY", max_retries=0) as client:
        yield client
