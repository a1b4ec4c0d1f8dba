"""Checks of the backends: each upstream once at the start, and every second while it may be down.

The start's check tells the operator at once what is wrong with an address or a key, and the router
which models a catch-all backend serves. Later a check is made only when the health of a backend is in
doubt, and repeated until it is alive again: so calls go there within two seconds of that moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.backends.checks import CHECK_S, Checked, is_alive, report
from gateway.backends.health import Health
from gateway.flights import Tasks
from gateway.logs import redacted

PERIOD_S: Final = 1.0
FIRST_S: Final = 2.0
"""How long the check at the start may take."""
PATIENCE_S: Final = 1.0
"""How long the start waits for it: a black hole must not keep the gateway from serving."""

_log = structlog.get_logger("kvgate.backends")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A backend that is checked at the start, where it is, and the models named in its section."""

    backend: Checked
    base_url: str
    models: Sequence[str]


class Watch:
    """See the module's docstring. ``clock`` is monotonic; ``sleep`` takes seconds."""

    def __init__(
        self,
        health: Health,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._health = health
        self._tasks = Tasks()
        self._clock = clock
        self._sleep = sleep
        self._backends: dict[str, Checked] = {}
        self._watched: set[str] = set()
        self._pending: set[str] = set()
        self._unlearned: dict[str, tuple[Upstream, Callable[[str, Sequence[str]], None]]] = {}
        self._reported = asyncio.Event()
        health.doubted = self.doubted

    def __repr__(self) -> str:
        return f"<Watch {len(self._backends)} backends, checking {sorted(self._watched)}>"

    def add(self, backend: Checked) -> None:
        """Check this backend when it is in doubt."""
        self._backends[backend.name] = backend

    async def start(
        self, upstreams: Sequence[Upstream], learned: Callable[[str, Sequence[str]], None]
    ) -> None:
        """Check each of them now, and later in doubt; ``learned`` gets its name and models.

        Waits a moment for the answers.
        """
        for upstream in upstreams:
            self.add(upstream.backend)
        self._unlearned = {upstream.backend.name: (upstream, learned) for upstream in upstreams}
        self._pending = set(self._unlearned)
        if not upstreams:
            return
        for name in self._pending:
            self._tasks.start(self._learn(name), name=f"first check of {name}")
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._reported.wait()
        except TimeoutError:
            pass  # it goes on behind the first calls

    async def close(self) -> None:
        """End the checks."""
        await self._tasks.close()

    def is_reachable(self, name: str) -> bool:
        """Whether the backend has answered, as far as is known; not before its first check."""
        return name not in self._pending and not self._health.is_missing(name)

    async def _learn(self, name: str) -> None:
        """Report, unless a backend that was reached has been reported already."""
        if name not in self._unlearned:
            return
        health, (upstream, learned) = self._health, self._unlearned[name]
        found = await report(upstream.backend, upstream.base_url, upstream.models, limit_s=FIRST_S)
        self._pending.discard(name)
        if found.refused is not None:
            health.refused_key(name, found.refused.words or "")
        elif not found.is_well:
            _log.warning("backend check", name=name, says=redacted(found.says))
        if found.is_reached:
            self._unlearned.pop(name, None)
            learned(name, found.models)
        else:
            health.dead(name)
            self.doubted(name)
        if not self._pending:
            self._reported.set()

    def doubted(self, name: str) -> None:
        """Check it now, unless that is under way."""
        if name in self._backends and name not in self._watched:
            self._watched.add(name)
            self._tasks.start(self._until_sure(self._backends[name]), name=f"checks of {name}")

    async def _until_sure(self, backend: Checked) -> None:
        name, health = backend.name, self._health
        try:
            while health.is_doubtful(name):
                began_s = self._clock()
                match await is_alive(backend, limit_s=CHECK_S):
                    case True:
                        health.alive(name)
                        await self._learn(name)
                    case False:
                        health.dead(name)
                    case None:
                        pass  # the calls that probe it must tell
                # Also after the last one: doubts that come fast are checked once a second.
                await self._sleep(max(0.0, PERIOD_S - (self._clock() - began_s)))
        finally:
            self._watched.discard(name)
