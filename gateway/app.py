"""The composition root: everything is built here, once, and the clock and the dice are read here.

:func:`build` makes the aiohttp application; ``gateway.serve`` runs it until a signal.

Over 400 lines because everything is built in one place.
"""

import asyncio
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

import aiohttp
import structlog
from aiohttp import web

from gateway.analytics import Conversations
from gateway.auth import OPEN_TENANT, Authenticator
from gateway.backends.connections import Connector
from gateway.backends.figures import figures
from gateway.backends.health import Health
from gateway.backends.hearsay import share
from gateway.backends.replicas import Engines, Replicas, follow, is_ready, waits_for
from gateway.backends.retrying import Manner, RetryingRouter
from gateway.backends.served import served, upstreams
from gateway.backends.watch import Watch
from gateway.config import Config
from gateway.context_records import ContextRecords
from gateway.contexts import Contexts
from gateway.dashboard_service import open_dashboard
from gateway.errors import error_body
from gateway.explaining import Explainer
from gateway.flights import Flights, Tasks
from gateway.journal import Journal
from gateway.journal_open import open_journal
from gateway.kv_secret import engine_token, kv_secret
from gateway.logs import redacted
from gateway.metrics import Metrics
from gateway.numbers import Ask, Numbers, added_up
from gateway.origins import border
from gateway.pipeline import Pipeline
from gateway.places import Places, open_places
from gateway.recall import Recall
from gateway.router import Router, Served
from gateway.routes.analytics import Analytics
from gateway.routes.cache import Cache
from gateway.routes.completions import Completions
from gateway.routes.contexts import ContextRoutes
from gateway.routes.explain import Explain
from gateway.routes.models import FORWARDED, Models
from gateway.routes.ops import Ops
from gateway.routes.shape import guarded, json_response
from gateway.stations import Stations, stations
from gateway.store.sharing import Leases, News, Records
from gateway.store.tiers import Tiers
from gateway.together import Together
from gateway.traffic import Traffic
from gateway.version import installed_version
from gateway.warming_service import open_warming
from gateway.workers.team import Team
from gateway.write_limit import WRITES, WriteLimit
from policies.rules import Rules

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

OPENAI_PREFIXES: Final = ("/v1", "")
KEEPALIVE_S: Final = 75.0

