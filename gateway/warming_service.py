"""All of warming, put together: what the composition root starts and routes to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.auth import OPEN_TENANT
from gateway.flights import Tasks
from gateway.routes.shape import guarded, new_id
from gateway.routes.warm import Warm
from gateway.traffic import Traffic
from gateway.warming import WarmJobs
from gateway.warming_call import Warming
from gateway.warming_keep import Keeper, Pattern
from policies.rules import Rules

if TYPE_CHECKING:
    from gateway.app import Gateway


@dataclass(frozen=True, slots=True)
class WarmingService:
    """The routes, and what goes on behind them in ``tasks`` of its own."""

    routes: Warm
    jobs: WarmJobs
    keeper: Keeper
    tasks: Tasks

    def mount(self, app: web.Application) -> None:
        """Add the routes; warming begins and ends with the application."""
        router = app.router
        router.add_post("/v1/cache/warm", guarded(self.routes.submit))
        router.add_get("/v1/cache/warm", guarded(self.routes.list))
        router.add_get("/v1/cache/warm/{job}", guarded(self.routes.one))
        router.add_delete("/v1/cache/warm/{job}", guarded(self.routes.cancel))
        app.on_shutdown.append(self._let_go)
        app.cleanup_ctx.append(self._lifetime)

    async def _let_go(self, _: web.Application) -> None:
        self.jobs.let_watchers_go()

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        """Warm what the configuration wants, keep it warm, take up what others left."""
        await self.keeper.start()
        self.tasks.start(self.jobs.sweep(), name="warm jobs")
        self.tasks.start(self.keeper.keep(), name="keep warm")
        yield
        await self.tasks.close()


def open_warming(
    gateway: "Gateway",
    rules: Rules,
    traffic: Traffic,
    *,
    now: Callable[[], float],
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> WarmingService:
    """``now`` is unix time, ``clock`` monotonic, both in seconds; ``sleep`` waits by ``clock``."""
    config, tasks = gateway.config, Tasks()
    concurrency = config.warm.concurrency
    warming = Warming(
        pipeline=gateway.pipeline,
        store=gateway.store,
        router=gateway.router,
        fit=gateway.contexts.fit,
        rules=rules,
        journal=gateway.journal,
        traffic=traffic,
        now=now,
        clock=clock,
        sleep=sleep,
        new_id=new_id,
    )
    tenants = list(dict.fromkeys(tenant.name for tenant in config.tenants)) or [OPEN_TENANT]
    jobs = WarmJobs(
        warming=warming,
        records=gateway.records,
        leases=gateway.leases,
        tasks=tasks,
        tenants=tenants,
        concurrency=concurrency,
        now=now,
        sleep=sleep,
        new_id=new_id,
    )
    patterns = {
        wish.id: Pattern(wish.items(), wish.on_start, wish.keep_warm)
        for wish in config.warm.patterns
    }
    keeper = Keeper(
        patterns=patterns,
        tenants=tenants,
        jobs=jobs,
        warming=warming,
        leases=gateway.leases,
        concurrency=concurrency,
        now=now,
        sleep=sleep,
    )
    routes = Warm(
        authenticator=gateway.authenticator,
        jobs=jobs,
        patterns={name: pattern.items for name, pattern in patterns.items()},
        limits=rules.limits,
    )
    return WarmingService(routes, jobs, keeper, tasks)
