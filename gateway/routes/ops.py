"""``/healthz``, ``/readyz``, ``/metrics``: what operators and their machines ask."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from gateway.auth import Authenticator
from gateway.backends.figures import Figures
from gateway.errors import ClientFault
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.numbers import Ask
from gateway.routes.shape import json_response


class Ops:
    """``unready`` says by part what is not ready and why; an empty answer means ready.

    ``ailing`` says which backends are not asked at the moment: no reason to send nobody here, since
    what is stored goes on being served. ``stores`` says of each place outside this process why it is of
    no use now (None: it works).
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        metrics: Metrics,
        numbers: Ask,
        unready: Callable[[], Mapping[str, str]],
        ailing: Callable[[], Mapping[str, str]] = dict,
        stores: Callable[[], Mapping[str, str | None]] = dict,
        figures: Callable[[], Awaitable[Figures]],
        worker: int | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._metrics = metrics
        self._numbers = numbers
        self._unready = unready
        self._ailing = ailing
        self._stores = stores
        self._figures = figures
        self._worker = {} if worker is None else {"worker": worker}

    async def healthz(self, _: web.Request) -> web.Response:
        """The process lives; of several workers, which one it is. Needs no key."""
        return json_response({"status": "ok", **self._worker})

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether calls can be answered now: 200 or 503. Needs no key."""
        waiting = self._unready()
        ailing = self._ailing()
        failing = {name: why for name, why in self._stores().items() if why is not None}
        status = "waiting" if waiting else "degraded" if ailing or failing else "ready"
        body: dict[str, object] = {"status": status, "waiting_for": waiting}
        if ailing:
            body["backends"] = ailing
        if failing:
            body["stores"] = failing
        return json_response(body, status=503 if waiting else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        """The exposition text; with tenants configured, for admin keys only."""
        principal = self._authenticator.view(request.headers)
        if not principal.admin:
            raise ClientFault("This route is for admin keys only.", code="admin_only", status=403)
        numbers, said = await asyncio.gather(self._numbers(), self._figures())
        page = self._metrics.page(
            numbers.statistics,
            numbers.fills,
            numbers.flights,
            backends=said,
            states=self._ailing(),
            stores=self._stores(),
        )
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})
