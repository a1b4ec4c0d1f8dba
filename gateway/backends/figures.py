"""What the backends say of themselves: all are asked at once, and nobody is waited for long."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from gateway.backends.base import Backend
from gateway.errors import GatewayError

PATIENCE_S: Final = 2.0
"""A page of numbers should not wait for an engine that is stuck."""

Figures = dict[str, dict[str, Any]]
"""By backend: ``{"kv": …}`` as it said (``None`` where it says nothing), or ``{"error": code}``."""


async def figures(backends: Iterable[Backend], *, patience_s: float = PATIENCE_S) -> Figures:
    """Ask each. Never fails."""
    asked = list(backends)
    said = await asyncio.gather(*(_ask(backend, patience_s) for backend in asked))
    return {backend.name: one for backend, one in zip(asked, said, strict=True)}


async def _ask(backend: Backend, patience_s: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(patience_s):
            return {"kv": await backend.kv_stats()}
    except GatewayError as error:
        return {"error": error.code}
    except TimeoutError:
        return {"error": "backend_timeout"}