_log = structlog.get_logger("kvgate")
_now: Callable[[], float] = time.time  # noqa: TID251 - the wall clock is read here and handed on
_draw: Callable[[], float] = random.random  # noqa: TID251 - the dice are thrown here and handed on


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that was built, for whoever runs or tests it."""

    config: Config
    store: Tiers
    leases: Leases
    ailing_stores: Callable[[], Mapping[str, str | None]]
    records: Records
    news: News | None
    flights: Flights
    recall: Recall
    authenticator: Authenticator
    router: Router
    health: Health
    watch: Watch
    journal: Journal
    conversations: Conversations
    contexts: Contexts
    metrics: Metrics
    pipeline: Pipeline
    stations: Stations
    engines: Engines | None
    tasks: Tasks
    writes: WriteLimit
    draining: asyncio.Event
    """Set when no more calls are taken."""


GATEWAY: Final = web.AppKey("gateway", Gateway)


async def build(
    config: Config,
    *,
    now: Callable[[], float] = _now,
    draw: Callable[[], float] = _draw,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    log_stream: TextIO | None = None,
    team: Team | None = None,
    span_exporter: "SpanExporter | None" = None,
) -> web.Application:
    """The application. It owns what it builds: its clean-up closes all of it.

    ``now`` is unix time, ``clock`` monotonic: what an answer takes is measured by it.
    ``sleep`` takes the seconds between two checks of a backend.
    ``log_stream`` takes the line of each request; standard error unless given. ``team`` are the
    other workers, if this process is one of several. ``span_exporter`` takes the spans in place of the
    configured collector.
    """
    rules = config.rules(kv_secret=team.kv_secret if team else await kv_secret(config))
    token = engine_token(rules.kv_secret)
    session = aiohttp.ClientSession(connector=Connector(keepalive_s=KEEPALIVE_S))
    tasks = Tasks()
    engines = _engines(config, tasks, team, token)
    manner = _manner(config, clock, draw)
    backends = served(config, session, engines, clock, now, token=token)
    router = _router(config, backends, manner, engines=engines, tasks=tasks, team=team)
    several, news = team is not None, team.news if team else None
    places = await open_places(
        config, rules, tasks=tasks, now=now, draw=draw, clock=clock, news=news, several=several
    )
    store = places.tiers
    flights, recall = Flights(tasks), Recall()
    conversations = Conversations(now)
    journal = open_journal(config, conversations, log_stream or sys.stderr, router, team, now=now)
    journal.served = recall.served
    traffic = Traffic(places=config.warm.concurrency, clock=time.monotonic)
    worker = team.number if team else None
    ways = stations(config, worker=worker, exporter=span_exporter)
    pipeline = ways.pipeline(
        rules=rules,
        store=store,
        flights=flights,
        recall=recall,
        now=now,
        draw=draw,
        store_failed=journal.store_failed,
        stored=journal.stored,
        cleared=journal.cleared,
        spent=journal.spent,
        in_the_air=traffic.of,
        leading=places.leading,
        news=places.news,
    )
    gateway = Gateway(
        config=config,
        store=store,
        leases=places.leases,
        ailing_stores=places.ailing,
        records=places.records,
        news=places.news,
        flights=flights,
        recall=recall,
        authenticator=Authenticator(config.tenants),
        router=router,
        health=manner.health,
        watch=Watch(manner.health, clock=clock, sleep=sleep),
        journal=journal,
        conversations=conversations,
        contexts=_contexts(places, router, rules, tasks, now),
        metrics=_metrics(config, router),
        pipeline=pipeline,
        stations=ways,
        engines=engines,
        tasks=tasks,
        writes=WriteLimit(config.server.write_timeout),
        draining=asyncio.Event(),
    )
    app = web.Application(client_max_size=rules.limits.max_body_bytes)
    app[GATEWAY], app[WRITES] = gateway, gateway.writes
    border(config).guard(app)
    app.cleanup_ctx.append(lambda _: _lifetime(gateway, session, places.close))
    warming = open_warming(gateway, rules, traffic, now=now, clock=clock)
    warming.mount(app)
    numbers = partial(_numbers, gateway, team)
    open_dashboard(gateway, rules, warming.jobs, numbers, worker=worker, now=now).mount(app)
    _mount(app, gateway, rules, numbers, worker, now=now, clock=clock)
    return app


def _engines(config: Config, tasks: Tasks, team: Team | None, token: str) -> Engines | None:
    if team is not None:
        return team.engines
    if not config.engine_enabled():
        return None
    return Replicas(config.engine, tasks=tasks, server=config.server, token=lambda: token)


def _metrics(config: Config, router: Router) -> Metrics:
    tenants = [tenant.name for tenant in config.tenants] or [OPEN_TENANT]
    return Metrics(models=router.models(), tenants=tenants, version=installed_version())


def _mount(
    app: web.Application,
    gateway: Gateway,
    rules: Rules,
    numbers: Ask,
    worker: int | None,
    *,
    now: Callable[[], float],
    clock: Callable[[], float],
) -> None:
    """The handlers of all routes."""
    authenticator, router, pipeline = gateway.authenticator, gateway.router, gateway.pipeline
    explainer = _explainer(gateway, rules, now)
    completions = gateway.stations.completions(
        authenticator=authenticator,
        router=router,
        pipeline=pipeline,
        together=Together(pipeline, gateway.flights),
        contexts=gateway.contexts,
        journal=gateway.journal,
        tasks=gateway.tasks,
        writes=gateway.writes,
        rules=rules,
        now=now,
        clock=clock,
    )
    models = Models(authenticator=authenticator, router=router, started_s=now())
    cache = Cache(
        authenticator=authenticator,
        router=router,
        store=gateway.store,
        pipeline=pipeline,
        contexts=gateway.contexts,
        explainer=explainer,
        rules=rules,
        now=now,
        numbers=numbers,
    )
    ops = Ops(
        authenticator=authenticator,
        metrics=gateway.metrics,
        numbers=numbers,
        unready=lambda: _unready(gateway),
        ailing=gateway.health.complaints,
        stores=gateway.ailing_stores,
        figures=lambda: figures(router.backends),
        worker=worker,
    )
    analytics = Analytics(
        authenticator=authenticator,
        conversations=gateway.conversations,
        journal=gateway.journal,
        pipeline=pipeline,
        rules=rules,
    )
    contexts = ContextRoutes(
        authenticator=authenticator,
        contexts=gateway.contexts,
        router=router,
        pipeline=pipeline,
        rules=rules,
        tasks=gateway.tasks,
        now=now,
    )
    contexts.mount(app.router)
    Explain(authenticator=authenticator, explainer=explainer, limits=rules.limits).mount(app.router)
    analytics.mount(app.router)
    _route(app, completions, models, cache, ops)


def _explainer(gateway: Gateway, rules: Rules, now: Callable[[], float]) -> Explainer:
    return Explainer(
        router=gateway.router,
        contexts=gateway.contexts,
        store=gateway.store,
        recall=gateway.recall,
        flights=gateway.flights,
        rules=rules,
        now=now,
    )


def _manner(config: Config, clock: Callable[[], float], draw: Callable[[], float]) -> Manner:
    wish = config.failover
    health = Health(
        clock=clock,
        draw=draw,
        failures=wish.breaker_failures,
        pause_s=wish.breaker_pause,
        outlier_factor=wish.outlier_factor,
        changed=lambda name: _log.warning("backend", name=name, state=health.state(name)),
        key_refused=lambda name, words: _log.error(
            "backend refuses the operator's key", name=name, words=redacted(words)
        ),
    )
    return Manner(health, clock, draw=draw, retries=wish.retries, retry_budget=wish.retry_budget)


def _router(
    config: Config,
    backends: Sequence[Served],
    manner: Manner,
    *,
    engines: Engines | None,
    tasks: Tasks,
    team: Team | None,
) -> RetryingRouter:
    router = RetryingRouter(
        backends,
        config.aliases,
        manner=manner,
        fallbacks=config.fallbacks,
        strategy=config.routing.strategy,
        is_open=lambda name: is_ready(engines, name) and manner.health.is_open(name),
    )
    if engines is not None:
        follow(engines, router, tasks)
        engines.watch(partial(_back, engines, manner.health))
    if team is not None:
        share(router, team.news, tasks)
    return router


def _back(engines: Engines, health: Health, name: str) -> None:
    """An engine's own process says that it is ready: no check is needed to know it."""
    if is_ready(engines, name):
        health.alive(name)


