"""All of the dashboard, put together: what the composition root starts and routes to."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.config import Config, engine_names
from gateway.dashboard import Dashboard
from gateway.dashboard_views import Slow
from gateway.flights import Tasks
from gateway.history import COLUMNS, KEPT_S
from gateway.numbers import Ask
from gateway.routes.dashboard import DashboardRoutes
from gateway.tally import BUCKETS_S
from gateway.version import installed_version
from gateway.warming import WarmJobs
from policies.rules import Rules

if TYPE_CHECKING:
    from gateway.app import Gateway


@dataclass(frozen=True, slots=True)
class DashboardService:
    """The routes, and what goes on behind them in ``tasks`` of its own."""

    routes: DashboardRoutes
    dashboard: Dashboard
    tasks: Tasks

    def mount(self, app: web.Application) -> None:
        """Add the routes; frames are made for as long as the application runs."""
        self.routes.mount(app.router)
        app.on_shutdown.append(self._let_go)
        app.cleanup_ctx.append(self._lifetime)

    async def _let_go(self, _: web.Application) -> None:
        self.dashboard.close()

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        self.tasks.start(self.dashboard.run(), name="dashboard")
        yield
        await self.tasks.close()


def open_dashboard(
    gateway: "Gateway",
    rules: Rules,
    jobs: WarmJobs,
    numbers: Ask,
    *,
    worker: int | None,
    now: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> DashboardService:
    """``now`` is unix time, ``clock`` monotonic, both in seconds; ``sleep`` waits by ``clock``."""
    config, tasks = gateway.config, Tasks()
    slow = Slow(
        backends=gateway.router.backends,
        models=_models(config),
        health=gateway.health,
        engines=gateway.engines,
        jobs=jobs,
        contexts=gateway.contexts.held,
        conversations=gateway.conversations,
        rules=rules,
        tasks=tasks,
        now=now,
        clock=clock,
    )
    dashboard = Dashboard(numbers=numbers, slow=slow, now=now, used=time.thread_time, sleep=sleep)
    routes = DashboardRoutes(
        authenticator=gateway.authenticator,
        dashboard=dashboard,
        facts=_facts(config, worker, started_s=now()),
    )
    return DashboardService(routes, dashboard, tasks)


def _models(config: Config) -> dict[str, list[str]]:
    named = {wish.name: list(wish.models) for wish in config.backends}
    if config.engine_enabled():
        named |= {name: [config.engine.model] for name in engine_names(config.engine.replicas)}
    return named


def _facts(config: Config, worker: int | None, *, started_s: float) -> dict[str, Any]:
    return {
        "version": installed_version(),
        "started": started_s,
        "worker": worker,
        "workers": config.server.workers,
        "open": not config.tenants,
        "tenants": sorted({tenant.name for tenant in config.tenants}),
        "patterns": [
            {"id": wish.id, "items": len(wish.items()), "keep_warm": wish.keep_warm}
            for wish in config.warm.patterns
        ],
        "columns": COLUMNS,
        "buckets_s": BUCKETS_S,
        "kept_s": KEPT_S,
    }
