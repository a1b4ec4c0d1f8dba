"""What the bundled engine does not do is refused by its name, through the gateway too."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.engine_here import engine_here
from tests.kit.service import Service, serving
from tests.kit.tiny_model import TinyLlama

SCHEMA = {"type": "object"}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    model = TinyLlama().write(tmp_path)
    async with engine_here(model) as engine, serving(backends=[engine.backend]) as service:
        yield service


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_constraint_of_another_server_reaches_no_ordinary_answer(
    service: Service, *, stream: bool
) -> None:
    constraints: list[tuple[str, Any]] = [
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("guided_json", SCHEMA),
        ("guided_choice", ["yes", "no"]),
        ("structured_outputs", {"json": SCHEMA}),
        ("grammar", "root ::= x"),
        ("json_schema", SCHEMA),
        ("regex", "a+"),
        ("web_search_options", {}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": SCHEMA}}),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),  # its template takes none
    ]
    for member, value in constraints:
        for _ in range(2):  # the second time it is remembered
            answer = await service.chat(True, stream=stream, max_tokens=2, **{member: value})
            told = (answer.status, answer.error["code"], answer.error["param"])
            assert told == (400, "unsupported_value", member)
            await service.settled()
    plain = await service.chat(True, stream=stream, max_tokens=2, guided_json=None, functions=[])
    assert plain.status == 200
    assert plain.headers["X-Cache-Level"] == "none"
