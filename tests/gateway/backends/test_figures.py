"""Backends are asked for their figures at once; what is stuck or down costs a word."""

import asyncio
from typing import Any

from gateway.backends.figures import figures
from gateway.errors import BackendFault
from tests.kit.scripted_backend import ScriptedBackend


class Stuck(ScriptedBackend):
    async def kv_stats(self) -> dict[str, Any] | None:
        await asyncio.Event().wait()
        raise AssertionError


class Down(ScriptedBackend):
    async def kv_stats(self) -> dict[str, Any] | None:
        raise BackendFault("gone", code="backend_unreachable")


async def test_each_says_what_it_can_and_nobody_is_waited_for() -> None:
    good = ScriptedBackend(name="good")
    good.stats = {"steps": 1}
    backends = [good, Stuck(name="stuck"), Down(name="down"), ScriptedBackend(name="plain")]
    assert await figures(backends, patience_s=0.05) == {
        "good": {"kv": {"steps": 1}},
        "stuck": {"error": "backend_timeout"},
        "down": {"error": "backend_unreachable"},
        "plain": {"kv": None},
    }
