"""``/healthz``, ``/readyz``, ``/metrics``: what operators and their machines ask."""

from collections.abc import Callable, Mapping

from aiohttp import web

from gateway.auth import Authenticator
from gateway.errors import ClientFault
from gateway.flights import Flights
from gateway.journal import Journal
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.routes.shape import json_response
from gateway.store.tiers import Tiers


class Ops:
    """``ready`` says by part what is not ready and why; an empty answer means ready."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        journal: Journal,
        metrics: Metrics,
        store: Tiers,
        flights: Flights,
        unready: Callable[[], Mapping[str, str]],
    ) -> None:
        self._authenticator = authenticator
        self._journal = journal
        self._metrics = metrics
        self._store = store
        self._flights = flights
        self._unready = unready

    async def healthz(self, _: web.Request) -> web.Response:
        """The process lives. Needs no key."""
        return json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether calls can be answered now: 200 or 503. Needs no key."""
        waiting = self._unready()
        status = "waiting" if waiting else "ready"
        return json_response(
            {"status": status, "waiting_for": waiting}, status=503 if waiting else 200
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """The exposition text; with tenants configured, for admin keys only."""
        principal = self._authenticator.principal(request.headers.get("Authorization"))
        if not principal.admin:
            raise ClientFault("This route is for admin keys only.", code="admin_only", status=403)
        self._journal.settle()
        page = self._metrics.page(self._journal.statistics, self._store.fills(), len(self._flights))
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})
