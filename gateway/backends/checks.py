"""What a backend says when it is asked whether it is there: by its health route, and its models.

Checks carry no call of a client. A check never fails: what it finds is its result.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import orjson

from gateway.backends.base import Forwarded
from gateway.errors import KEY_REFUSED, BackendFault, GatewayError, key_refused

CHECK_S: Final = 1.0
"""A backend that says nothing for so long is silent."""
MODELS: Final = "/models"
_NO_SUCH_ROUTE: Final = frozenset({401, 403, 404, 405})
_SHOWN: Final = 5


@runtime_checkable
class Checked(Protocol):
    """A backend that can be checked."""

    @property
    def name(self) -> str:
        """The operator's name for it."""
        ...

    async def check_health(self) -> Forwarded | None:
        """What its make's health route says; ``None`` where there is none. Raises: BackendFault."""
        ...

    async def check(self, path: str) -> Forwarded:
        """What it answers to a GET, with the operator's key. Raises: BackendFault."""
        ...


async def is_alive(backend: Checked, *, limit_s: float = CHECK_S) -> bool | None:
    """Whether it can compute now: as its health route says, else whether it lists its models.

    ``None``: it answers, with an error that says nothing about its health.
    """
    try:
        async with asyncio.timeout(limit_s):
            said = await backend.check_health()
            if said is not None and said.status not in _NO_SUCH_ROUTE:
                return said.status < 400
            said = await backend.check(MODELS)
            return None if said.status >= 500 else True
    except (TimeoutError, GatewayError):
        return False


@dataclass(frozen=True, slots=True)
class Report:
    """What became of asking a backend for its models. ``says`` is one line, for the operator.

    ``refused``: its refusal of the key, with its words.
    """

    name: str
    is_well: bool
    says: str
    is_reached: bool = True
    models: tuple[str, ...] = ()
    refused: BackendFault | None = None


async def report(
    backend: Checked, base_url: str, wanted: Sequence[str], *, limit_s: float
) -> Report:
    """Ask for the models. ``wanted`` are those that the configuration names."""
    name = backend.name
    try:
        async with asyncio.timeout(limit_s):
            said = await backend.check(MODELS)
            if said.status == 404:
                return Report(name, False, await _wrong_address(backend, base_url))
    except TimeoutError:
        return Report(name, False, f"{base_url} does not answer", is_reached=False)
    except GatewayError as error:
        return Report(name, False, f"{base_url}: {error.message}", is_reached=False)
    if said.status in KEY_REFUSED:
        refused = key_refused(name, said.status, said.body)
        return Report(name, False, f"its key was refused: {refused.words}", refused=refused)
    models = _models_in(said.body)
    if said.status >= 400 or models is None:
        return Report(name, False, f"{base_url}{MODELS} is no list of models (HTTP {said.status})")
    missing = [model for model in wanted if model not in models and model != "*"]
    says = f"ok, {len(models)} models: {_shown(models)}" if models else "ok, no models"
    if missing:
        says += f"; the configuration also names {_shown(missing)}"
    return Report(name, True, says, models=models)


async def _wrong_address(backend: Checked, base_url: str) -> str:
    """What to tell of a base_url without models. Raises: BackendFault."""
    says = f"{base_url}{MODELS} is 404. base_url is what stands before /chat/completions"
    if not base_url.endswith("/v1") and (await backend.check("/v1" + MODELS)).status < 400:
        return f"{says}: try {base_url}/v1"
    return says


def _models_in(raw: bytes) -> tuple[str, ...] | None:
    try:
        found: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    listed = found.get("data") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        return None
    ids = (model.get("id") for model in listed if isinstance(model, dict))
    return tuple(one for one in ids if isinstance(one, str))


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
