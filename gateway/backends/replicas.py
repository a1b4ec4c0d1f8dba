"""Several embedded engines side by side: started, asked after and stopped as one.

Each is a process of its own with its own KV cache; together they are one group of backends, see
:mod:`gateway.backends.group`. One that is not ready is passed over; one that was restarted has
forgotten what it knew.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from gateway.backends.embedded import EngineProcess, EngineView, State
from gateway.config import engine_names
from gateway.config_sections import Engine
from gateway.errors import BackendFault
from gateway.flights import Tasks
from gateway.router import Router

_BEST_FIRST: Final[tuple[State, ...]] = ("ready", "starting", "restarting", "failed", "stopped")

Watcher = Callable[[str], None]
"""Called with the name of an engine that is not what it was."""


class Engines(Protocol):
    """The embedded engines, wherever they are started and watched."""

    def view(self) -> Mapping[str, EngineView]:
        """How each of them is and where, by name."""
        ...

    def watch(self, watcher: Watcher) -> None:
        """Have ``watcher`` called for each change."""
        ...

    async def start(self) -> None:
        """Begin to start them; returns at once."""
        ...

    async def stop(self) -> None:
        """End them all."""
        ...


class Replicas:
    """The engines as children of this process. ``more`` is for each :class:`EngineProcess`."""

    def __init__(
        self, section: Engine, *, tasks: Tasks, cores: int | None = None, **more: Any
    ) -> None:
        self._watchers: list[Watcher] = []
        names = engine_names(section.replicas)
        parts = dict.fromkeys(names, divided(section, cores or _cores()))
        self._engines = {
            name: EngineProcess(
                part,
                tasks=tasks,
                name=name if len(names) > 1 else None,
                on_change=partial(self._changed, name),
                **more,
            )
            for name, part in parts.items()
        }

    def __repr__(self) -> str:
        return f"<Replicas {' '.join(map(repr, self._engines.values()))}>"

    def view(self) -> Mapping[str, EngineView]:
        """See :meth:`Engines.view`."""
        return {name: engine.view() for name, engine in self._engines.items()}

    def watch(self, watcher: Watcher) -> None:
        """See :meth:`Engines.watch`."""
        self._watchers.append(watcher)

    def _changed(self, name: str) -> None:
        for watcher in self._watchers:
            watcher(name)

    async def start(self) -> None:
        """See :meth:`Engines.start`."""
        for engine in self._engines.values():
            await engine.start()

    async def stop(self) -> None:
        """See :meth:`Engines.stop`. All at once, and none is left for another's failure."""
        stopping = (engine.stop() for engine in self._engines.values())
        ended = await asyncio.gather(*stopping, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, BaseException):
                raise failure


def divided(section: Engine, cores: int) -> Engine:
    """The section of each of its replicas: ``auto`` threads are shared out."""
    if section.replicas == 1 or section.threads != "auto":
        return section
    return section.model_copy(update={"threads": max(1, cores // section.replicas)})


def waits_for(engines: Engines) -> str | None:
    """The state of the one that is best off, and why; None when it is ready and can serve."""
    best = min(engines.view().values(), key=lambda one: _BEST_FIRST.index(one.state), default=None)
    if best is None:
        return "starting"
    if best.state == "ready":
        return None
    return f"{best.state}: {best.reason}" if best.state != "failed" and best.reason else best.state


def locate(engines: Engines, name: str) -> str:
    """Where its OpenAI routes are. Raises: BackendFault 503 while it is not ready."""
    return engines.view().get(name, EngineView("starting")).base_url()


def is_ready(engines: Engines | None, name: str) -> bool:
    """Whether a backend may be asked as far as its process goes: of others nothing is known."""
    if engines is None or (view := engines.view().get(name)) is None:
        return True
    return view.state == "ready"


def watch_start(engines: Engines, given_up: Callable[[], None]) -> None:
    """Have ``given_up`` called when an engine cannot start before any was ready: none ever will."""
    was_ready = False

    def changed(_: str) -> None:
        nonlocal was_ready
        states = {view.state for view in engines.view().values()}
        was_ready |= "ready" in states
        if "failed" in states and not was_ready:
            given_up()

    engines.watch(changed)


def follow(engines: Engines, router: Router, tasks: Tasks) -> None:
    """Have the router know what each engine's KV cache holds, and when it is lost."""

    def changed(name: str) -> None:
        router.forget(name)
        if is_ready(engines, name):
            tasks.start(_learn(router, name), name=f"capacity of {name}")

    if router.groups:
        engines.watch(changed)
        for name in engines.view():  # what was told before we listened
            changed(name)


async def _learn(router: Router, name: str) -> None:
    backend = next(backend for backend in router.backends if backend.name == name)
    with suppress(BackendFault, KeyError, TypeError):  # then the guess stands
        stats = await backend.kv_stats() or {}
        blocks = stats["blocks"]
        router.resize(name, blocks["total"] * blocks["block_tokens"])


def _cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
