"""``/v1/cache/warm``: take warm jobs, show them, cancel them.

A tenant sees its own jobs and no more; a key bound to a user, that user's; an admin those of the
tenant it names.
"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from aiohttp import web

from gateway import sse
from gateway.auth import Authenticator
from gateway.errors import ClientFault
from gateway.off_loop import off_loop
from gateway.routes.cache import tenant_asked_for
from gateway.routes.shape import as_gateway_error, body_of, json_response, object_of, request_id_of
from gateway.warming import WarmJobs
from gateway.warming_job import Job
from policies.keys import Principal
from policies.rules import Limits
from policies.warming import Item, parse_wish


class Warm:
    """The handlers. ``patterns`` are those of the configuration."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        jobs: WarmJobs,
        patterns: Mapping[str, tuple[Item, ...]],
        limits: Limits,
    ) -> None:
        self._authenticator = authenticator
        self._jobs = jobs
        self._patterns = patterns
        self._limits = limits

    async def submit(self, request: web.Request) -> web.Response:
        """Take a job: 202. Raises: RequestError or ClientFault 400 naming the field."""
        principal = self._view(request)
        raw = await body_of(request)
        items = await off_loop(len(raw), self._items_in, raw)
        job = await self._jobs.submit(principal, items)
        return json_response(job.shown(), status=202, Location=f"/v1/cache/warm/{job.id}")

    def _items_in(self, raw: bytes) -> tuple[Item, ...]:
        return parse_wish(object_of(raw), self._patterns, limits=self._limits)

    async def list(self, request: web.Request) -> web.Response:
        """The jobs that this key may see, the latest first."""
        principal, tenant = self._asking(request)
        jobs = [job for job in await self._jobs.all(tenant) if _sees(principal, job)]
        return json_response({"object": "list", "data": [job.summary() for job in jobs]})

    async def one(self, request: web.Request) -> web.StreamResponse:
        """A job as JSON, or how it goes on as server-sent events. Raises: ClientFault 404."""
        job = await self._find(request)
        tenant, name = job.principal.tenant, job.id
        wants_events = sse.CONTENT_TYPE.partition(";")[0] in request.headers.get("Accept", "")
        if not wants_events or request.method == "HEAD":  # a stream's bytes would follow the head
            return json_response(job.shown())
        response = web.StreamResponse(
            headers={
                "Content-Type": sse.CONTENT_TYPE,
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-ID": request_id_of(request),
            }
        )
        await response.prepare(request)
        try:
            async with aclosing(self._jobs.watch(tenant, name)) as states:
                async for state in states:
                    await response.write(sse.encode(_event(state)))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - the headers are out: an event must say it
            fault = as_gateway_error(error, response.headers["X-Request-ID"])
            await response.write(sse.encode(fault.body()))
        await response.write_eof()
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        """End a job; answers with what was done until then. Raises: ClientFault 404."""
        job = await self._find(request)
        ended = await self._jobs.cancel(job.principal.tenant, job.id)
        return json_response((ended or job).shown())

    async def _find(self, request: web.Request) -> Job:
        principal, tenant = self._asking(request)
        job = await self._jobs.find(tenant, request.match_info["job"])
        if job is None or not _sees(principal, job):
            raise ClientFault("No such warm job.", code="job_not_found", status=404, param="job")
        return job

    def _asking(self, request: web.Request) -> tuple[Principal, str]:
        """Who asks, and whose jobs are meant: an admin may name another tenant."""
        principal = self._view(request)
        tenant = tenant_asked_for(request, principal) if "tenant" in request.query else None
        return principal, tenant or principal.tenant

    def _view(self, request: web.Request) -> Principal:
        return self._authenticator.view(request.headers)


def _event(job: Job) -> dict[str, Any]:
    """The counts while it goes on, everything at its end."""
    return job.shown() if job.ended else job.summary()


def _sees(principal: Principal, job: Job) -> bool:
    return principal.viewer in {None, job.principal.user}