def _contexts(
    places: Places, router: Router, rules: Rules, tasks: Tasks, now: Callable[[], float]
) -> Contexts:
    held = ContextRecords(
        places.records, now=now, edition=partial(secrets.token_hex, 8), shares=places.shares
    )
    return Contexts(
        held,
        news=places.news,
        router=router,
        rules=rules,
        tasks=tasks,
        now=now,
        names_answers=places.tiers.names_answers,
    )


def _route(
    app: web.Application, completions: Completions, models: Models, cache: Cache, ops: Ops
) -> None:
    router = app.router
    for prefix in OPENAI_PREFIXES:
        router.add_post(f"{prefix}/chat/completions", completions.handler("chat"))
        router.add_post(f"{prefix}/completions", completions.handler("completions"))
        router.add_post(f"{prefix}/embeddings", completions.handler("embeddings"))
        router.add_post(f"{prefix}/responses", completions.handler("responses"))
        router.add_get(f"{prefix}/models", guarded(models.list))
        router.add_get(f"{prefix}/models/{{model:.+}}", guarded(models.one))
        router.add_delete(f"{prefix}/models/{{model:.+}}", guarded(models.manage))
        router.add_get(f"{prefix}/chat/completions", guarded(models.manage))
        for method, path in FORWARDED:
            router.add_route(method, f"{prefix}/{path}", guarded(models.forward))
    router.add_get("/v1/cache/stats", guarded(cache.stats))
    router.add_get("/v1/cache/entries", guarded(cache.entries))
    router.add_get("/v1/cache/entries/{key}", guarded(cache.entry))
    router.add_delete("/v1/cache/entries/{key}", guarded(cache.delete_entry))
    router.add_post("/v1/cache/invalidate", guarded(cache.invalidate))
    router.add_get("/healthz", guarded(ops.healthz))
    router.add_get("/readyz", guarded(ops.readyz))
    router.add_get("/metrics", guarded(ops.metrics))
    # A route and not a middleware: only requests that need it pass through it.
    router.add_route("*", "/{unknown:.*}", guarded(_unknown))


async def _unknown(request: web.Request) -> web.StreamResponse:
    """Where no route leads: 404, or 405 for a path that is there for other methods."""
    others = {
        route.method
        for route in request.app.router.routes()
        if route.resource is not None and _leads_to(route.resource, request.rel_url.raw_path)
    } - {"*"}
    message = f"{request.method} {request.path[:200]!r} is not a route of this server."
    if request.path.endswith("/"):
        message += " Try it without the slash at the end."
    code, status = ("method_not_allowed", 405) if others else ("unknown_url", 404)
    response = json_response(
        error_body(status=status, code=code, message=message, param=None), status=status
    )
    if others:
        response.headers["Allow"] = ", ".join(sorted(others))
    return response


def _leads_to(resource: web.AbstractResource, path: str) -> bool:
    pattern = resource.get_info().get("pattern")
    plain = resource.get_info().get("path")
    return bool(pattern.fullmatch(path)) if pattern else plain == path


def _unready(gateway: Gateway) -> Mapping[str, str]:
    waiting = {"server": "draining"} if gateway.draining.is_set() else {}
    if gateway.engines is not None and (state := waits_for(gateway.engines)) is not None:
        waiting["engine"] = state
    names = [backend.name for backend in gateway.config.backends]
    alone = gateway.engines is None and names
    if alone and not any(map(gateway.watch.is_reachable, names)) and not _stores(gateway):
        waiting["backends"] = "none can be reached, and nothing is stored"
    return waiting


def _stores(gateway: Gateway) -> bool:
    return any(fill.entries for fill in gateway.store.fills())


def own_numbers(gateway: Gateway) -> Numbers:
    """What this process has counted."""
    gateway.journal.settle()
    journal = gateway.journal
    return Numbers(
        journal.statistics, gateway.store.fills(), len(gateway.flights), journal.keys.best()
    )


async def _numbers(gateway: Gateway, team: Team | None) -> Numbers:
    """What all have counted. Ourselves last: what came while we asked is in it."""
    others = await team.others() if team is not None else None
    await gateway.store.refresh()
    own = own_numbers(gateway)
    return own if others is None else added_up([own, others])


async def _lifetime(
    gateway: Gateway, session: aiohttp.ClientSession, close_places: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    if gateway.engines is not None:
        await gateway.engines.start()
    await gateway.contexts.load()
    sweeping = Tasks()
    sweeping.start(gateway.contexts.sweep(asyncio.sleep), name="contexts swept")
    asked = upstreams(gateway.config, gateway.router.backends)
    await gateway.watch.start(asked, gateway.router.learn)
    try:
        yield
    finally:
        async with AsyncExitStack() as last:  # whatever fails here, the engines' children must go
            last.push_async_callback(close_places)
            last.push_async_callback(session.close)
            last.push_async_callback(gateway.stations.close)
            if gateway.engines is not None:
                last.push_async_callback(gateway.engines.stop)
            await gateway.watch.close()
            gateway.writes.close()
            await sweeping.close()
            await gateway.tasks.close()
            await gateway.journal.close()
